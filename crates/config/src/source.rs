//! The text of the files, for showing the offending line of a problem and nothing else of them.

use crate::problem::Problem;
use crate::yaml::tree::Place;

/// The files of one configuration, numbered as in [`Place::file`].
#[derive(Debug, Clone, Default)]
pub struct Sources {
    files: Vec<(String, String)>,
}

/// Keys whose values are not shown, with everything below them.
const MASKED: &[&str] = &[
    "env",
    "clear",
    "secret",
    "secrets",
    "password",
    "username",
    "key_data",
    "args",
    "tags",
    "private_key_pem",
];

impl Sources {
    /// Adds a file by the name the user knows; gives its number.
    pub fn add(&mut self, name: impl Into<String>, text: impl Into<String>) -> usize {
        self.files.push((name.into(), text.into()));
        self.files.len() - 1
    }

    /// Whether any file starts with a byte order mark.
    pub(crate) fn starts_with_mark(&self) -> bool {
        self.files.iter().any(|(_, text)| text.starts_with('\u{feff}'))
    }

    /// A problem at a place, with the line it stands on.
    pub fn problem(&self, place: Place, path: &str, message: impl Into<String>) -> Problem {
        let mut problem = Problem::new(message).at_path(path);
        if let Some((name, text)) = self.files.get(place.file) {
            problem.file = Some(name.clone());
            if place.line > 0 {
                problem.line = Some(place.line);
                problem.column = Some(place.column);
                problem.snippet = snippet(text, place.line);
            }
        }
        problem
    }
}

/// Longest line that is shown, in characters.
const LONGEST: usize = 160;

/// One line of a file; what may be secret is masked.
fn snippet(text: &str, line: usize) -> Option<String> {
    let lines: Vec<&str> = text.lines().take(line).collect();
    let shown = *lines.get(line.checked_sub(1)?)?;
    let mut shown = if is_sensitive(&lines) {
        mask(shown)
    } else {
        shown.trim_end().to_owned()
    };
    if shown.chars().count() > LONGEST {
        shown = shown.chars().take(LONGEST).chain(['…']).collect();
    }
    Some(shown)
}

/// Whether the last of the lines stands under a masked key (by indentation: the text may not even be valid YAML),
/// or names one itself.
fn is_sensitive(lines: &[&str]) -> bool {
    let Some((last, before)) = lines.split_last() else {
        return false;
    };
    if keys_of(last).any(|key| MASKED.contains(&key)) {
        return true;
    }
    let mut limit = indentation(last) + usize::from(last.trim_start().starts_with('-'));
    for line in before.iter().rev() {
        let trimmed = line.trim_start();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        let indent = indentation(line);
        // A list may stand in the column of its key.
        if indent < limit {
            if keys_of(line).any(|key| MASKED.contains(&key)) {
                return true;
            }
            limit = indent + usize::from(trimmed.starts_with('-'));
        }
        if limit == 0 {
            break;
        }
    }
    false
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// The words of a line that are followed by a colon.
fn keys_of(line: &str) -> impl Iterator<Item = &str> {
    line.split(':').rev().skip(1).filter_map(|part| {
        part.trim_end_matches(['"', '\'', ' '])
            .rsplit([' ', '{', ',', '[', '"', '\'', '-', '\t'])
            .next()
    })
}

/// Keeps indentation, list dashes and the first key.
fn mask(line: &str) -> String {
    let body = line.trim_start();
    let indent = &line[..line.len() - body.len()];
    let dashes: String = body.chars().take_while(|letter| "- ".contains(*letter)).collect();
    let rest = &body[dashes.len()..];
    let key = rest
        .split_once(": ")
        .map(|(key, _)| key)
        .or_else(|| rest.trim_end().strip_suffix(':'))
        .filter(|key| {
            key.chars()
                .all(|letter| letter.is_alphanumeric() || "_-.\"'".contains(letter))
        });
    match key {
        Some(key) if rest.trim_end().ends_with(':') => format!("{indent}{dashes}{key}:"),
        Some(key) => format!("{indent}{dashes}{key}: …"),
        None => format!("{indent}{dashes}…"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_line_itself_is_shown_and_never_a_value_under_env() {
        let text = "service: app\nenv:\n  clear:\n    TOKEN: hush\n  secret:\n  - PLAIN\nregistry:\n  server: x\n  password: hush\nlabels: {env: hush}\nproxy:\n  host: y\n";
        for (line, shown) in [
            (1, "service: app"),
            (4, "    TOKEN: …"),
            (6, "  - …"),
            (8, "  server: x"),
            (9, "  password: …"),
            (10, "labels: …"),
            (12, "  host: y"),
        ] {
            assert_eq!(snippet(text, line).as_deref(), Some(shown));
        }
        assert_eq!(snippet(text, 99), None);
        assert_eq!(snippet("env:\n  A: 'hush\n   hush\n", 3).as_deref(), Some("   …"));
    }
}
