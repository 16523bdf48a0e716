//! The text of the files, for showing the offending line of a problem and nothing else of them.

use crate::erb::Rendered;
use crate::problem::Problem;
use crate::yaml::tree::Place;

/// The files of one configuration, numbered as in [`Place::file`].
#[derive(Debug, Clone, Default)]
pub struct Sources {
    files: Vec<Source>,
}

#[derive(Debug, Clone)]
struct Source {
    name: String,
    text: String,
    /// What ERB made of the text; places are places in it.
    rendered: Option<Rendered>,
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
        self.files.push(Source {
            name: name.into(),
            text: text.into(),
            rendered: None,
        });
        self.files.len() - 1
    }

    /// From now on, places in a file are places in its rendered text.
    pub(crate) fn attach(&mut self, number: usize, rendered: Rendered) {
        if let Some(source) = self.files.get_mut(number) {
            source.rendered = Some(rendered);
        }
    }

    /// What ERB made of a file, or the file.
    pub(crate) fn rendered_text(&self, number: usize) -> &str {
        self.files
            .get(number)
            .map_or("", |source| match &source.rendered {
                Some(rendered) => &rendered.text,
                None => &source.text,
            })
    }

    /// The line and column in the file that a place stands for.
    pub fn origin(&self, place: Place) -> (usize, usize) {
        match self
            .files
            .get(place.file)
            .and_then(|source| source.rendered.as_ref())
        {
            Some(rendered) if place.line > 0 => rendered.origin(place.line, place.column),
            _ => (place.line, place.column),
        }
    }

    /// Whether any file starts with a byte order mark.
    pub(crate) fn starts_with_mark(&self) -> bool {
        self.files
            .iter()
            .any(|source| source.text.starts_with('\u{feff}'))
    }

    /// The line at a place, as written.
    pub(crate) fn line(&self, place: Place) -> Option<&str> {
        let (line, _) = self.origin(place);
        let text = &self.files.get(place.file)?.text;
        text.lines().nth(line.checked_sub(1)?)
    }

    /// A problem at a place, with the line it stands on.
    pub fn problem(&self, place: Place, path: &str, message: impl Into<String>) -> Problem {
        let mut problem = Problem::new(shortened(message.into())).at_path(shortened(path.to_owned()));
        if let Some(source) = self.files.get(place.file) {
            problem.file = Some(source.name.clone());
            if place.line > 0 {
                let (line, column) = self.origin(place);
                problem.line = Some(line);
                problem.column = Some(column);
                problem.snippet = snippet(&source.text, line);
            }
        }
        problem
    }
}

/// Longest message, in bytes.
const LONGEST_MESSAGE: usize = 4096;

fn shortened(mut text: String) -> String {
    if text.len() > LONGEST_MESSAGE {
        let end = (0..=LONGEST_MESSAGE)
            .rev()
            .find(|end| text.is_char_boundary(*end))
            .unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
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
