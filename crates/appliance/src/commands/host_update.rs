//! `appliance host update`: newer packages, and Docker with its containers running.

use std::path::Path;
use std::process::ExitCode;

use appliance_bootstrap::newer::{self, ApiRange, Jump, JumpError, Plan, Wish};
use appliance_bootstrap::{Local, Lock};

use crate::agent::SOCKET;
use crate::commands::bootstrap::LOCK;
use crate::developer::link::Link;
use crate::developer::reach::ReachArgs;
use crate::failure::{Kind, failure};
use crate::{ui, wire};

/// What is brought up to date, and how.
#[derive(Debug, clap::Args)]
pub struct UpdateArgs {
    /// Only one of the two
    #[arg(long, value_enum)]
    only: Option<Only>,
    /// A version of Docker that apt offers, or its beginning, such as 28 (default: the newest of this release of the distribution)
    #[arg(long, value_name = "VERSION", conflicts_with = "only")]
    docker: Option<String>,
    /// Do it without asking
    #[arg(long)]
    yes: bool,
    /// Show the plan and touch nothing
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Print the plan and the outcome as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

/// A part of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Only {
    /// Everything but Docker
    Packages,
    /// Docker
    Docker,
}

impl UpdateArgs {
    /// Which hosts are meant.
    pub fn reach(&self) -> &ReachArgs {
        &self.reach
    }

    /// These arguments as words, for the same command on another machine.
    pub fn words(&self) -> Vec<String> {
        let mut words = vec!["update".to_owned()];
        match self.only {
            Some(Only::Packages) => words.push("--only=packages".to_owned()),
            Some(Only::Docker) => words.push("--only=docker".to_owned()),
            None => {}
        }
        words.extend(self.docker.iter().map(|version| format!("--docker={version}")));
        for (flag, on) in [
            ("--yes", self.yes),
            ("--dry-run", self.dry_run),
            ("--json", self.json),
        ] {
            if on {
                words.push(flag.to_owned());
            }
        }
        words
    }
}

/// Looks, shows, and with consent does it.
///
/// # Errors
/// When something speaks against it (exit code 3, nothing was changed), when apt fails, or when a new Docker did not come up (5).
pub fn run(args: &UpdateArgs) -> anyhow::Result<ExitCode> {
    if !nix::unistd::Uid::effective().is_root() {
        return Err(failure(Kind::Refused, "packages are changed by root")
            .hint("sudo appliance host update")
            .into());
    }
    let _lock = Lock::take(Path::new(LOCK))?;
    let wish = Wish {
        packages: args.only != Some(Only::Docker) && args.docker.is_none(),
        docker: args.only != Some(Only::Packages),
        version: args.docker.clone(),
    };
    let mut told = |text: &str| ui::note(text);
    let ours: ApiRange = appliance_containers::api_range();
    let mut plan = newer::look(&Local, &wish, ours, &mut told)?;
    if let Some(jump) = &mut plan.docker {
        jump.objections.extend(at_work()?);
    }
    if !args.json {
        show(&plan);
    }
    let sure = args.yes || (!args.dry_run && !args.json && consent(&plan));
    if args.json && !sure {
        ui::json(&plan);
    }
    if plan == Plan::default() {
        return Ok(ExitCode::SUCCESS);
    }
    if !sure {
        if !args.dry_run && !args.json {
            ui::hint("appliance host update, with --yes");
        }
        return Ok(ExitCode::SUCCESS);
    }
    carry_out(&plan, args, &mut told)
}

fn consent(plan: &Plan) -> bool {
    let refused = plan
        .docker
        .as_ref()
        .is_some_and(|jump| !jump.objections.is_empty());
    if refused || *plan == Plan::default() {
        return false;
    }
    ui::ask("do it? [y/N] ").is_some_and(|answer| matches!(answer.as_str(), "y" | "yes"))
}

/// What the agent is in the middle of: it needs Docker for all of that.
fn at_work() -> anyhow::Result<Vec<newer::Objection>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let status: anyhow::Result<wire::Status> = runtime.block_on(async {
        let link = Link::local(SOCKET.as_ref()).await?;
        link.get("/v1/status").await
    });
    let status = match status {
        Ok(status) => status,
        Err(error) => {
            return Ok(vec![newer::Objection {
                message: format!("the agent, which looks after the containers, does not answer: {error:#}"),
                next: "systemctl start appliance-agent".to_owned(),
            }]);
        }
    };
    let mut found = Vec::new();
    for app in &status.apps {
        if app.changing.is_some() {
            found.push(newer::Objection {
                message: format!("{} is being changed", app.app),
                next: "appliance status, until it is over".to_owned(),
            });
        }
        found.extend(
            app.backups
                .iter()
                .filter(|job| job.running)
                .map(|job| newer::Objection {
                    message: format!("a backup of {} is under way", job.accessory),
                    next: "appliance backup list, until it is over".to_owned(),
                }),
        );
    }
    Ok(found)
}

fn show(plan: &Plan) {
    let security = plan.packages.iter().filter(|package| package.security).count();
    match plan.packages.len() {
        0 => {}
        count => ui::line(&format!("{count} packages, {security} of them for security")),
    }
    for package in &plan.packages {
        line(package);
    }
    if let Some(jump) = &plan.docker {
        ui::line(&format!(
            "Docker {} → {}{}",
            jump.from,
            jump.to,
            if jump.major { ", another major" } else { "" }
        ));
        jump.packages.iter().for_each(line);
        ui::line(&format!(
            "    the daemon restarts; {} containers run on: {}",
            jump.running.len(),
            jump.running.join(", ")
        ));
        for note in &jump.notes {
            ui::warn(note);
        }
        for objection in &jump.objections {
            ui::warn(&format!("{}; next: {}", objection.message, objection.next));
        }
    }
    if *plan == Plan::default() {
        ui::line("everything is up to date");
    }
}

fn line(package: &newer::Package) {
    ui::line(&format!(
        "    {:<32} {} → {}{}",
        package.name,
        package.from.as_deref().unwrap_or("new"),
        package.to,
        if package.security { "  (security)" } else { "" }
    ));
}

/// Docker is left alone because of `objection`; `standing` says what was done before.
fn not_now(objection: &newer::Objection, standing: &str) -> anyhow::Error {
    failure(
        Kind::Refused,
        format!("Docker is not replaced now: {}; {standing}", objection.message),
    )
    .hint(objection.next.clone())
    .hint("or everything else: appliance host update --only packages")
    .into()
}

fn carry_out(plan: &Plan, args: &UpdateArgs, told: &mut dyn FnMut(&str)) -> anyhow::Result<ExitCode> {
    if let Some(objection) = plan.docker.as_ref().and_then(|jump| jump.objections.first()) {
        return Err(not_now(objection, "nothing was changed"));
    }
    if !plan.packages.is_empty() {
        told(&format!("installing {} packages", plan.packages.len()));
        newer::install(&Local, &plan.packages)?;
    }
    // Somebody may have begun something while the question stood or packages were installed.
    if plan.docker.is_some()
        && let Some(objection) = at_work()?.into_iter().next()
    {
        return Err(not_now(&objection, "other packages that were asked for are new"));
    }
    let landed = match &plan.docker {
        Some(jump) => Some(newer::jump(&Local, jump, told).map_err(|error| fell(error, jump))?),
        None => None,
    };
    let reboot = Path::new("/run/reboot-required").exists();
    if args.json {
        ui::json(&serde_json::json!({
            "packages": plan.packages,
            "docker": landed.as_ref().map(|landed| serde_json::json!({
                "version": landed.version, "kept": landed.kept, "restarted": landed.lost,
            })),
            "reboot_needed": reboot,
        }));
    } else {
        if !plan.packages.is_empty() {
            ui::line(&format!("{} packages are newer", plan.packages.len()));
        }
        if let Some(landed) = &landed {
            ui::line(&format!(
                "Docker {} runs; {} containers ran on",
                landed.version,
                landed.kept.len()
            ));
            if !landed.lost.is_empty() {
                ui::warn(&format!("did not run on: {}", landed.lost.join(", ")));
                ui::hint("appliance status");
            }
        }
        if reboot {
            ui::warn("a reboot is needed before all of it is in use");
            ui::hint(
                "systemctl reboot; or a window: `updates: {reboot_at: '03:30'}` in /etc/appliance/host.yml, then appliance host apply",
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn fell(error: JumpError, jump: &Jump) -> anyhow::Error {
    let (kind, hint) = match &error {
        JumpError::Before { .. } | JumpError::Look(_) => {
            (Kind::Other, "appliance host update --only docker --dry-run")
        }
        JumpError::Settings { .. } => (
            Kind::Refused,
            "correct /etc/docker/daemon.json, then run this again",
        ),
        JumpError::Back { .. } => (Kind::Reverted, "journalctl -u docker --lines 50"),
        JumpError::Stuck { .. } => (
            Kind::Other,
            "journalctl -u docker --lines 50; systemctl restart docker",
        ),
    };
    let mut message = format!("Docker {} → {}: {error}", jump.from, jump.to);
    let mut source = std::error::Error::source(&error);
    while let Some(why) = source {
        message.push_str(&format!(": {why}"));
        source = why.source();
    }
    failure(kind, message).hint(hint).into()
}
