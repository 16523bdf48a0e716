//! `${NAME}` in clear environment values: Kamal leaves it to the shell on the host, so the host decides.
//!
//! There is no shell here. Names come from `/etc/environment`, which a log-in on the host would read.

use std::collections::BTreeMap;
use std::path::Path;

/// Where PAM finds the environment of every log-in.
pub const FILE: &str = "/etc/environment";

/// The variables of a host; none where the file cannot be read.
pub fn read(path: &Path) -> BTreeMap<String, String> {
    let text = fs_err::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(line).collect()
}

/// `NAME=value`, as pam_env reads it: an optional `export`, optional quotes, `#` begins a comment line.
fn line(line: &str) -> Option<(String, String)> {
    let line = line.trim();
    let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
    if line.starts_with('#') {
        return None;
    }
    let (name, value) = line.split_once('=')?;
    let quoted = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
    let value = quoted('"').or_else(|| quoted('\'')).unwrap_or(value);
    is_name(name).then(|| (name.to_owned(), value.to_owned()))
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The value with `${NAME}`, `${NAME-word}` and `${NAME:-word}` replaced as a POSIX shell does (POSIX.1 XCU 2.6.2).
///
/// Everything else stays byte for byte: `$NAME`, `$(…)`, backticks, and braces that are none of these forms.
pub fn expand(value: &str, env: &BTreeMap<String, String>) -> String {
    let mut result = String::with_capacity(value.len());
    let mut rest = value;
    while let Some(start) = rest.find("${") {
        result.push_str(&rest[..start]);
        let after = &rest[start + 2..];
        let replaced = after
            .find('}')
            .and_then(|end| Some((lookup(&after[..end], env)?, end)));
        match replaced {
            Some((text, end)) => {
                result.push_str(&text);
                rest = &after[end + 1..];
            }
            None => {
                result.push_str("${");
                rest = after;
            }
        }
    }
    result.push_str(rest);
    result
}

fn lookup(inner: &str, env: &BTreeMap<String, String>) -> Option<String> {
    let end = inner
        .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .unwrap_or(inner.len());
    let (name, form) = inner.split_at(end);
    if !is_name(name) {
        return None;
    }
    let found = env.get(name);
    if form.is_empty() {
        return Some(found.cloned().unwrap_or_default());
    }
    if let Some(word) = form.strip_prefix(":-") {
        return Some(
            found
                .filter(|found| !found.is_empty())
                .cloned()
                .unwrap_or_else(|| word.to_owned()),
        );
    }
    form.strip_prefix('-')
        .map(|word| found.cloned().unwrap_or_else(|| word.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_braces_are_the_hosts_business() {
        let env = BTreeMap::from([
            ("TOKEN".to_owned(), "a$b".to_owned()),
            ("EMPTY".to_owned(), String::new()),
        ]);
        for (value, expect) in [
            ("${TOKEN}", "a$b"),
            ("x${TOKEN}y${TOKEN}", "xa$bya$b"),
            ("${MISSING}", ""),
            ("${MISSING:-word}", "word"),
            ("${EMPTY:-word}", "word"),
            ("${EMPTY-word}", ""),
            ("$TOKEN $(id) `id` \\n", "$TOKEN $(id) `id` \\n"),
            ("${not a name} ${", "${not a name} ${"),
            ("${1}", "${1}"),
            ("größe ${TOKEN}", "größe a$b"),
        ] {
            assert_eq!(expand(value, &env), expect, "{value}");
        }
    }

    #[test]
    fn the_file_is_read_as_pam_reads_it() {
        let read: Vec<_> = ["A=1", "export B=\"x y\"", " # C=2", "D='q'", "=x", "1=2", "no"]
            .into_iter()
            .filter_map(line)
            .collect();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(read, [pair("A", "1"), pair("B", "x y"), pair("D", "q")]);
    }
}
