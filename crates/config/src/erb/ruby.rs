//! Hands a template to an installed `ruby` when it needs more than the native subset.
//!
//! The template goes as the Ruby program that [`template::compile`] makes of it, each piece of output with the place it
//! came from, so that problems found later are told where they stand in the file.
//! Everything travels on standard input: nothing is written to disk, and nothing of the template reaches a shell.

use std::path::Path;

use super::template::{self, OUT_CLOSE, OUT_OPEN, Program, TEXT, Trim};
use super::{Context, ErbError, Output};
use crate::runner::Invocation;

/// Gives the template the surroundings it has in Kamal, evaluates it, answers in JSON.
const DRIVER: &str = include_str!("driver.rb");

#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Answer {
    Text {
        text: String,
        /// Offset in the text, offset in the template, whether it is the template's own text.
        marks: Vec<(usize, usize, bool)>,
        set: std::collections::BTreeMap<String, String>,
        gone: Vec<String>,
    },
    Raised {
        class: String,
        message: String,
        line: usize,
    },
}

pub(super) fn render(
    text: &str,
    file: &Path,
    ruby: &Path,
    ctx: &mut Context<'_>,
) -> Result<Output, ErbError> {
    let trouble = |source| ErbError::Run {
        line: 1,
        program: format!("{} for {}", ruby.display(), file.display()),
        source,
    };
    let lines = super::line_starts(text);
    // Ruby's own ERB would print the code of a tag that is not closed; nobody means to deploy that.
    let program = template::compile(text, Trim::Explicit).map_err(|(at, what)| {
        let (line, column) = super::place(text, &lines, at);
        ErbError::Syntax {
            line,
            column,
            what: what.to_owned(),
        }
    })?;
    let texts: Vec<&str> = program.texts.iter().map(|(text, _)| text.as_str()).collect();
    let input = serde_json::json!({ "code": code(&program), "texts": texts });
    let outcome = ctx
        .runner
        .run(&Invocation {
            argv: vec![ruby.to_string_lossy().into_owned(), "-".to_owned()],
            env: ctx.env.clone(),
            directory: ctx.directory.clone(),
            stdin: Some(format!("{DRIVER}{input}\n").into_bytes()),
        })
        .map_err(trouble)?;
    match serde_json::from_slice(&outcome.stdout) {
        Ok(Answer::Text {
            text: printed,
            marks,
            set,
            gone,
        }) => {
            for name in gone {
                ctx.env.remove(&name);
            }
            ctx.env.extend(set);
            Ok((printed, ascending(marks)))
        }
        Ok(Answer::Raised { class, message, line }) => Err(ErbError::Raised {
            line: line.max(1),
            column: column_of_tag(text, line),
            class,
            message: message.lines().next().unwrap_or_default().to_owned(),
        }),
        Err(_) => Err(trouble(std::io::Error::other(match outcome.stderr.as_str() {
            "" => format!("it gave no answer (exit code {:?})", outcome.code),
            said => said.to_owned(),
        }))),
    }
}

/// The program as plain Ruby with every line where it is in the template; line 0 is ours, as in `ERB#src`.
fn code(program: &Program) -> String {
    let mut ruby = String::from("# coding: UTF-8\n_erbout = +'';");
    let mut rest = program.code.as_str();
    while let Some(at) = rest.find([TEXT, OUT_OPEN, OUT_CLOSE]) {
        let offset = program.code.len() - rest.len() + at;
        ruby.push_str(&rest[..at]);
        let mark = rest[at..].chars().next().expect("a mark was just found");
        rest = &rest[at + mark.len_utf8()..];
        match mark {
            TEXT => {
                let (index, after) = rest
                    .split_once(TEXT)
                    .expect("the compiler closes the mark of a text");
                let start = program.source(offset);
                ruby.push_str(&format!("_erbout.<<($appliance.text(_erbout,{index},{start}))"));
                rest = after;
            }
            OUT_OPEN => {
                let start = program.source(offset);
                ruby.push_str(&format!("$appliance.tag(_erbout,{start});_erbout.<<(("));
            }
            _ => ruby.push_str(").to_s)"),
        }
    }
    ruby.push_str(rest);
    ruby.push_str("\n_erbout");
    ruby
}

/// A template may take back what it printed; marks that this leaves out of order mean nothing.
fn ascending(marks: Vec<(usize, usize, bool)>) -> Vec<(usize, usize, bool)> {
    let mut kept: Vec<(usize, usize, bool)> = Vec::with_capacity(marks.len());
    for mark in marks {
        while kept.last().is_some_and(|last| last.0 > mark.0) {
            kept.pop();
        }
        kept.push(mark);
    }
    kept
}

/// Ruby tells lines only: the column, from 1, of the first tag in the line.
fn column_of_tag(text: &str, line: usize) -> usize {
    text.lines()
        .nth(line.saturating_sub(1))
        .and_then(|line| line.find("<%").map(|at| line[..at].chars().count() + 1))
        .unwrap_or(1)
}
