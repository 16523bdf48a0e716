//! `appliance app exec`: a command in a container, joined to this terminal.

use std::collections::BTreeMap;

use appliance_push::change::{EnvName, Exec, RoleName, Tag, Verb};
use appliance_push::session::Frame;

use crate::developer::link::Link;
use crate::developer::session::{self, Input, Lines};
use crate::developer::targets::{AppArgs, Target, Targets};
use crate::developer::terminal::Raw;
use crate::failure::{Kind, failure};
use crate::globals::Globals;
use crate::ui;
use crate::wire::End;

/// Run a command in a container of the app
#[derive(Debug, clap::Args)]
pub struct ExecArgs {
    #[command(flatten)]
    args: AppArgs,
    /// Join this terminal to it (on the primary host)
    #[arg(short, long)]
    interactive: bool,
    /// In the running container instead of a new one
    #[arg(long)]
    reuse: bool,
    /// Set an environment variable: NAME:VALUE or NAME=VALUE
    #[arg(short, long, value_name = "NAME:VALUE", num_args = 1..)]
    env: Vec<String>,
    /// Leave it running in a container of its own and return
    #[arg(long, conflicts_with_all = ["interactive", "reuse"])]
    detach: bool,
    /// Its output byte for byte, without prefixes
    #[arg(long, conflicts_with_all = ["interactive", "detach"])]
    raw: bool,
    /// The command; one word with spaces is split by the rules of a shell
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    command: Vec<String>,
}

/// Runs it; the exit code is the command's, the first that is not 0 of several.
///
/// # Errors
/// When a host cannot be reached, refuses, or the session breaks.
pub async fn run(args: &ExecArgs, globals: &Globals) -> anyhow::Result<u8> {
    let command = words(&args.command)?;
    let env = environment(&args.env)?;
    let version = globals
        .version
        .as_deref()
        .map(Tag::parse)
        .transpose()
        .map_err(|error| failure(Kind::Config, format!("--version: {error}")))?;
    let targets = Targets::find(&args.args, globals).await?;
    let mut places: Vec<(&Target, &str)> = targets
        .hosts
        .iter()
        .flat_map(|host| host.roles.iter().map(move |role| (host, role.as_str())))
        .collect();
    if args.interactive {
        places.truncate(1);
    }
    if places.is_empty() {
        return Err(failure(
            Kind::Config,
            format!("{} does not run on these hosts", targets.app),
        )
        .hint("appliance deploy")
        .into());
    }
    let terminal = args.interactive && Raw::possible();
    let input = match (args.interactive, terminal) {
        (false, _) => Input::None,
        (true, false) => Input::Pipe,
        (true, true) => Input::Terminal,
    };
    let alone = places.len() == 1;
    let mut sessions = Vec::new();
    for (host, role) in &places {
        let verb = Verb::AppExec(Exec {
            role: RoleName::parse(role)?,
            command: command.clone(),
            reuse: args.reuse,
            terminal,
            detach: args.detach,
            env: env.clone(),
            version: version.clone(),
        });
        match targets.change(host, verb).await? {
            End::Session { session, .. } => {
                let one_role = host.roles.len() == 1;
                let prefix = if alone || args.raw {
                    String::new()
                } else if one_role {
                    format!("{} | ", host.name)
                } else {
                    format!("{} {role} | ", host.name)
                };
                sessions.push((&host.link, session, prefix));
            }
            End::Done { message, .. } => ui::line(&format!("{}: {message}", host.name)),
            other => anyhow::bail!("{} answers a command with {other:?}", host.name),
        }
    }
    join(sessions, input).await
}

/// Joins sessions of one or several hosts to this process until all have ended.
///
/// # Errors
/// The first session that breaks.
pub async fn join(sessions: Vec<(&Link, String, String)>, input: Input) -> anyhow::Result<u8> {
    let all = sessions.into_iter().map(|(link, session, prefix)| async move {
        let (mut out, mut err) = (Lines::default(), Lines::default());
        let code = session::run(link, &session, input, |frame| {
            // Printing here, on the way, is what makes a program wait for a slow terminal.
            match frame {
                Frame::Output(bytes) if prefix.is_empty() => ui::raw(&bytes),
                Frame::Error(bytes) if prefix.is_empty() => ui::raw_error(&bytes),
                Frame::Output(bytes) => ui::raw(&out.take(&prefix, &bytes)),
                Frame::Error(bytes) => ui::raw_error(&err.take(&prefix, &bytes)),
                _ => {}
            }
            Ok(())
        })
        .await;
        ui::raw(&out.finish(&prefix));
        ui::raw_error(&err.finish(&prefix));
        code
    });
    let mut first = 0;
    for code in futures_util::future::join_all(all).await {
        let code = code?;
        if first == 0 {
            first = u8::try_from(code & 0xff).unwrap_or(1);
        }
    }
    Ok(first)
}

/// `app exec "bin/rails about"` and `app exec bin/rails about` are the same, as in Kamal; no shell is involved.
///
/// # Errors
/// When its quotes do not match.
pub fn words(given: &[String]) -> anyhow::Result<Vec<String>> {
    let [only] = given else {
        return Ok(given.to_vec());
    };
    shlex::split(only)
        .filter(|words| !words.is_empty())
        .ok_or_else(|| failure(Kind::Config, format!("the quotes in {only:?} do not match")).into())
}

fn environment(given: &[String]) -> anyhow::Result<BTreeMap<EnvName, String>> {
    let mut env = BTreeMap::new();
    for pair in given {
        let Some((name, value)) = pair.split_once([':', '=']) else {
            return Err(failure(Kind::Config, format!("--env {pair}: write NAME:VALUE")).into());
        };
        let name =
            EnvName::parse(name).map_err(|error| failure(Kind::Config, format!("--env {pair}: {error}")))?;
        env.insert(name, value.to_owned());
    }
    Ok(env)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(given: &[&str]) -> Option<Vec<String>> {
        words(&given.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()).ok()
    }

    #[test]
    fn one_word_is_split_and_several_are_taken_as_they_are() {
        assert_eq!(
            split(&["bin/rails about"]),
            Some(vec!["bin/rails".into(), "about".into()])
        );
        assert_eq!(
            split(&["sh -c 'echo a b'"]),
            Some(vec!["sh".into(), "-c".into(), "echo a b".into()])
        );
        assert_eq!(split(&["echo", "a b"]), Some(vec!["echo".into(), "a b".into()]));
        assert_eq!(split(&["sh -c 'unfinished"]), None);
        assert_eq!(split(&[""]), None);
    }

    #[test]
    fn environment_takes_kamals_colon_and_the_usual_equals_sign() {
        let env = environment(&["A:1".into(), "URL=http://x:1/".into()]).expect("good");
        let pairs: Vec<_> = env
            .iter()
            .map(|(name, value)| (name.to_string(), value.as_str()))
            .collect();
        assert_eq!(pairs, [("A".to_owned(), "1"), ("URL".to_owned(), "http://x:1/")]);
        assert!(environment(&["A".into()]).is_err());
    }
}
