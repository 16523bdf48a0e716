//! The grammar of dotenv 3.2, as Kamal 2.12 uses it.
//!
//! One difference on purpose: what a command prints is inserted literally.
//! dotenv 3.2 looks for variables in it once more, so a fetched `pa$ss` becomes `pa`.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use indexmap::IndexMap;
use regex::Regex;

/// Most bytes of all values of a file together, once variables are put in: lines that double each other end here.
const MOST_BYTES: usize = 16 << 20;

/// One assignment; lines that match nothing are skipped, as dotenv skips them.
static LINE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r#"(?mx)
        ^ [\ \t\r\n\x0c\x0b]*
        (?P<export> export [\ \t\r\n\x0c\x0b]+ )?
        (?P<key> [A-Za-z0-9_.]+ )
        (?:
            (?: [\ \t\r\n\x0c\x0b]* = [\ \t\r\n\x0c\x0b]*? | : [\ \t\r\n\x0c\x0b]+? )
            (?P<value>
                [\ \t\r\n\x0c\x0b]* ' (?: \\' | [^'] )* '
              | [\ \t\r\n\x0c\x0b]* " (?: \\" | [^"] )* "
              | [^\#\n]+
            )?
        )?
        [\ \t\r\n\x0c\x0b]*
        (?: \# .* )?
        $"#,
    )
    .expect("the pattern is constant")
});

/// A `$(...)` to run.
#[derive(Debug)]
pub struct Command<'a> {
    /// The variable being assigned.
    pub name: &'a str,
    /// Line of the assignment, from 1.
    pub line: usize,
    /// The command as written, variables not put in: safe to show.
    pub written: &'a str,
    /// The command to run.
    pub text: &'a str,
}

/// Why a file could not be parsed.
#[derive(Debug)]
pub enum Trouble<E> {
    /// A line is wrong.
    Format {
        /// Line, from 1.
        line: usize,
        /// What is wrong; never a value.
        what: String,
    },
    /// A command failed.
    Command(E),
}

/// Parses a dotenv file.
///
/// With `overwrite` values of the file win over `env`, as for Kamal's secrets;
/// without it a variable that is set already keeps its value and its line is not evaluated, as `Dotenv.load` does.
///
/// # Errors
/// `export NAME` for a name without a value, and what `run` fails with.
pub fn parse<E>(
    text: &str,
    env: &BTreeMap<String, String>,
    overwrite: bool,
    run: &mut dyn FnMut(&Command<'_>) -> Result<String, E>,
) -> Result<IndexMap<String, String>, Trouble<E>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut values: IndexMap<String, String> = IndexMap::new();
    let (mut line, mut counted) = (1, 0);
    let mut room = MOST_BYTES;
    for found in LINE.captures_iter(&text) {
        let Some(key) = found.name("key") else { continue };
        line += text[counted..key.start()].matches('\n').count();
        counted = key.start();
        let name = key.as_str();
        if !overwrite
            && name != "DOTENV_LINEBREAK_MODE"
            && let Some(value) = env.get(name)
        {
            values.insert(name.to_owned(), value.clone());
            continue;
        }
        let value = match found.name("value") {
            Some(value) => value.as_str(),
            None if found.name("export").is_some() => {
                if !values.contains_key(name) {
                    return Err(Trouble::Format {
                        line,
                        what: format!("`export {name}` has no value, and {name} is not set above"),
                    });
                }
                continue;
            }
            None => "",
        };
        let mut file = File {
            env,
            overwrite,
            values: &values,
            name,
            line,
            room,
        };
        let value = file.value(value, run)?;
        room = room.saturating_sub(value.len());
        values.insert(name.to_owned(), value);
    }
    Ok(values)
}

struct File<'a> {
    env: &'a BTreeMap<String, String>,
    overwrite: bool,
    values: &'a IndexMap<String, String>,
    name: &'a str,
    line: usize,
    /// How long the value may become.
    room: usize,
}

impl File<'_> {
    fn value<E>(
        &mut self,
        raw: &str,
        run: &mut dyn FnMut(&Command<'_>) -> Result<String, E>,
    ) -> Result<String, Trouble<E>> {
        let value = raw.trim_matches([' ', '\t', '\n', '\r', '\u{b}', '\u{c}', '\0']);
        let quoted = |quote: char| {
            value
                .strip_prefix(quote)
                .and_then(|rest| rest.strip_suffix(quote))
        };
        if let Some(literal) = quoted('\'') {
            return Ok(literal.to_owned());
        }
        let unescaped = match quoted('"') {
            Some(inner) => unescape(&self.line_breaks(inner)),
            None => unescape(value),
        };
        self.substitute(&unescaped, run)
    }

    /// `\n` in double quotes stays two characters, unless the old mode is asked for.
    fn line_breaks(&self, value: &str) -> String {
        let mode = self
            .values
            .get("DOTENV_LINEBREAK_MODE")
            .or_else(|| self.env.get("DOTENV_LINEBREAK_MODE"));
        if mode.is_some_and(|mode| mode == "legacy") {
            value.replace("\\n", "\n").replace("\\r", "\r")
        } else {
            value.replace("\\n", "\\\\n").replace("\\r", "\\\\r")
        }
    }

    /// Puts commands and variables in; the output of a command is never looked at again.
    fn substitute<E>(
        &mut self,
        value: &str,
        run: &mut dyn FnMut(&Command<'_>) -> Result<String, E>,
    ) -> Result<String, Trouble<E>> {
        let mut out = String::new();
        // Text since the last command: variables are put in when it ends.
        let mut pending = String::new();
        let closing = closing_parentheses(value);
        let mut start = 0;
        let mut search = 0;
        while let Some(found) = value[search..].find("$(") {
            let dollar = search + found;
            let Some(&close) = closing.get(&(dollar + 1)).filter(|close| **close > dollar + 2) else {
                search = dollar + 2;
                continue;
            };
            let before = &value[start..dollar];
            let written = &value[dollar + 2..close];
            if let Some(before) = before.strip_suffix('\\') {
                pending.push_str(before);
                pending.push_str(&value[dollar..=close]);
            } else {
                pending.push_str(before);
                out.push_str(&self.variables(&pending)?);
                pending.clear();
                let text = self.variables(written)?;
                let printed = run(&Command {
                    name: self.name,
                    line: self.line,
                    written,
                    text: &text,
                })
                .map_err(Trouble::Command)?;
                out.push_str(chomp(&printed));
            }
            start = close + 1;
            search = start;
        }
        pending.push_str(&value[start..]);
        out.push_str(&self.variables(&pending)?);
        Ok(out)
    }

    /// Replaces `$NAME` and `${NAME}`, each brace optional; `\$` is a dollar.
    fn variables<E>(&self, text: &str) -> Result<String, Trouble<E>> {
        let mut out = String::new();
        let mut rest = text;
        while let Some(dollar) = rest.find('$') {
            let (before, after) = (&rest[..dollar], &rest[dollar + 1..]);
            if after.starts_with('(') {
                out.push_str(&rest[..=dollar]);
                rest = after;
                continue;
            }
            let open = usize::from(after.starts_with('{'));
            let name_length = after[open..]
                .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
                .unwrap_or(after.len() - open);
            let name = &after[open..open + name_length];
            let close = usize::from(after[open + name_length..].starts_with('}'));
            let (variable, following) = after.split_at(open + name_length + close);
            if let Some(before) = before.strip_suffix('\\') {
                out.push_str(before);
                out.push('$');
                out.push_str(variable);
            } else {
                out.push_str(before);
                if name.is_empty() {
                    out.push('$');
                    out.push_str(variable);
                } else {
                    out.push_str(self.look_up(name));
                }
            }
            if out.len() > self.room {
                return Err(Trouble::Format {
                    line: self.line,
                    what: format!(
                        "with its variables put in, {} makes the file's values longer than {} MiB",
                        self.name,
                        MOST_BYTES >> 20
                    ),
                });
            }
            rest = following;
        }
        out.push_str(rest);
        Ok(out)
    }

    fn look_up(&self, name: &str) -> &str {
        let (own, process) = (self.values.get(name), self.env.get(name));
        let found = if self.overwrite {
            own.or(process)
        } else {
            process.or(own)
        };
        found.map_or("", String::as_str)
    }
}

/// Takes the backslash off everything but `$`.
fn unescape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('\\', Some(next)) if *next != '$' => out.extend(chars.next()),
            _ => out.push(c),
        }
    }
    out
}

/// Where each opening parenthesis is closed; escaped ones do not count.
fn closing_parentheses(text: &str) -> HashMap<usize, usize> {
    let mut open = Vec::new();
    let mut closing = HashMap::new();
    let mut escaped = false;
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            // A backslash before a dollar escapes the whole substitution, not a parenthesis.
            b'\\' => escaped = text.as_bytes().get(index + 1) != Some(&b'$'),
            b'(' => open.push(index),
            b')' => {
                if let Some(start) = open.pop() {
                    closing.insert(start, index);
                }
            }
            _ => {}
        }
    }
    closing
}

fn chomp(text: &str) -> &str {
    let cut = text.strip_suffix('\n').unwrap_or(text);
    cut.strip_suffix('\r').unwrap_or(cut)
}
