//! `appliance keys`: which keys a host obeys, and what each may do.

use anyhow::Context as _;
use appliance_push::change::{Expectation, Fingerprint, Verb};
use appliance_push::trust::{AppPattern, Permission};

use crate::commands::status::links;
use crate::developer::change::{Subject, conclude, submit};
use crate::developer::reach::{ReachArgs, SshSettings};
use crate::failure::{Kind, failure};
use crate::globals::Globals;
use crate::ui;
use crate::wire::{self, End};

/// The keys a host obeys
#[derive(Debug, clap::Subcommand)]
pub enum KeysCommand {
    /// List the keys and what each may do
    List {
        #[command(flatten)]
        reach: ReachArgs,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Enroll a key, or change what a known one may do
    Add {
        #[command(flatten)]
        reach: ReachArgs,
        /// Public key: its file, or its line
        #[arg(value_name = "FILE")]
        file: String,
        /// Everything, keys included
        #[arg(long, conflicts_with_all = ["deploy", "operate", "read"])]
        admin: bool,
        /// Push and roll back these apps: name, name@destination, or *
        #[arg(long, value_delimiter = ',', value_name = "APPS")]
        deploy: Vec<AppPattern>,
        /// Stop, start and look into these apps
        #[arg(long, value_delimiter = ',', value_name = "APPS")]
        operate: Vec<AppPattern>,
        /// See the state of these apps
        #[arg(long, value_delimiter = ',', value_name = "APPS")]
        read: Vec<AppPattern>,
    },
    /// Forget a key
    Remove {
        #[command(flatten)]
        reach: ReachArgs,
        /// Its fingerprint, SHA256:…
        fingerprint: Fingerprint,
    },
}

/// Carries it out on every host of the configuration, those of `--on`, or this host.
///
/// # Errors
/// When a host cannot be reached or refuses, or the key file is not usable.
pub async fn run(command: &KeysCommand, globals: &Globals) -> anyhow::Result<()> {
    match command {
        KeysCommand::List { reach, json } => {
            for link in links(reach, globals).await? {
                let keys: Vec<wire::Key> = link.get("/v1/keys").await?;
                if *json {
                    ui::json(&keys);
                    continue;
                }
                for key in keys {
                    ui::line(&format!(
                        "{}  {}  {}",
                        key.fingerprint,
                        key.permissions.join("; "),
                        key.comment
                    ));
                }
            }
            Ok(())
        }
        KeysCommand::Add {
            reach,
            file,
            admin,
            deploy,
            operate,
            read,
        } => {
            let key = match is_line(file) {
                true => file.trim().to_owned(),
                false => fs_err::read_to_string(file)?.trim().to_owned(),
            };
            let mut permissions = Vec::new();
            if *admin {
                permissions.push(Permission::Admin);
            }
            for (apps, make) in [
                (
                    deploy,
                    (|apps| Permission::Deploy { apps }) as fn(Vec<AppPattern>) -> Permission,
                ),
                (operate, |apps| Permission::Operate { apps }),
                (read, |apps| Permission::Read { apps }),
            ] {
                if !apps.is_empty() {
                    permissions.push(make(apps.clone()));
                }
            }
            if permissions.is_empty() {
                return Err(failure(Kind::Config, "the key would be allowed nothing")
                    .hint(format!("appliance keys add {} --deploy my-app", quoted(file)))
                    .into());
            }
            let verb = Verb::KeyAdd {
                key,
                permissions,
                comment: String::new(),
            };
            change(reach, globals, verb).await
        }
        KeysCommand::Remove { reach, fingerprint } => {
            let verb = Verb::KeyRemove {
                fingerprint: fingerprint.clone(),
            };
            change(reach, globals, verb).await
        }
    }
}

/// Whether this is a key itself: a type and its data, as in a `.pub` file.
fn is_line(text: &str) -> bool {
    let known = ["ssh-", "ecdsa-", "sk-"];
    text.trim().contains(' ') && known.iter().any(|start| text.trim_start().starts_with(start))
}

/// As one word of a shell.
fn quoted(text: &str) -> String {
    match text.contains(char::is_whitespace) {
        true => format!("'{}'", text.replace('\'', "'\\''")),
        false => text.to_owned(),
    }
}

async fn change(reach: &ReachArgs, globals: &Globals, verb: Verb) -> anyhow::Result<()> {
    for link in links(reach, globals).await? {
        let info: wire::Host = link.get("/v1/host").await.context("the host's identity")?;
        let signer = reach.signer(&link, &SshSettings::default()).await?;
        let subject = Subject {
            host: info.id,
            app: None,
            destination: None,
            expects: Expectation::Any,
        };
        let end = submit(&link, &signer, subject, verb.clone()).await?;
        if let End::Done { message, .. } = conclude(&link, end)? {
            ui::note(&format!("{}: {message}", link.name()));
        }
    }
    Ok(())
}
