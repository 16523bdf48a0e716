//! `appliance certificates`: what a host had from a certificate authority, and until when.

use appliance_push::change::{Expectation, Verb};

use crate::commands::status::links;
use crate::developer::change::{Subject, conclude, submit};
use crate::developer::reach::{ReachArgs, SshSettings};
use crate::globals::Globals;
use crate::ui;
use crate::wire::{self, End};

/// The certificates of a host
#[derive(Debug, clap::Subcommand)]
pub enum CertificatesCommand {
    /// List the certificates, when each ends and is renewed, and why a renewal failed
    List {
        #[command(flatten)]
        reach: ReachArgs,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Have a new certificate now; the former one is shown until it is there
    Renew {
        #[command(flatten)]
        reach: ReachArgs,
        /// Host name, such as shop.example.com
        name: String,
    },
    /// Revoke a certificate; a host name that is served gets a new one with a new key first
    Revoke {
        #[command(flatten)]
        reach: ReachArgs,
        /// Host name, such as shop.example.com
        name: String,
        /// Its key may be known to others
        #[arg(long)]
        compromised: bool,
    },
}

/// Carries it out on every host of the configuration, those of `--on`, or this host.
///
/// # Errors
/// When a host cannot be reached or refuses.
pub async fn run(command: &CertificatesCommand, globals: &Globals) -> anyhow::Result<()> {
    match command {
        CertificatesCommand::List { reach, json } => {
            for link in links(reach, globals).await? {
                let found: Vec<wire::Certificate> = link.get("/v1/certificates").await?;
                if *json {
                    ui::json(&found);
                    continue;
                }
                if found.is_empty() {
                    ui::note(&format!(
                        "{}: no certificate of a certificate authority",
                        link.name()
                    ));
                }
                for certificate in &found {
                    ui::line(&describe(certificate));
                }
            }
            Ok(())
        }
        CertificatesCommand::Renew { reach, name } => {
            change(reach, globals, &Verb::CertificateRenew { name: name.clone() }).await
        }
        CertificatesCommand::Revoke {
            reach,
            name,
            compromised,
        } => {
            let verb = Verb::CertificateRevoke {
                name: name.clone(),
                compromised: *compromised,
            };
            change(reach, globals, &verb).await
        }
    }
}

fn describe(certificate: &wire::Certificate) -> String {
    let mut text = match (certificate.not_after, certificate.renewal) {
        (Some(end), Some(renewal)) => format!(
            "{}  until {}  renewed {}",
            certificate.name,
            end.strftime("%Y-%m-%d %H:%M"),
            renewal.strftime("%Y-%m-%d")
        ),
        _ => format!("{}  none yet", certificate.name),
    };
    match &certificate.service {
        Some(service) => text.push_str(&format!("  {service}")),
        None if certificate.on_demand => text.push_str("  on demand"),
        None => text.push_str("  not in use, not renewed"),
    }
    if let Some(why) = &certificate.failure {
        text.push_str(&format!("\n    the last order failed: {why}"));
    }
    text
}

async fn change(reach: &ReachArgs, globals: &Globals, verb: &Verb) -> anyhow::Result<()> {
    for link in links(reach, globals).await? {
        let info: wire::Host = link.get("/v1/host").await?;
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
