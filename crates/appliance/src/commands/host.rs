//! `appliance host`: what this host should be, what it is, and why.

use std::process::ExitCode;

use appliance_bootstrap::firewall;
use appliance_bootstrap::host::Host as _;
use appliance_bootstrap::item::{Item, Level};
use appliance_bootstrap::sshd::pending::PendingError;
use appliance_bootstrap::{Local, gate, observe, plan, rollback, sshd};

use crate::cli::block_on;
use crate::commands::bootstrap::{self, BootstrapArgs};
use crate::commands::host_remote;
use crate::commands::host_update::{self, UpdateArgs};
use crate::developer::reach::ReachArgs;
use crate::failure::{Kind, failure};
use crate::globals::Globals;
use crate::ui;

/// What this host should be, what it is, and why
#[derive(Debug, clap::Subcommand)]
pub enum HostCommand {
    /// Show what `apply` would change, and touch nothing
    Plan(HostArgs),
    /// Make the host what host.yml says; a second run changes nothing
    ///
    /// From elsewhere, what has to be confirmed is confirmed over a new connection by itself.
    Apply(HostArgs),
    /// Check every item; exit code 1 if one is not as it should be
    Audit(HostArgs),
    /// Say what an item is, why it is there, and how to undo it
    Explain {
        /// Its id or a name of the hardening list, such as `ssh` or `S19`
        item: String,
        #[command(flatten)]
        args: HostArgs,
    },
    /// Undo an item, as far as that is safe to do without asking
    Rollback {
        /// Its id
        item: String,
        #[command(flatten)]
        args: HostArgs,
    },
    /// Bring packages and the Docker Engine up to date, after showing what would change
    ///
    /// Docker is replaced with the containers running; what speaks against that is found before anything is touched.
    Update(UpdateArgs),
    /// Keep a change of sshd's settings, over a connection made after it
    Confirm(ReachArgs),
    /// Put sshd's former settings back (what the revert timer runs)
    #[command(hide = true)]
    RevertSsh {
        /// sshd has not started yet
        #[arg(long)]
        at_boot: bool,
    },
}

/// Which host, and what it should be.
#[derive(Debug, clap::Args)]
pub struct HostArgs {
    #[command(flatten)]
    what: BootstrapArgs,
    #[command(flatten)]
    reach: ReachArgs,
}

/// Runs a host command.
///
/// # Errors
/// A bad `host.yml`, an unsupported system, an item that is not there; from elsewhere also a host that refuses.
pub fn run(command: &HostCommand, globals: &Globals) -> anyhow::Result<ExitCode> {
    if let Some((words, reach)) = elsewhere(command, globals)? {
        // Undoing `ssh` has to be confirmed as doing it has.
        let confirm = matches!(command, HostCommand::Apply(_) | HostCommand::Rollback { .. });
        return block_on(host_remote::run(&words, reach, globals, confirm)).map(ExitCode::from);
    }
    match command {
        HostCommand::Plan(args) => bootstrap::run(&args.what.dry()),
        HostCommand::Apply(args) => bootstrap::run(&args.what),
        HostCommand::Audit(args) => audit(&args.what),
        HostCommand::Explain { item, args } => explain(item, &args.what),
        HostCommand::Rollback { item, args } => roll_back(item, &args.what),
        HostCommand::Update(args) => host_update::run(args),
        HostCommand::Confirm(_) => {
            let kept = sshd::pending::confirm(&Local).map_err(|error| match error {
                PendingError::NoNewConnection => failure(Kind::Other, error.to_string())
                    .hint("open a new SSH connection, and while it is open: appliance host confirm")
                    .into(),
                other => anyhow::Error::from(other),
            })?;
            ui::note(if kept {
                "sshd's settings stay"
            } else {
                "nothing waits for a confirmation"
            });
            match firewall::moved::close_former_ports(&Local, Local.now()) {
                Ok(ports) => ports
                    .iter()
                    .for_each(|port| ui::note(&format!("port {port}, where sshd was, is closed"))),
                Err(error) => ui::warn(&format!("the firewall: {}", crate::agent::chain(&error))),
            }
            Ok(ExitCode::SUCCESS)
        }
        HostCommand::RevertSsh { at_boot } => {
            sshd::pending::revert(&Local, *at_boot)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// The words of the command, and the hosts it is meant for, if that is not this machine.
fn elsewhere<'a>(
    command: &'a HostCommand,
    globals: &Globals,
) -> anyhow::Result<Option<(Vec<String>, &'a ReachArgs)>> {
    if let HostCommand::Update(args) = command {
        let meant = host_remote::is_meant(args.reach(), globals)?;
        return Ok(meant.then(|| (args.words(), args.reach())));
    }
    let (verb, item, args, reach) = match command {
        HostCommand::Plan(args) => ("plan", None, Some(&args.what), &args.reach),
        HostCommand::Apply(args) => ("apply", None, Some(&args.what), &args.reach),
        HostCommand::Audit(args) => ("audit", None, Some(&args.what), &args.reach),
        HostCommand::Explain { item, args } => ("explain", Some(item), Some(&args.what), &args.reach),
        HostCommand::Rollback { item, args } => ("rollback", Some(item), Some(&args.what), &args.reach),
        HostCommand::Confirm(reach) => ("confirm", None, None, reach),
        HostCommand::RevertSsh { .. } | HostCommand::Update(_) => return Ok(None),
    };
    if !host_remote::is_meant(reach, globals)? {
        return Ok(None);
    }
    let mut words = vec![verb.to_owned()];
    words.extend(item.cloned());
    if let Some(args) = args {
        words.extend(args.words()?);
    }
    Ok(Some((words, reach)))
}

/// What no item brings about: that nothing else claims the host. Id, title, references.
const GATE: (&str, &str, &[&str]) = (
    "gate",
    "There is room, and nobody else has the ports, the firewall or Docker's API",
    &["M23", "D2.7"],
);

fn audit(args: &BootstrapArgs) -> anyhow::Result<ExitCode> {
    let options = bootstrap::options(args)?;
    let facts = observe(&Local, &options)?;
    bootstrap::supported(&options, &facts, args.json())?;
    let plan = plan(&options, &facts);
    let findings: Vec<_> = plan
        .items
        .iter()
        .map(|item| {
            let wrong: Vec<String> = plan
                .pending()
                .filter(|step| step.item == item.id)
                .flat_map(|step| step.changes.iter().chain(&step.conflict).cloned())
                .collect();
            (item, wrong)
        })
        .collect();
    let gate: Vec<String> = gate::troubles(&options, &facts)
        .into_iter()
        .map(|trouble| format!("{}: {}", trouble.fact, trouble.next))
        .collect();
    let failing =
        findings.iter().filter(|(_, wrong)| !wrong.is_empty()).count() + usize::from(!gate.is_empty());
    if args.json() {
        let mut items: Vec<serde_json::Value> = findings
            .iter()
            .map(|(item, wrong)| {
                serde_json::json!({
                    "id": item.id, "title": item.title, "level": item.level,
                    "references": item.references, "ok": wrong.is_empty(), "differs": wrong,
                })
            })
            .collect();
        items.push(serde_json::json!({
            "id": GATE.0, "title": GATE.1, "level": Level::Must,
            "references": GATE.2, "ok": gate.is_empty(), "differs": gate,
        }));
        ui::json(&serde_json::json!({ "items": items, "failing": failing, "notes": plan.notes }));
    } else {
        let every = findings
            .iter()
            .map(|(item, wrong)| (item.id, item.title, item.references, wrong))
            .chain([(GATE.0, GATE.1, GATE.2, &gate)]);
        for (id, title, references, wrong) in every {
            let mark = if wrong.is_empty() { "ok  " } else { "FAIL" };
            ui::line(&format!("{mark}  {id:<22} {title}  [{}]", references.join(" ")));
            for line in wrong {
                ui::line(&format!("      {line}"));
            }
        }
        for note in &plan.notes {
            ui::warn(note);
        }
        ui::line(&format!(
            "{} of {} items hold",
            findings.len() + 1 - failing,
            findings.len() + 1
        ));
    }
    Ok(if failing == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn find(name: &str, args: &BootstrapArgs) -> anyhow::Result<(Item, bool)> {
    let options = bootstrap::options(args)?;
    let facts = observe(&Local, &options)?;
    bootstrap::supported(&options, &facts, false)?;
    let every = appliance_bootstrap::every(&options, &facts);
    let ids: Vec<&str> = every.iter().map(|item| item.id).collect();
    let known = ids.join(", ");
    let found = every.into_iter().find(|item| item.is_called(name));
    let Some(item) = found else {
        return Err(failure(Kind::Config, format!("there is no item {name}"))
            .hint(format!("one of: {known}"))
            .into());
    };
    let on = item.is_on(&options);
    Ok((item, on))
}

fn explain(name: &str, args: &BootstrapArgs) -> anyhow::Result<ExitCode> {
    let (item, on) = find(name, args)?;
    if args.json() {
        ui::json(&serde_json::json!({ "item": item, "on": on }));
        return Ok(ExitCode::SUCCESS);
    }
    ui::line(&format!("{}: {}", item.id, item.title));
    ui::line(&format!("  why         {}", item.reason));
    ui::line(&format!("  references  {}", item.references.join(", ")));
    ui::line(
        &format!(
            "  level       {:?}, {}",
            item.level,
            if on { "on" } else { "off" }
        )
        .to_lowercase(),
    );
    for want in &item.wants {
        ui::line(&format!("  wants       {}", want.subject()));
    }
    ui::line(&format!("  undo        {}", item.rollback));
    Ok(ExitCode::SUCCESS)
}

fn roll_back(name: &str, args: &BootstrapArgs) -> anyhow::Result<ExitCode> {
    let (item, _) = find(name, args)?;
    let done = rollback(&Local, &item)?;
    for line in &done.changes {
        ui::note(line);
    }
    for line in bootstrap::armed() {
        ui::warn(&line);
    }
    if !done.left.is_empty() {
        ui::warn(&format!(
            "{} is left as it is ({}); by hand: {}",
            item.id,
            done.left.join(", "),
            item.rollback
        ));
    }
    ui::note(&format!(
        "the next `appliance host apply` does it again, unless host.yml says `hardening: {{items: {{{}: false}}}}`",
        item.id
    ));
    Ok(if done.changes.is_empty() && !done.left.is_empty() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
