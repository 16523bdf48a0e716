//! `appliance alerts`: what is wrong, who is told, and whether messages arrive.

use appliance_push::change::{Expectation, Verb};

use crate::commands::status::links;
use crate::developer::change::{Subject, conclude, submit};
use crate::developer::reach::{ReachArgs, SshSettings};
use crate::globals::Globals;
use crate::ui;
use crate::wire::{self, End};

/// Alerts of a host
#[derive(Debug, clap::Subcommand)]
pub enum AlertsCommand {
    /// Show what is wrong, who is told, and which messages have not arrived
    List {
        #[command(flatten)]
        reach: ReachArgs,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Send a test message to everybody who is told, and see whether it is taken
    Test {
        #[command(flatten)]
        reach: ReachArgs,
    },
}

/// Carries it out on every host of the configuration, those of `--on`, or this host.
///
/// # Errors
/// When a host cannot be reached, refuses, or a message does not arrive.
pub async fn run(command: &AlertsCommand, globals: &Globals) -> anyhow::Result<()> {
    match command {
        AlertsCommand::List { reach, json } => {
            for link in links(reach, globals).await? {
                let alerts: wire::Alerts = link.get("/v1/alerts").await?;
                if *json {
                    ui::json(&alerts);
                } else {
                    show(&link.name(), &alerts);
                }
            }
            Ok(())
        }
        AlertsCommand::Test { reach } => {
            for link in links(reach, globals).await? {
                let info: wire::Host = link.get("/v1/host").await?;
                let signer = reach.signer(&link, &SshSettings::default()).await?;
                let subject = Subject {
                    host: info.id,
                    app: None,
                    destination: None,
                    expects: Expectation::Any,
                };
                let end = submit(&link, &signer, subject, Verb::AlertsTest).await?;
                if let End::Done { message, .. } = conclude(&link, end)? {
                    ui::note(&format!("{}: {message}", link.name()));
                }
            }
            Ok(())
        }
    }
}

fn show(name: &str, alerts: &wire::Alerts) {
    if alerts.standing.is_empty() {
        ui::line(&format!("{name}: nothing is wrong"));
    }
    for standing in &alerts.standing {
        let finding = &standing.finding;
        let told = match (standing.told, standing.gone) {
            (_, Some(_)) => ", just over",
            (None, None) => ", not told yet",
            (Some(_), None) => "",
        };
        ui::line(&format!(
            "{name}: {} {} since {}{told}",
            finding.kind, finding.subject, standing.since
        ));
        ui::line(&format!("    {}", finding.message));
        ui::line(&format!("    next: {}", finding.next));
    }
    for destination in &alerts.destinations {
        ui::line(&format!("  told     {destination}"));
    }
    if alerts.destinations.is_empty() {
        ui::line("  told     nobody; next: alerts: in /etc/appliance/host.yml");
    }
    for waiting in &alerts.waiting {
        ui::line(&format!(
            "  waiting  {} to {}, {} failures{}",
            waiting.notice.title(),
            waiting.to,
            waiting.failures,
            waiting
                .why
                .as_ref()
                .map(|why| format!(": {why}"))
                .unwrap_or_default()
        ));
    }
    for problem in &alerts.problems {
        ui::line(&format!("  problem  {problem}"));
    }
}
