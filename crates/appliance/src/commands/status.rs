//! `appliance status`: what runs on each server, and how it fares.

use anyhow::Context as _;

use crate::developer::link::Link;
use crate::developer::project::Project;
use crate::developer::reach::ReachArgs;
use crate::globals::Globals;
use crate::{ui, wire};

/// Show what runs on each server, and how it fares
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    #[command(flatten)]
    reach: ReachArgs,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Asks every host of the configuration, those of `--on`, or this host.
///
/// # Errors
/// When a host cannot be reached.
pub async fn run(args: &StatusArgs, globals: &Globals) -> anyhow::Result<()> {
    let mut reports = Vec::new();
    for link in links(&args.reach, globals).await? {
        let status: wire::Status = link.get("/v1/status").await?;
        reports.push((link.name().to_owned(), status));
    }
    if args.json {
        let hosts: serde_json::Map<String, serde_json::Value> = reports
            .iter()
            .map(|(name, status)| Ok((name.clone(), serde_json::to_value(status)?)))
            .collect::<Result<_, serde_json::Error>>()
            .context("the status cannot be written as JSON")?;
        ui::json(&hosts);
        return Ok(());
    }
    for (name, status) in &reports {
        show(name, status);
    }
    Ok(())
}

/// The hosts a reading command concerns.
///
/// # Errors
/// When the configuration is wrong or a host cannot be reached.
pub async fn links(reach: &ReachArgs, globals: &Globals) -> anyhow::Result<Vec<Link>> {
    let configured = globals.directory()?.join(&globals.config_file).exists();
    if !reach.on.is_empty() || (!configured && reach.is_local()) {
        return reach.hosts().await;
    }
    let project = Project::open(globals)?;
    let settings = project.ssh();
    let mut links = Vec::new();
    for host in project.connecting(globals)? {
        links.push(reach.connect(&host, &settings).await?);
    }
    Ok(links)
}

fn show(name: &str, status: &wire::Status) {
    let host = &status.host;
    ui::line(&format!(
        "{name}: {} ({}), appliance {}, Docker {}",
        host.hostname,
        host.platform,
        host.version,
        host.docker.as_deref().unwrap_or("does not answer")
    ));
    let process = |process: &wire::Process| {
        format!(
            "{} (pid {}, up {})",
            ui::bytes(process.rss),
            process.pid,
            uptime(process.uptime)
        )
    };
    ui::line(&format!("  agent   {}", process(&status.agent)));
    ui::line(&format!(
        "  proxy   {}",
        status
            .proxy
            .as_ref()
            .map_or_else(|| "does not answer".to_owned(), process)
    ));
    let together = status.agent.rss + status.proxy.as_ref().map_or(0, |proxy| proxy.rss);
    ui::line(&format!(
        "  memory  {} for both, {} free on the host",
        ui::bytes(together),
        ui::bytes(status.memory_free)
    ));
    ui::line(&format!(
        "  disk    {} free of {}",
        ui::bytes(status.disk_free),
        ui::bytes(status.disk_total)
    ));
    for app in &status.apps {
        show_app(app);
    }
    for accessory in &status.accessories {
        super::accessory::show(accessory);
    }
    for problem in &status.problems {
        ui::line(&format!("  problem {problem}"));
    }
}

fn show_app(app: &wire::App) {
    match &app.current {
        Some(release) => ui::line(&format!(
            "  {}  {} ({}) by {} at {}{}",
            app.app,
            release.number,
            release.version,
            release.created_by,
            release.at,
            if app.stopped {
                ", stopped: visitors get 503"
            } else {
                ""
            }
        )),
        None => ui::line(&format!("  {}  nothing serves", app.app)),
    }
    for container in &app.containers {
        let health = match container.healthy {
            Some(true) => ", healthy",
            Some(false) => ", unhealthy",
            None => "",
        };
        ui::line(&format!(
            "    {:<8} {} {}{health}",
            container.role, container.name, container.state
        ));
    }
    for job in &app.backups {
        ui::line(&format!("    backup   {}", super::backup::summary(job)));
    }
    if let Some(rollout) = &app.rollout {
        let why = rollout
            .why
            .as_ref()
            .map(|why| format!(": {why}"))
            .unwrap_or_default();
        ui::line(&format!("    rollout  {} {}{why}", rollout.number, rollout.phase));
        if rollout.phase == "canary" {
            ui::line("             decide about it: appliance promote, or appliance abort");
        }
    }
    if let Some(holder) = &app.changing {
        ui::line(&format!(
            "    changing {} by {} since {}",
            holder.verb, holder.owner, holder.since
        ));
    }
    let previous: Vec<String> = app
        .previous
        .iter()
        .map(|release| format!("{} ({})", release.number, release.version))
        .collect();
    if !previous.is_empty() {
        ui::line(&format!("    earlier  {}", previous.join(", ")));
    }
}

fn uptime(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}
