//! What is wrong with a file, where, why, and what to do.

use std::fmt;

use serde::Serialize;

/// One thing wrong with (or, as a warning, unwise in) a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file as the user named it.
    pub file: Option<String>,
    /// Line, from 1.
    pub line: Option<usize>,
    /// Column in characters, from 1.
    pub column: Option<usize>,
    /// Path of keys joined by `/`, as in Kamal's messages; empty at the root.
    pub path: String,
    /// What is wrong. Where Kamal has an error of its own, exactly its message.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The offending line, with values masked where they may be secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snippet: Option<String>,
    /// Name of a warning, by which it can be silenced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Problem {
    /// A problem without a place.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            file: None,
            line: None,
            column: None,
            path: String::new(),
            message: message.into(),
            hint: None,
            snippet: None,
            name: None,
        }
    }

    /// Adds what to do.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the path of keys.
    #[must_use]
    pub fn at_path(mut self, path: impl Into<String>) -> Self {
        self.path = path.into();
        self
    }
}

/// `file:line:column: message`, the offending line, the hint.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}:")?;
            if let Some(line) = self.line {
                write!(f, "{line}:")?;
            }
            if let Some(column) = self.column {
                write!(f, "{column}:")?;
            }
            write!(f, " ")?;
        }
        write!(f, "{}", self.message)?;
        if let Some(name) = &self.name {
            write!(f, " [{name}]")?;
        }
        if let (Some(snippet), Some(line)) = (&self.snippet, self.line) {
            write!(f, "\n{line:>6} | {snippet}")?;
            if let Some(column) = self
                .column
                .filter(|column| *column <= snippet.chars().count() + 1)
            {
                write!(f, "\n       | {:>column$}", "^")?;
            }
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n       = {hint}")?;
        }
        Ok(())
    }
}

/// Everything that is wrong, Kamal's own first error first.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

/// The known word nearest to `word`, if it is near enough to be a slip.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = match word.chars().count() {
        0..=2 => return None,
        3..=5 => 1,
        6..=9 => 2,
        10..=40 => 3,
        _ => return None,
    };
    known
        .into_iter()
        .map(|candidate| {
            (
                strsim::damerau_levenshtein(&word.to_lowercase(), &candidate.to_lowercase()),
                candidate,
            )
        })
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
