//! ERB as Kamal runs it over a whole configuration file: trim mode `-`, comments included.
//!
//! The forms found in real configurations are evaluated natively; anything else is handed to an installed `ruby`,
//! or refused with file and line. Text is never passed on unevaluated.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::runner::Runner;

mod ast;
mod builtin;
mod interp;
mod lexer;
mod parser;
mod pattern;
mod ruby;
mod template;
mod value;

#[cfg(test)]
mod tests;

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
    /// `(offset in text, offset in the file, copied)`, ascending.
    marks: Vec<(usize, usize, bool)>,
    /// Offset of each line of the text.
    text_lines: Vec<usize>,
    /// Offset of each line of the file.
    source_lines: Vec<usize>,
    source: String,
}

impl Rendered {
    /// The place in the file that the given place of the rendered text came from; lines and columns count from 1,
    /// columns in characters. What a tag printed belongs to the start of the tag.
    pub fn origin(&self, line: usize, column: usize) -> (usize, usize) {
        let line_start = line
            .checked_sub(1)
            .and_then(|line| self.text_lines.get(line).copied())
            .unwrap_or(self.text.len());
        let offset = self.text[line_start..]
            .char_indices()
            .nth(column.saturating_sub(1))
            .map_or(self.text.len(), |(at, _)| line_start + at);
        self.place(self.source_offset(offset))
    }

    fn source_offset(&self, offset: usize) -> usize {
        match self.marks.partition_point(|(start, ..)| *start <= offset) {
            0 => offset,
            index => match self.marks[index - 1] {
                (start, source, true) => source + (offset - start),
                (_, source, false) => source,
            },
        }
    }

    fn place(&self, offset: usize) -> (usize, usize) {
        place(&self.source, &self.source_lines, offset)
    }
}

fn line_starts(text: &str) -> Vec<usize> {
    std::iter::once(0)
        .chain(text.match_indices('\n').map(|(at, _)| at + 1))
        .collect()
}

/// Line and column, both from 1, of an offset.
fn place(text: &str, lines: &[usize], offset: usize) -> (usize, usize) {
    let offset = offset.min(text.len());
    let line = lines.partition_point(|start| *start <= offset).max(1);
    let start = lines.get(line - 1).copied().unwrap_or(0);
    let column = text
        .get(start..offset)
        .map_or(1, |before| before.chars().count() + 1);
    (line, column)
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
            Self::Raised { class, message, .. } => hint_for(class, message),
            Self::Syntax { what, .. } if what.contains("`end'") => {
                Some("every if, case and do needs one `end`, in a tag of its own: <% end %>".to_owned())
            }
            _ => None,
        }
    }
}

/// What usually makes Ruby raise such an error in a configuration.
fn hint_for(class: &str, message: &str) -> Option<String> {
    // Ruby 3.4 quotes names with two apostrophes, older ones begin with a back-tick.
    let quoted = || message.split(['`', '\'']).nth(1).unwrap_or_default();
    Some(match class {
        "NameError" if message.starts_with("undefined local variable") => format!(
            "set {name} in a tag before this one; for a variable of the environment write ENV[\"{name}\"], for a text put quotes around it",
            name = quoted()
        ),
        "NameError" => "`require` the library that defines it, in a tag before this one".to_owned(),
        "NoMethodError" if message.contains("for nil") => {
            format!("what stands before .{} is nil: give it a default with ||, or call with &.", quoted())
        }
        "Errno::ENOENT" => {
            "create the file, or give a default where File.exist? says it is not there; paths start in the project's directory"
                .to_owned()
        }
        "LoadError" => "install it where you deploy from, or do without it".to_owned(),
        "RuntimeError" => "the file itself refuses to go on here: see the condition of its `raise`".to_owned(),
        "SystemExit" => "the file itself ends the command here".to_owned(),
        _ => return None,
    })
}

/// Templates longer than this are not configuration.
const LARGEST_TEMPLATE: usize = 32 << 20;

/// Ruby nests deeper than a thread's usual stack allows in a debug build.
const STACK: usize = 64 << 20;

/// Renders the ERB of `text`, read from `file`.
///
/// # Errors
/// See [`ErbError`].
pub fn render(text: &str, file: &Path, ctx: &mut Context<'_>) -> Result<Rendered, ErbError> {
    let lines = line_starts(text);
    let rendered = |text_out: String, marks| Rendered {
        text_lines: line_starts(&text_out),
        text: text_out,
        marks,
        source_lines: lines.clone(),
        source: text.to_owned(),
    };
    if !text.contains("<%") {
        return Ok(rendered(text.to_owned(), Vec::new()));
    }
    if text.len() > LARGEST_TEMPLATE {
        return Err(ErbError::Budget {
            line: 1,
            limit: "32 MiB of template",
        });
    }
    let before = ctx.env.clone();
    let result = std::thread::scope(|scope| {
        std::thread::Builder::new()
            .stack_size(STACK)
            .spawn_scoped(scope, || evaluate(text, &lines, ctx))
            .map(|thread| thread.join())
    });
    let result = match result {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => std::panic::resume_unwind(panic),
        Err(source) => {
            return Err(ErbError::Run {
                line: 1,
                program: "a thread for ERB".to_owned(),
                source,
            });
        }
    };
    match result {
        Ok((out, marks)) => Ok(rendered(out, marks)),
        // What our parser takes for bad Ruby may be good Ruby: where there is one, Ruby decides.
        Err(ours @ (ErbError::Unsupported { .. } | ErbError::Syntax { .. })) => {
            // Ruby starts from what the file found, not from what our attempt left.
            ctx.env = before;
            let Some(ruby) = crate::runner::find_on_path("ruby", &ctx.env) else {
                return Err(ours);
            };
            match ruby::render(text, file, &ruby, ctx) {
                Ok((out, marks)) => Ok(rendered(out, marks)),
                // Both agree, and our place is the better one.
                Err(ErbError::Raised { class, .. })
                    if class == "SyntaxError" && matches!(ours, ErbError::Syntax { .. }) =>
                {
                    Err(ours)
                }
                Err(theirs) => Err(theirs),
            }
        }
        Err(other) => Err(other),
    }
}

type Output = (String, Vec<(usize, usize, bool)>);

fn evaluate(text: &str, lines: &[usize], ctx: &mut Context<'_>) -> Result<Output, ErbError> {
    let mut interp = interp::Interp::new(ctx);
    let scope = std::rc::Rc::new(value::Scope::default());
    interp
        .template(text, template::Trim::Explicit, &scope, &value::Value::Main)
        .map_err(|flow| explain(flow, |at| place(text, lines, at)))?;
    Ok((interp.out, interp.marks))
}

fn explain(flow: interp::Flow, place: impl Fn(usize) -> (usize, usize)) -> ErbError {
    use interp::Flow;
    match flow {
        Flow::Raise { class, message, at } => {
            let (line, column) = place(at);
            ErbError::Raised {
                line,
                column,
                class,
                message,
            }
        }
        Flow::Unsupported { what, at } => {
            let (line, column) = place(at);
            ErbError::Unsupported { line, column, what }
        }
        Flow::Syntax { what, at } => {
            let (line, column) = place(at);
            ErbError::Syntax { line, column, what }
        }
        Flow::Budget { limit, at } => ErbError::Budget {
            line: place(at).0,
            limit,
        },
        Flow::Run { program, source, at } => ErbError::Run {
            line: place(at).0,
            program,
            source,
        },
        Flow::Break(_) | Flow::Next(_) | Flow::Return(_) => ErbError::Syntax {
            line: 1,
            column: 1,
            what: "break, next or return outside of a block".to_owned(),
        },
    }
}
