//! Ruby's regular expressions on the linear-time engine: no input makes a match hang.

use std::fmt::Write as _;

use regex::{Captures, Regex, RegexBuilder};

use super::value::Match;

/// A compiled regular expression.
#[derive(Debug)]
pub(super) struct Pattern {
    /// As written, for `inspect`.
    pub(super) source: String,
    regex: Regex,
}

impl Pattern {
    /// Compiles Ruby syntax. Look-around and back-references are not regular, so they are refused.
    ///
    /// # Errors
    /// The form that is not supported, or what is wrong.
    pub(super) fn compile(source: &str, flags: &str) -> Result<Self, String> {
        if let Some(flag) = flags.chars().find(|flag| !"imxou".contains(*flag)) {
            return Err(format!("the regular expression flag `{flag}'"));
        }
        let regex = RegexBuilder::new(&translate(source))
            .multi_line(true)
            .case_insensitive(flags.contains('i'))
            .dot_matches_new_line(flags.contains('m'))
            .ignore_whitespace(flags.contains('x'))
            .size_limit(1 << 20)
            .build()
            .map_err(|_| format!("the regular expression /{source}/"))?;
        Ok(Self {
            source: source.to_owned(),
            regex,
        })
    }

    /// A pattern that finds `text` itself.
    pub(super) fn literal(text: &str) -> Result<Self, String> {
        Self::compile(&regex::escape(text), "")
    }

    pub(super) fn is_match(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    /// Offset in characters of the first match.
    pub(super) fn find(&self, text: &str) -> Option<usize> {
        self.regex
            .find(text)
            .map(|found| text[..found.start()].chars().count())
    }

    pub(super) fn captures(&self, text: &str) -> Option<Match> {
        self.regex.captures(text).map(|found| self.groups(text, &found))
    }

    pub(super) fn all(&self, text: &str) -> Vec<Match> {
        self.regex
            .captures_iter(text)
            .map(|found| self.groups(text, &found))
            .collect()
    }

    /// Byte ranges of all matches.
    pub(super) fn ranges(&self, text: &str) -> Vec<std::ops::Range<usize>> {
        self.regex.find_iter(text).map(|found| found.range()).collect()
    }

    fn groups(&self, text: &str, found: &Captures<'_>) -> Match {
        let whole = found.get(0).map_or(0..0, |whole| whole.range());
        Match {
            groups: found
                .iter()
                .map(|group| group.map(|group| group.as_str().to_owned()))
                .collect(),
            names: self
                .regex
                .capture_names()
                .enumerate()
                .filter_map(|(index, name)| Some((name?.to_owned(), index)))
                .collect(),
            before: text[..whole.start].to_owned(),
            after: text[whole.end..].to_owned(),
        }
    }
}

/// Puts `\0`, `\1`, `\k<name>`, `\&` and `\\` of a replacement in.
pub(super) fn expand(replacement: &str, found: &Match) -> String {
    let mut text = String::new();
    let group = |index: usize| found.groups.get(index).cloned().flatten().unwrap_or_default();
    let mut chars = replacement.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\\' {
            text.push(c);
            continue;
        }
        match chars.next() {
            Some('&') => text.push_str(&group(0)),
            Some('\\') | None => text.push('\\'),
            Some(digit) if digit.is_ascii_digit() => text.push_str(&group(digit as usize - '0' as usize)),
            Some('k') if chars.peek() == Some(&'<') => {
                chars.next();
                let name: String = chars.by_ref().take_while(|c| *c != '>').collect();
                if let Some((_, index)) = found.names.iter().find(|(found, _)| *found == name) {
                    text.push_str(&group(*index));
                }
            }
            Some(other) => {
                text.push('\\');
                text.push(other);
            }
        }
    }
    text
}

/// Ruby's `\w`, `\d`, `\s` are ASCII, `\h` is a hexadecimal digit, `\Z` allows a last newline.
fn translate(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut class = 0usize;
    let mut chars = source.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '[' => {
                class += 1;
                out.push(c);
            }
            ']' => {
                class = class.saturating_sub(1);
                out.push(c);
            }
            '\\' => {
                let next = chars.next();
                let set = match next {
                    Some('w') => Some("A-Za-z0-9_"),
                    Some('d') => Some("0-9"),
                    Some('s') => Some(r" \t\r\n\x0c\x0b"),
                    Some('h') => Some("0-9a-fA-F"),
                    _ => None,
                };
                match (set, next) {
                    (Some(set), _) if class > 0 => out.push_str(set),
                    (Some(set), _) => {
                        let _infallible = write!(out, "[{set}]");
                    }
                    (None, Some('W')) => out.push_str("[^A-Za-z0-9_]"),
                    (None, Some('D')) => out.push_str("[^0-9]"),
                    (None, Some('S')) => out.push_str(r"[^ \t\r\n\x0c\x0b]"),
                    (None, Some('Z')) => out.push_str(r"(?:\n?\z)"),
                    (None, Some('/')) => out.push('/'),
                    (None, Some(other)) => {
                        out.push('\\');
                        out.push(other);
                    }
                    (None, None) => out.push('\\'),
                }
            }
            _ => out.push(c),
        }
    }
    out
}
