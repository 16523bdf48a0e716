//! `appliance host` from elsewhere: the same command on the host, as a signed change of an administrator's.
//!
//! What the command does there is what it would do for somebody who typed it there; the record holds its words.
//! What it arms (firewall, sshd) is confirmed over a new connection, as `appliance firewall allow` does.

use anyhow::Context as _;
use appliance_push::change::{Expectation, Verb};

use super::exec::join;
use super::firewall;
use super::status::links;
use crate::developer::change::{Subject, conclude, submit};
use crate::developer::link::Link;
use crate::developer::reach::{ReachArgs, SshSettings};
use crate::developer::session::Input;
use crate::globals::Globals;
use crate::{ui, wire};

/// Where bootstrap puts the program.
const PROGRAM: &str = "/usr/local/bin/appliance";

/// Whether other hosts are meant than the machine we run on.
///
/// # Errors
/// When the working directory cannot be told.
pub fn is_meant(reach: &ReachArgs, globals: &Globals) -> anyhow::Result<bool> {
    let configured = globals.directory()?.join(&globals.config_file).exists();
    // A server that is no appliance yet has neither an agent nor a configuration of an app.
    Ok(!reach.on.is_empty() || (configured && !reach.is_local()))
}

/// Runs `appliance host WORDS` on each host in turn; the first exit code that is not 0.
///
/// # Errors
/// When a host cannot be reached or refuses.
pub async fn run(
    words: &[String],
    reach: &ReachArgs,
    globals: &Globals,
    confirm: bool,
) -> anyhow::Result<u8> {
    let links = links(reach, globals).await?;
    let several = links.len() > 1;
    let json = words.iter().any(|word| word == "--json");
    let mut first = 0;
    for link in &links {
        let prefix = if several && !json {
            format!("{} | ", link.name())
        } else {
            String::new()
        };
        let code = on(link, words, reach, prefix).await?;
        if first == 0 {
            first = code;
        }
        if confirm && code == 0 {
            settle(link, reach).await?;
        }
    }
    Ok(first)
}

async fn on(link: &Link, words: &[String], reach: &ReachArgs, prefix: String) -> anyhow::Result<u8> {
    let info: wire::Host = link.get("/v1/host").await?;
    let signer = reach.signer(link, &SshSettings::default()).await?;
    let subject = Subject {
        host: info.id,
        app: None,
        destination: None,
        expects: Expectation::Any,
    };
    let command = [PROGRAM.to_owned(), "host".to_owned()]
        .into_iter()
        .chain(words.iter().cloned());
    let verb = Verb::HostExec {
        command: command.collect(),
    };
    let end = conclude(link, submit(link, &signer, subject, verb).await?)?;
    let wire::End::Session { session, .. } = end else {
        anyhow::bail!("{} answers a command with {end:?}", link.name());
    };
    join(vec![(link, session, prefix)], Input::None).await
}

/// Confirms what waits for it, over a connection that began after it.
async fn settle(link: &Link, reach: &ReachArgs) -> anyhow::Result<()> {
    let again = anew(link).await?;
    firewall::confirm_pending(&again, reach).await?;
    match on(&again, &["confirm".to_owned()], reach, String::new()).await? {
        0 => Ok(()),
        code => {
            ui::warn(&format!(
                "{}: appliance host confirm ended with {code}",
                again.name()
            ));
            Ok(())
        }
    }
}

/// A new connection, by the port of the one that is open or, where sshd has moved, by the port it moved to.
async fn anew(link: &Link) -> anyhow::Result<Link> {
    let refused = match link.again().await {
        Ok(again) => return Ok(again),
        Err(error) => error,
    };
    let shown: wire::Firewall = link.get("/v1/firewall").await?;
    for port in shown.rules.iter().flat_map(|rules| &rules.ssh_ports) {
        if let Ok(Some(again)) = link.again_at(*port).await {
            ui::warn(&format!(
                "sshd listens on port {port} now: `ssh: {{port: {port}}}` in config/deploy.yml, and Port in ~/.ssh/config"
            ));
            return Ok(again);
        }
    }
    Err(refused).context("a new connection is not let in; what was armed goes back by itself")
}
