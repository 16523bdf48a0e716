//! Where a Redis server's password is written: among the words it was started with, or in its configuration file. Pure.

use serde_json::Value;

/// The words that a container was started with; a script for a shell is taken apart into its own.
pub(super) fn words(about: &Value) -> Vec<String> {
    let texts = |value: &Value| -> Vec<String> {
        let words = value.as_array().into_iter().flatten();
        words.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let started = [
        texts(&about["Config"]["Entrypoint"]),
        texts(&about["Config"]["Cmd"]),
    ]
    .concat();
    let mut found = Vec::new();
    for (number, word) in started.iter().enumerate() {
        let is_script = number > 0 && started.get(number - 1).is_some_and(|before| before == "-c");
        // What no shell could read is one word.
        match shlex::split(word).filter(|_| is_script) {
            Some(words) => found.extend(words),
            None => found.push(word.clone()),
        }
    }
    found
}

/// The word after `--requirepass`; a variable means what the container's environment says.
pub(super) fn among(words: &[String], env: &[String]) -> Option<String> {
    let at = words.iter().position(|word| word == "--requirepass")?;
    let word = words.get(at + 1)?;
    let Some(name) = word.strip_prefix('$') else {
        return Some(word.clone());
    };
    let name = name
        .strip_prefix('{')
        .and_then(|name| name.strip_suffix('}'))
        .unwrap_or(name);
    let value = env
        .iter()
        .find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))?;
    Some(value.to_owned())
}

/// The value of `requirepass` in a configuration file; the last one counts, as for the server.
pub(super) fn in_file(text: &str) -> Option<String> {
    let value = |line: &str| {
        let (name, value) = line.trim().split_once(char::is_whitespace)?;
        let value = value.trim();
        let bare = ['"', '\'']
            .iter()
            .find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote))
            .unwrap_or(value);
        (name.eq_ignore_ascii_case("requirepass") && !bare.is_empty()).then(|| bare.to_owned())
    };
    text.lines().filter_map(value).next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_found_wherever_it_is_written() {
        let found = |cmd: Value| {
            let words = words(
                &serde_json::json!({ "Config": { "Entrypoint": ["docker-entrypoint.sh"], "Cmd": cmd } }),
            );
            among(&words, &["SECRET=from env".to_owned()])
        };
        let expect = |text: &str| Some(text.to_owned());
        assert_eq!(
            found(serde_json::json!(["redis-server", "--requirepass", "a b"])),
            expect("a b")
        );
        assert_eq!(
            found(serde_json::json!([
                "sh",
                "-c",
                "exec redis-server --requirepass \"$SECRET\""
            ])),
            expect("from env")
        );
        assert_eq!(
            found(serde_json::json!([
                "sh",
                "-c",
                "redis-server --requirepass ${SECRET} --port 6379"
            ])),
            expect("from env")
        );
        assert_eq!(
            found(serde_json::json!(["redis-server", "/etc/redis.conf"])),
            None
        );
        assert_eq!(found(Value::Null), None);
    }

    #[test]
    fn a_file_is_read_as_the_server_reads_it() {
        let file = "# requirepass no\nmasterauth x\nrequirepass first\n  REQUIREPASS \"se cret\"\n";
        assert_eq!(in_file(file), Some("se cret".to_owned()));
        assert_eq!(in_file("requirepass \"\"\n"), None);
        assert_eq!(in_file("port 1\n"), None);
    }
}
