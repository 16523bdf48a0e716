//! Turns a fresh Ubuntu or Debian server into an appliance that runs your web apps.
//!
//! One binary, four faces: the command line, the agent, the proxy and the receiver.
//! This crate is the only place where two of the others meet, and `ui` the only module that prints.

// A binary exports nothing; `pub` here means "for the rest of this crate".
#![allow(unreachable_pub)]

mod agent;
mod aliases;
mod cli;
mod commands;
mod developer;
mod failure;
mod globals;
mod host_file;
mod journal;
mod receive;
mod release_key;
mod ui;
mod update;
mod wire;

use std::process::ExitCode;

/// Returns memory to the system promptly and stays small when idle, which glibc's allocator does not.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The version, in one place of the binary.
const STAMP: &str = concat!("appliance release ", env!("CARGO_PKG_VERSION"));

/// The version of this program.
pub fn version() -> &'static str {
    STAMP.trim_start_matches("appliance release ")
}

fn main() -> ExitCode {
    appliance_config::yaml::silence_caught_panics();
    let arguments = arguments();
    if let Some(cli) = cli::parse_service(&arguments) {
        return run(cli);
    }
    let arguments = match aliases::expand(arguments) {
        Ok(arguments) => arguments,
        Err(error) => return failed(&error),
    };
    let cli = match cli::parse(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // clap prints help to standard output and mistakes to standard error, each in its own colours.
            let _closed_pipe = error.print();
            return ExitCode::from(if error.use_stderr() { 64 } else { 0 });
        }
    };
    run(cli)
}

fn run(cli: cli::Cli) -> ExitCode {
    ui::set_verbosity(cli.globals.verbosity());
    match cli::dispatch(cli) {
        Ok(code) => code,
        Err(error) => failed(&error),
    }
}

/// The command line; what is no UTF-8 is refused by its flag later, with its place.
fn arguments() -> Vec<String> {
    std::env::args_os()
        .map(|word| word.to_string_lossy().into_owned())
        .collect()
}

fn failed(error: &anyhow::Error) -> ExitCode {
    let (kind, hints) = failure::classify(error);
    ui::error(&chain(error));
    for hint in hints {
        ui::hint(&hint);
    }
    ExitCode::from(kind.code())
}

/// The whole chain on one line: what failed, then why.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if cause.is_empty() || text.ends_with(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    text
}
