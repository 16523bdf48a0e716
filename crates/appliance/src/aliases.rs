//! Aliases of the configuration (`aliases:`), with Kamal's rules.
//!
//! An alias stands where a command would: its value is split like a shell line, and what follows on the command line is added.
//! It may bring its own `-c` and `-d`, and never hides a command of ours.

use clap::CommandFactory as _;

use crate::cli::Cli;
use crate::developer::project::Project;
use crate::failure::{Kind, failure};
use crate::globals::Globals;

/// The command line with an alias in it replaced; as it is where there is none.
///
/// # Errors
/// When the alias cannot be split, or the configuration that may name it is wrong.
pub fn expand(arguments: Vec<String>) -> anyhow::Result<Vec<String>> {
    let Some(place) = command_at(&arguments) else {
        return Ok(arguments);
    };
    let word = &arguments[place];
    if known(word) {
        return Ok(arguments);
    }
    let globals = globals(&arguments[1..place]);
    let file = globals.directory()?.join(&globals.config_file);
    if !file.exists() {
        return Ok(arguments);
    }
    let project = Project::open(&globals)?;
    let Some(value) = project.loaded.config.aliases.get(word) else {
        return Ok(arguments);
    };
    splice(&arguments, place, &value.to_string())
}

fn splice(arguments: &[String], place: usize, value: &str) -> anyhow::Result<Vec<String>> {
    let words = shlex::split(value).ok_or_else(|| {
        failure(
            Kind::Config,
            format!(
                "aliases/{}: the quotes in {value:?} do not match",
                arguments[place]
            ),
        )
    })?;
    Ok([&arguments[..place], &words, &arguments[place + 1..]].concat())
}

/// Where the command's name is: the first word that is neither a flag nor a flag's value.
fn command_at(arguments: &[String]) -> Option<usize> {
    let mut place = 1;
    while let Some(word) = arguments.get(place) {
        if word == "--" {
            return None;
        }
        if !word.starts_with('-') || word == "-" {
            return Some(place);
        }
        place += if takes_value(word) { 2 } else { 1 };
    }
    None
}

/// Whether a global flag's value is the next word.
fn takes_value(flag: &str) -> bool {
    let command = Cli::command();
    let found = command
        .get_arguments()
        .find(|argument| match flag.strip_prefix("--") {
            Some(long) => argument.get_long() == Some(long),
            // `-dstaging` has its value in it.
            None => flag.len() == 2 && argument.get_short() == flag.chars().nth(1),
        });
    found.is_some_and(|argument| argument.get_action().takes_values())
}

fn known(word: &str) -> bool {
    word == "help"
        || Cli::command()
            .get_subcommands()
            .any(|command| command.get_name() == word || command.get_all_aliases().any(|alias| alias == word))
}

/// The flags before the command; they say which configuration names the alias.
fn globals(flags: &[String]) -> Globals {
    use clap::FromArgMatches as _;
    let command = clap::Command::new("appliance")
        .no_binary_name(true)
        .disable_help_flag(true)
        .disable_version_flag(true);
    let command = <Globals as clap::Args>::augment_args(command);
    let matches = command.try_get_matches_from(flags);
    matches
        .ok()
        .and_then(|matches| Globals::from_arg_matches(&matches).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        shlex::split(line).expect("words")
    }

    #[test]
    fn the_command_is_found_behind_flags_and_their_values() {
        for (line, place) in [
            ("appliance console", Some(1)),
            ("appliance -d staging console", Some(3)),
            ("appliance -dstaging console", Some(2)),
            ("appliance --destination=staging -v console", Some(3)),
            ("appliance -p -h web1,web2 console --reuse", Some(4)),
            ("appliance --verbose", None),
            ("appliance", None),
        ] {
            assert_eq!(command_at(&words(line)), place, "{line}");
        }
    }

    #[test]
    fn what_follows_an_alias_is_added_and_its_quotes_are_kept() {
        let given = words("appliance -d staging console --raw");
        let value = "app exec -i --reuse 'bin/rails console'";
        let expanded = splice(&given, 3, value).expect("split");
        assert_eq!(
            expanded,
            words("appliance -d staging app exec -i --reuse 'bin/rails console' --raw")
        );
        assert!(splice(&given, 3, "app exec 'x").is_err());
    }

    #[test]
    fn our_own_commands_are_never_aliases() {
        for word in ["app", "deploy", "push", "help", "redeploy"] {
            assert!(known(word), "{word}");
        }
        assert!(!known("console"));
    }

    #[test]
    fn an_alias_may_be_named_under_a_destination() {
        let globals = globals(&words("-d staging -c other.yml"));
        assert_eq!(globals.destination.as_deref(), Some("staging"));
        assert_eq!(globals.config_file, std::path::Path::new("other.yml"));
    }
}
