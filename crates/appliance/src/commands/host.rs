//! `appliance firewall`.

use anyhow::Context as _;
use appliance_bootstrap::{Local, firewall};

use crate::failure::{Kind, failure};
use crate::ui;

/// Look after this host's firewall
#[derive(Debug, clap::Subcommand)]
pub enum FirewallCommand {
    /// Load the confirmed rules into the kernel (what the boot unit runs)
    Load,
    /// Show whether the kernel holds the confirmed rules
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs a firewall command.
///
/// # Errors
/// When there are no confirmed rules or the kernel does not take them.
pub fn run(command: &FirewallCommand) -> anyhow::Result<()> {
    match command {
        FirewallCommand::Load => {
            let loaded = firewall::load(&Local)?;
            ui::note(&format!(
                "table inet appliance loaded; outside: {}",
                loaded.outside.join(", ")
            ));
            Ok(())
        }
        FirewallCommand::Status { json } => {
            let state = firewall::state(&Local).context("cannot look at the firewall")?;
            if *json {
                ui::json(&serde_json::json!({ "state": state }));
                return Ok(());
            }
            match state {
                firewall::State::Confirmed => {
                    ui::line("the kernel holds the confirmed rules");
                    Ok(())
                }
                firewall::State::Differs => Err(failure(
                    Kind::Other,
                    "the kernel's rules are not the confirmed ones",
                )
                .hint("appliance firewall load")
                .into()),
                firewall::State::Absent => Err(failure(
                    Kind::Other,
                    "the firewall is not loaded: every published port is open",
                )
                .hint("appliance firewall load")
                .into()),
            }
        }
    }
}
