//! The command lines of a host's processes, read without the rest of the command tree.
//!
//! To build the whole tree touches memory that a process which runs for months would keep (for the proxy a third of all
//! it has at its start), and `receive` starts once for every connection.

use clap::{Parser, Subcommand};

use super::{Cli, Command};
use crate::commands::proxy::{ProxyArgs, ServeArgs};
use crate::globals::Globals;
use crate::{agent, receive};

#[derive(Debug, Parser)]
#[command(name = "appliance", disable_help_flag = true, disable_version_flag = true)]
struct Service {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    face: Face,
}

#[derive(Debug, Subcommand)]
enum Face {
    Agent(agent::AgentArgs),
    Proxy(ServeArgs),
    Receive(receive::ReceiveArgs),
}

/// Reads the command line of a process of a host; `None` for every other one, and for one that is wrong: the whole tree
/// says then what is.
pub fn parse(arguments: &[String]) -> Option<Cli> {
    let name = arguments.get(1)?.as_str();
    if !matches!(name, "agent" | "proxy" | "receive") {
        return None;
    }
    let service = Service::try_parse_from(arguments).ok()?;
    let command = match service.face {
        Face::Agent(args) => Command::Agent(args),
        Face::Proxy(serve) => Command::Proxy(ProxyArgs { serve, verb: None }),
        Face::Receive(args) => Command::Receive(args),
    };
    let mut cli = Cli {
        globals: service.globals,
        help: None,
        command,
    };
    cli.globals.join_braces();
    cli.globals.command = name.to_owned();
    Some(cli)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        std::iter::once("appliance")
            .chain(line.split_whitespace())
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn a_process_is_told_the_same_as_by_the_whole_tree() {
        for line in [
            "agent",
            "agent -v",
            "proxy",
            "proxy --http 127.0.0.1:80 --https [::]:443 --workers 2 --snapshot snapshot.json",
            "proxy --metrics 127.0.0.1:9000 --drain 5 -d staging --hosts web{1,2}",
            "receive",
        ] {
            let own = parse(&words(line)).unwrap_or_else(|| panic!("{line} is a process"));
            let whole = super::super::parse(words(line)).expect(line);
            assert_eq!(format!("{own:?}"), format!("{whole:?}"), "{line}");
        }
    }

    #[test]
    fn everything_else_is_left_to_the_whole_tree() {
        for line in [
            "",
            "status",
            "proxy restart",
            "proxy --help",
            "proxy help",
            "proxy --workers 0",
            "agent --nonsense",
            "-v proxy",
        ] {
            assert!(parse(&words(line)).is_none(), "{line}");
        }
    }
}
