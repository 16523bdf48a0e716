//! `appliance adopt`: take a server over from stock Kamal, or give it back.

use anyhow::Context as _;
use appliance_push::change::{AdoptAction, Digest, Expectation, Verb};

use crate::commands::{accessory, status::links};
use crate::developer::change::{Subject, conclude, submit};
use crate::developer::link::Link;
use crate::developer::reach::{ReachArgs, SshSettings};
use crate::failure::{Kind, failure};
use crate::globals::Globals;
use crate::ui;
use crate::wire::{self, Adoption, End};

/// Take a server over from stock Kamal: its containers, kamal-proxy's routes and certificates, without downtime
///
/// The plan is shown first; `--dry-run` leaves it at that.
/// Containers stay as they are and become the current release, which the next push replaces and a rollback returns to.
/// kamal-proxy is stopped, once its visitors are done, and kept: `--undo` starts it again.
#[derive(Debug, clap::Args)]
pub struct AdoptArgs {
    #[command(flatten)]
    reach: ReachArgs,
    /// Show what would be taken over, and change nothing
    #[arg(long, conflicts_with = "undo")]
    dry_run: bool,
    /// Give everything back to kamal-proxy
    #[arg(long)]
    undo: bool,
    /// How long connections that are open in kamal-proxy may go on
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(..=3600))]
    drain: u32,
    /// As JSON, with --dry-run
    #[arg(long, requires = "dry_run")]
    json: bool,
}

/// Adopts every host of the configuration, those of `--on`, or this host, one after the other.
///
/// # Errors
/// When a host cannot be reached, has nothing that can be adopted, or the change fails; it then serves as before.
pub async fn run(args: &AdoptArgs, globals: &Globals) -> anyhow::Result<()> {
    for link in links(&args.reach, globals).await? {
        let plan: Adoption = link.get("/v1/adoption").await?;
        if args.undo {
            change(args, &link, AdoptAction::Undo).await?;
            continue;
        }
        if args.json {
            ui::json(&plan);
        } else {
            show(&link.name(), &plan);
        }
        if args.dry_run {
            continue;
        }
        if let Some(why) = plan.refusals.first() {
            return Err(failure(Kind::Refused, format!("{}: {why}", link.name()))
                .hint("appliance adopt --dry-run")
                .into());
        }
        let digest = Digest::parse(&plan.digest).context("the plan's digest")?;
        let take = AdoptAction::Take {
            plan: digest,
            drain: args.drain,
        };
        change(args, &link, take).await?;
    }
    if args.dry_run || args.undo {
        return Ok(());
    }
    // Accessories are looked after as the configuration says; what runs already is taken as it is.
    if globals.directory()?.join(&globals.config_file).exists() {
        accessory::boot_all(&args.reach, globals).await?;
    }
    Ok(())
}

async fn change(args: &AdoptArgs, link: &Link, action: AdoptAction) -> anyhow::Result<()> {
    let info: wire::Host = link.get("/v1/host").await.context("the host's identity")?;
    let signer = args.reach.signer(link, &SshSettings::default()).await?;
    let subject = Subject {
        host: info.id,
        app: None,
        destination: None,
        expects: Expectation::Any,
    };
    let end = submit(link, &signer, subject, Verb::Adopt(action)).await?;
    if let End::Done { message, .. } = conclude(link, end)? {
        ui::note(&format!("{}: {message}", link.name()));
    }
    Ok(())
}

fn show(name: &str, plan: &Adoption) {
    ui::line(&format!(
        "{name}: {}",
        plan.proxy.as_deref().unwrap_or("no kamal-proxy")
    ));
    for app in &plan.apps {
        let stopped = if app.stopped {
            ", stopped for maintenance"
        } else {
            ""
        };
        ui::line(&format!(
            "  app {} {} ({}){stopped}",
            app.app, app.version, app.image
        ));
        for role in &app.roles {
            let route = role.route.as_deref().unwrap_or("no visitors");
            ui::line(&format!(
                "    {}: container {}, {route}",
                role.role, role.container
            ));
        }
    }
    for accessory in &plan.accessories {
        let route = accessory.route.as_deref().unwrap_or_default();
        ui::line(&format!("  accessory {}: {route}", accessory.role));
    }
    for (host, authority) in &plan.certificates {
        ui::line(&format!("  certificate of {host}, from {authority}"));
    }
    for note in &plan.notes {
        ui::line(&format!("  note: {note}"));
    }
    for why in &plan.refusals {
        ui::line(&format!("  cannot be adopted: {why}"));
    }
    if plan.refusals.is_empty() {
        ui::line(
            "  kamal-proxy is stopped when its visitors are done, and kept; back: appliance adopt --undo",
        );
    }
}
