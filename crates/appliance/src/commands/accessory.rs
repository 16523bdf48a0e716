//! `appliance accessory`: everything about containers beside the app, with Kamal's spelling.

use std::collections::BTreeSet;

use anyhow::Context as _;
use appliance_push::change::{
    Accessory, AccessoryAction, AccessoryName, AppName, Destination, Expectation, HostId, Verb,
};

use super::{exec, logs};
use crate::developer::accessories::{self, Making};
use crate::developer::change::{Subject, conclude, submit};
use crate::developer::hooks::Hooks;
use crate::developer::link::Link;
use crate::developer::project::{Project, glob};
use crate::developer::reach::{ReachArgs, SshSettings};
use crate::developer::session::Input;
use crate::developer::targets::{AppArgs, Target};
use crate::developer::terminal::Raw;
use crate::failure::{Kind, failure};
use crate::globals::Globals;
use crate::ui;
use crate::wire::{self, End};

/// Boot, upgrade, look into and remove databases and other containers beside the app
#[derive(Debug, clap::Subcommand)]
pub enum AccessoryCommand {
    /// Boot an accessory on its hosts (all: every accessory); one that runs already is left alone
    Boot(NameArgs),
    /// Replace an accessory's container by one that is as configured, on the same data
    Reboot(NameArgs),
    /// Start an accessory that was stopped
    Start(NameArgs),
    /// Stop an accessory, and keep it stopped
    Stop(NameArgs),
    /// Stop and start an accessory's container
    Restart(NameArgs),
    /// Show how an accessory is, and how it differs from the configuration
    Details(DetailsArgs),
    /// Run a command in a new container like the accessory's, or in its own with --reuse
    Exec(ExecArgs),
    /// Show what an accessory wrote
    Logs(LogsArgs),
    /// Take an accessory off its hosts, with its data after a backup
    Remove(RemoveArgs),
    /// Move an accessory to the newest image of its name after a backup; across PostgreSQL majors on a copy of its data
    Upgrade(UpgradeArgs),
    /// Pull an accessory's image without touching its container
    #[command(name = "pull_image", alias = "pull-image")]
    PullImage(NameArgs),
    /// Give this machine a port of an accessory over SSH
    Tunnel(super::accessory_tunnel::TunnelArgs),
    /// Kamal's hidden parts of boot and remove
    #[command(
        name = "upload",
        aliases = ["directories", "remove_container", "remove_image", "remove_service_directory"],
        hide = true
    )]
    Part(super::parts::Ignored),
}

/// Which accessory
#[derive(Debug, Clone, clap::Args)]
pub struct NameArgs {
    #[command(flatten)]
    app: AppArgs,
    /// The accessory's name, or all
    name: String,
}

/// Show how an accessory is
#[derive(Debug, clap::Args)]
pub struct DetailsArgs {
    #[command(flatten)]
    app: AppArgs,
    /// The accessory's name, or all
    #[arg(default_value = "all")]
    name: String,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Run a command
#[derive(Debug, clap::Args)]
pub struct ExecArgs {
    #[command(flatten)]
    app: AppArgs,
    /// Join this terminal to it (on the first host)
    #[arg(short, long)]
    interactive: bool,
    /// In the running container instead of a new one
    #[arg(long)]
    reuse: bool,
    /// Its output byte for byte, without prefixes
    #[arg(long, conflicts_with = "interactive")]
    raw: bool,
    /// The accessory's name
    name: String,
    /// The command; one word with spaces is split by the rules of a shell
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    command: Vec<String>,
}

/// Show what an accessory wrote
#[derive(Debug, clap::Args)]
pub struct LogsArgs {
    #[command(flatten)]
    app: AppArgs,
    #[command(flatten)]
    which: logs::Which,
    /// The accessory's name
    name: String,
}

/// Take an accessory off its hosts
#[derive(Debug, clap::Args)]
pub struct RemoveArgs {
    #[command(flatten)]
    app: AppArgs,
    /// The accessory's name, or all
    name: String,
    /// Keep volumes and directories
    #[arg(long)]
    keep_data: bool,
    /// Take no backup of the data that goes first
    #[arg(long, conflicts_with = "keep_data")]
    no_backup: bool,
    /// The accessory's name once more, to confirm
    #[arg(long, value_name = "NAME")]
    confirm: Option<String>,
    /// Do not ask
    #[arg(short = 'y', long, conflicts_with = "confirm")]
    confirmed: bool,
}

/// Move an accessory to a newer image
#[derive(Debug, clap::Args)]
pub struct UpgradeArgs {
    #[command(flatten)]
    app: AppArgs,
    /// The accessory's name
    name: String,
    /// Delete the data that the last upgrade, or its undoing, kept
    #[arg(long, conflicts_with = "undo")]
    confirm: bool,
    /// Return to the image and the data from before the last upgrade; what was written since is backed up and kept
    #[arg(long)]
    undo: bool,
    /// Take no backup first
    #[arg(long, conflicts_with = "confirm")]
    no_backup: bool,
    /// One host after the other, which is always so
    #[arg(long, hide = true)]
    rolling: bool,
    /// Do not ask
    #[arg(short = 'y', long)]
    confirmed: bool,
}

/// A host with the accessories that a command concerns there.
pub struct Place {
    /// How the configuration names it.
    pub host: String,
    /// The connection.
    pub link: Link,
    /// Its identity.
    pub id: HostId,
    /// The accessories.
    pub names: Vec<AccessoryName>,
}

/// The accessories of an app, on their hosts.
pub struct Places {
    /// `service` or `service@destination`.
    pub app: String,
    /// The hosts.
    pub hosts: Vec<Place>,
    project: Option<Project>,
    args: AppArgs,
    settings: SshSettings,
}

impl Places {
    /// Connects to the hosts of an accessory, or of all.
    ///
    /// # Errors
    /// When the configuration is wrong, has no such accessory, or a host cannot be reached.
    pub async fn find(args: &AppArgs, globals: &Globals, name: &str) -> anyhow::Result<Self> {
        let configured = globals.directory()?.join(&globals.config_file).exists();
        if !args.reach.on.is_empty() || !configured && args.reach.is_local() {
            return Self::running(args, name).await;
        }
        let project = Project::open(globals)?;
        let settings = project.ssh();
        let mut wanted: Vec<(String, Vec<AccessoryName>)> = Vec::new();
        for accessory in accessories::select(&project, name)? {
            let parsed = AccessoryName::parse(&accessory.name)?;
            for host in &accessory.hosts {
                if !globals.hosts.is_empty() && !globals.hosts.iter().any(|pattern| glob(pattern, host)) {
                    continue;
                }
                match wanted.iter_mut().find(|(known, _)| known == host) {
                    Some((_, names)) => names.push(parsed.clone()),
                    None => wanted.push((host.clone(), vec![parsed.clone()])),
                }
            }
        }
        if wanted.is_empty() && !globals.hosts.is_empty() {
            return Err(failure(
                Kind::Config,
                format!("No --hosts match for {}", globals.hosts.join(",")),
            )
            .into());
        }
        let names: Vec<String> = wanted.iter().map(|(host, _)| host.clone()).collect();
        Hooks::new(&project, globals, &names).before_connecting()?;
        let mut hosts = Vec::new();
        for (host, names) in wanted {
            let link = args.reach.connect(&host, &settings).await?;
            let info: wire::Host = link.get("/v1/host").await?;
            hosts.push(Place {
                host,
                link,
                id: info.id,
                names,
            });
        }
        Ok(Self {
            app: args.app.clone().unwrap_or_else(|| project.app_id()),
            hosts,
            project: Some(project),
            args: args.clone(),
            settings,
        })
    }

    /// What runs on this host, or on those of `--on`, whatever a configuration says.
    async fn running(args: &AppArgs, name: &str) -> anyhow::Result<Self> {
        let mut hosts = Vec::new();
        let mut apps = BTreeSet::new();
        for link in args.reach.hosts().await? {
            let status: wire::Status = link.get("/v1/status").await?;
            let found: Vec<wire::Accessory> = status
                .accessories
                .into_iter()
                .filter(|accessory| args.app.as_ref().is_none_or(|app| *app == accessory.app))
                .filter(|accessory| name == "all" || accessory.name == name)
                .collect();
            apps.extend(found.iter().map(|accessory| accessory.app.clone()));
            let names = found
                .iter()
                .map(|accessory| AccessoryName::parse(&accessory.name))
                .collect::<Result<Vec<_>, _>>()?;
            if !names.is_empty() {
                hosts.push(Place {
                    host: link.name(),
                    link,
                    id: status.host.id,
                    names,
                });
            }
        }
        if apps.len() > 1 {
            let apps: Vec<String> = apps.into_iter().collect();
            return Err(failure(
                Kind::Config,
                format!(
                    "{} have accessories here; say which one is meant",
                    apps.join(", ")
                ),
            )
            .hint(format!("--app {}", apps[0]))
            .into());
        }
        let Some(app) = apps.pop_first() else {
            return Err(
                failure(Kind::Config, format!("there is no accessory {name} here"))
                    .hint("appliance accessory boot, where the configuration is")
                    .into(),
            );
        };
        Ok(Self {
            app,
            hosts,
            project: None,
            args: args.clone(),
            settings: SshSettings::default(),
        })
    }

    /// The definition of an accessory for a host; none where there is no configuration.
    ///
    /// # Errors
    /// When a secret is missing, a file cannot be read, or a value cannot be carried.
    pub fn definition(&self, place: &Place, name: &AccessoryName) -> anyhow::Result<Option<Box<Accessory>>> {
        let Some(project) = &self.project else {
            return Ok(None);
        };
        let found = accessories::select(project, name.as_str())?;
        let accessory = found.first().context("one was selected")?;
        let secrets = project.secrets(&accessories::secret_names(project, accessory))?;
        let making = Making {
            host: &place.host,
            recipient: place.id.as_str(),
            secrets: &secrets,
        };
        accessories::definition(project, accessory, &making)
            .map(Box::new)
            .map(Some)
    }

    /// The definition of an accessory for a host.
    ///
    /// # Errors
    /// Also where there is no configuration.
    fn configured(&self, place: &Place, name: &AccessoryName) -> anyhow::Result<Box<Accessory>> {
        self.definition(place, name)?.ok_or_else(|| {
            failure(
                Kind::Config,
                format!("what {name} should be is in the app's configuration, which is not here"),
            )
            .hint(format!("in the app's directory: appliance accessory boot {name}"))
            .into()
        })
    }

    /// Signs and submits one action.
    ///
    /// # Errors
    /// When no key of ours is enrolled there, the host refuses, or the action fails.
    pub async fn change(
        &self,
        place: &Place,
        name: &AccessoryName,
        action: AccessoryAction,
    ) -> anyhow::Result<End> {
        let verb = Verb::Accessory {
            name: name.clone(),
            action,
        };
        self.submit(place, verb).await
    }

    /// The configuration, where there is one.
    pub fn project(&self) -> Option<&Project> {
        self.project.as_ref()
    }

    /// Signs and submits a change of the app.
    ///
    /// # Errors
    /// As [`Places::change`].
    pub async fn submit(&self, place: &Place, verb: Verb) -> anyhow::Result<End> {
        let signer = self.args.reach.signer(&place.link, &self.settings).await?;
        let (service, destination) = match self.app.split_once('@') {
            Some((service, destination)) => (service, Some(destination)),
            None => (self.app.as_str(), None),
        };
        let subject = Subject {
            host: place.id.clone(),
            app: Some(AppName::parse(service)?),
            destination: destination.map(Destination::parse).transpose()?,
            expects: Expectation::Any,
        };
        conclude(&place.link, submit(&place.link, &signer, subject, verb).await?)
    }

    /// The same action for each accessory on each host; prints how each ended.
    ///
    /// # Errors
    /// The first that fails; later ones are left alone then.
    async fn each(
        &self,
        action: impl Fn(&Place, &AccessoryName) -> anyhow::Result<AccessoryAction>,
    ) -> anyhow::Result<()> {
        for place in &self.hosts {
            for name in &place.names {
                let step = ui::step(&format!("{}: {name}", place.host));
                let ended = match action(place, name) {
                    Ok(action) => self.change(place, name, action).await,
                    Err(error) => Err(error),
                };
                match ended {
                    Ok(End::Done { message, .. }) => step.done(&message),
                    Ok(_) => step.done(""),
                    Err(error) => {
                        step.failed();
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Boots every accessory of the configuration, before the app that needs them.
///
/// # Errors
/// The first that cannot be booted.
pub async fn boot_all(reach: &ReachArgs, globals: &Globals) -> anyhow::Result<()> {
    let args = AppArgs {
        reach: reach.clone(),
        app: None,
    };
    boot(&args, globals, "all").await
}

/// Tells the hosts that run accessories what the configuration says now, so that differences show up in their status.
///
/// A push that went well is not made a failure by this: what goes wrong is a warning.
pub async fn announce(reach: &ReachArgs, globals: &Globals) {
    // Somebody who names hosts means those alone.
    if globals.hosts.is_empty()
        && let Err(error) = tell(reach, globals).await
    {
        ui::warn(&format!("accessories: {}", crate::agent::chain(&*error)));
    }
}

async fn tell(reach: &ReachArgs, globals: &Globals) -> anyhow::Result<()> {
    let args = AppArgs {
        reach: reach.clone(),
        app: None,
    };
    let places = Places::find(&args, globals, "all").await?;
    for place in &places.hosts {
        let path = format!("/v1/apps/{}/accessories", places.app);
        let running: Vec<wire::Accessory> = place.link.get(&path).await?;
        for name in &place.names {
            let Some(known) = running.iter().find(|known| known.name == name.as_str()) else {
                ui::warn(&format!(
                    "{}: the accessory {name} is not booted; run: appliance accessory boot {name}",
                    place.host
                ));
                continue;
            };
            if let Some(definition) = places.definition(place, name)?
                && definition.canonical() != known.canonical
            {
                places
                    .change(place, name, AccessoryAction::Set(definition))
                    .await?;
                ui::warn(&format!(
                    "{}: the configuration of the accessory {name} changed; to apply: appliance accessory reboot {name}",
                    place.host
                ));
            }
        }
    }
    super::accessory_backups::tell(&places).await
}

async fn boot(args: &AppArgs, globals: &Globals, name: &str) -> anyhow::Result<()> {
    let places = Places::find(args, globals, name).await?;
    places
        .each(|place, name| Ok(AccessoryAction::Boot(places.configured(place, name)?)))
        .await?;
    super::accessory_backups::tell(&places).await
}

/// Carries it out; the exit code is that of a command that was run.
///
/// # Errors
/// When a host cannot be reached or refuses, or the action fails.
pub async fn run(command: &AccessoryCommand, globals: &Globals) -> anyhow::Result<u8> {
    let find = async |args: &NameArgs| Places::find(&args.app, globals, &args.name).await;
    match command {
        AccessoryCommand::Boot(args) => boot(&args.app, globals, &args.name).await?,
        AccessoryCommand::Reboot(args) => {
            let places = find(args).await?;
            places
                .each(|place, name| {
                    Ok(AccessoryAction::Reboot {
                        definition: places.definition(place, name)?,
                    })
                })
                .await?;
        }
        AccessoryCommand::PullImage(args) => {
            let places = find(args).await?;
            places
                .each(|place, name| {
                    Ok(AccessoryAction::PullImage {
                        definition: places.definition(place, name)?,
                    })
                })
                .await?;
        }
        AccessoryCommand::Start(args) => find(args).await?.each(|_, _| Ok(AccessoryAction::Start)).await?,
        AccessoryCommand::Stop(args) => find(args).await?.each(|_, _| Ok(AccessoryAction::Stop)).await?,
        AccessoryCommand::Restart(args) => {
            find(args)
                .await?
                .each(|_, _| Ok(AccessoryAction::Restart))
                .await?;
        }
        AccessoryCommand::Details(args) => details(args, globals).await?,
        AccessoryCommand::Exec(args) => return run_command(args, globals).await,
        AccessoryCommand::Logs(args) => show_logs(args, globals).await?,
        AccessoryCommand::Remove(args) => remove(args, globals).await?,
        AccessoryCommand::Upgrade(args) => upgrade(args, globals).await?,
        AccessoryCommand::Tunnel(args) => super::accessory_tunnel::run(args, globals).await?,
        AccessoryCommand::Part(_) => super::parts::of_accessory(),
    }
    Ok(0)
}

async fn details(args: &DetailsArgs, globals: &Globals) -> anyhow::Result<()> {
    let places = Places::find(&args.app, globals, &args.name).await?;
    let mut rows = Vec::new();
    for place in &places.hosts {
        let path = format!("/v1/apps/{}/accessories", places.app);
        let found: Vec<wire::Accessory> = place.link.get(&path).await?;
        for name in &place.names {
            let mut row = found
                .iter()
                .find(|accessory| accessory.name == name.as_str())
                .cloned()
                .unwrap_or_else(|| wire::Accessory {
                    app: places.app.clone(),
                    name: name.to_string(),
                    state: "not booted".to_owned(),
                    ..wire::Accessory::default()
                });
            // Only the configuration here knows what was changed since the last boot or push.
            if !row.canonical.is_empty()
                && let Some(definition) = places.definition(place, name)?
                && definition.canonical() != row.canonical
            {
                row.drift.push(
                    "the configuration here was changed since; to apply: appliance accessory reboot"
                        .to_owned(),
                );
            }
            rows.push((place.host.clone(), row));
        }
    }
    if args.json {
        let rows: Vec<serde_json::Value> = rows
            .iter()
            .map(|(host, row)| serde_json::json!({ "host": host, "accessory": row }))
            .collect();
        ui::json(&rows);
        return Ok(());
    }
    for (host, row) in rows {
        ui::line(&format!("Accessory {} Host: {host}", row.name));
        show(&row);
        ui::line("");
    }
    Ok(())
}

/// One accessory in a status.
pub fn show(accessory: &wire::Accessory) {
    let health = match accessory.healthy {
        Some(true) => format!(", healthy ({})", accessory.health),
        Some(false) => format!(", not healthy ({})", accessory.health),
        None => String::new(),
    };
    let wanted = if accessory.state == accessory.wanted || accessory.wanted.is_empty() {
        String::new()
    } else {
        format!(" (should be {})", accessory.wanted)
    };
    ui::line(&format!(
        "  {}/{}  {} {} ({}) {}{wanted}{health}",
        accessory.app,
        accessory.name,
        accessory.container,
        accessory.image,
        accessory.pinned,
        accessory.state
    ));
    for port in &accessory.ports {
        ui::line(&format!("    port     {port}"));
    }
    if accessory.restarts + u64::from(accessory.failures) > 0 {
        let next = accessory
            .next_try
            .map(|next| format!(", next start at {next}"))
            .unwrap_or_default();
        ui::line(&format!(
            "    restarts {} by Docker, {} by us in a row{next}",
            accessory.restarts, accessory.failures
        ));
    }
    for drift in &accessory.drift {
        ui::line(&format!("    differs  {drift}"));
    }
    if let Some(upgrade) = &accessory.upgrade {
        ui::line(&format!("    upgrade  {upgrade}"));
    }
    if let Some(problem) = &accessory.problem {
        ui::line(&format!("    problem  {problem}"));
    }
    if let Some(holder) = &accessory.changing {
        ui::line(&format!(
            "    changing {} by {} since {}",
            holder.verb, holder.owner, holder.since
        ));
    }
}

async fn run_command(args: &ExecArgs, globals: &Globals) -> anyhow::Result<u8> {
    let command = exec::words(&args.command)?;
    let mut places = Places::find(&args.app, globals, &args.name).await?;
    if args.interactive {
        places.hosts.truncate(1);
    }
    let terminal = args.interactive && Raw::possible();
    let input = match (args.interactive, terminal) {
        (false, _) => Input::None,
        (true, false) => Input::Pipe,
        (true, true) => Input::Terminal,
    };
    let alone = places.hosts.len() == 1;
    let mut sessions = Vec::new();
    for place in &places.hosts {
        for name in &place.names {
            let action = AccessoryAction::Exec {
                command: command.clone(),
                reuse: args.reuse,
                terminal,
            };
            match places.change(place, name, action).await? {
                End::Session { session, .. } => {
                    let prefix = if alone || args.raw {
                        String::new()
                    } else {
                        format!("{} | ", place.host)
                    };
                    sessions.push((&place.link, session, prefix));
                }
                other => anyhow::bail!("{} answers a command with {other:?}", place.host),
            }
        }
    }
    exec::join(sessions, input).await
}

async fn show_logs(args: &LogsArgs, globals: &Globals) -> anyhow::Result<()> {
    let places = Places::find(&args.app, globals, &args.name).await?;
    let query = args.which.query(jiff::Timestamp::now())?;
    let targets: Vec<(Target, AccessoryName)> = places
        .hosts
        .iter()
        .flat_map(|place| {
            place.names.iter().map(|name| {
                let target = Target {
                    name: place.host.clone(),
                    link: place.link.clone(),
                    id: place.id.clone(),
                    roles: Vec::new(),
                };
                (target, name.clone())
            })
        })
        .collect();
    let sources = targets
        .iter()
        .map(|(target, name)| {
            let path = format!("/v1/apps/{}/accessories/{name}/logs?{query}", places.app);
            (target, target.name.clone(), path)
        })
        .collect();
    logs::show(&args.which, "Accessory", sources).await
}

async fn remove(args: &RemoveArgs, globals: &Globals) -> anyhow::Result<()> {
    let places = Places::find(&args.app, globals, &args.name).await?;
    let names: BTreeSet<&AccessoryName> = places.hosts.iter().flat_map(|place| &place.names).collect();
    for name in names {
        let data = if args.keep_data {
            "its data is kept"
        } else {
            "with all its data"
        };
        let hosts: Vec<&str> = places
            .hosts
            .iter()
            .filter(|place| place.names.contains(name))
            .map(|place| place.host.as_str())
            .collect();
        let confirmed = args.confirmed
            || args.confirm.as_deref() == Some(name.as_str())
            || (args.confirm.is_none()
                && ui::ask(&format!(
                    "This takes {name} off {}, {data}. Type {name} to go on: ",
                    hosts.join(", ")
                ))
                .is_some_and(|typed| typed == name.as_str()));
        if !confirmed {
            return Err(failure(
                Kind::Refused,
                format!(
                    "this takes {name} off {}, {data}; it was not confirmed",
                    hosts.join(", ")
                ),
            )
            .hint(format!("appliance accessory remove {name} --confirm {name}"))
            .hint(format!(
                "appliance accessory remove {name} --keep-data --confirm {name}"
            ))
            .into());
        }
    }
    places
        .each(|_, name| {
            Ok(AccessoryAction::Remove {
                confirm: name.clone(),
                data: !args.keep_data,
                no_backup: args.no_backup,
            })
        })
        .await
}

async fn upgrade(args: &UpgradeArgs, globals: &Globals) -> anyhow::Result<()> {
    let places = Places::find(&args.app, globals, &args.name).await?;
    if (args.confirm || args.undo) && !args.confirmed {
        confirm_upgrade(args, &places).await?;
    }
    places
        .each(|place, name| {
            Ok(match (args.confirm, args.undo) {
                (true, _) => AccessoryAction::UpgradeConfirm {
                    confirm: name.clone(),
                },
                (_, true) => AccessoryAction::UpgradeUndo {
                    confirm: name.clone(),
                    no_backup: args.no_backup,
                },
                _ => AccessoryAction::Upgrade {
                    definition: places.definition(place, name)?,
                    no_backup: args.no_backup,
                },
            })
        })
        .await
}

/// Asks for the name of each accessory whose upgrade waits for a word, after saying what is at stake.
async fn confirm_upgrade(args: &UpgradeArgs, places: &Places) -> anyhow::Result<()> {
    for place in &places.hosts {
        let path = format!("/v1/apps/{}/accessories", places.app);
        let found: Vec<wire::Accessory> = place.link.get(&path).await?;
        for name in &place.names {
            let known = found.iter().find(|accessory| accessory.name == name.as_str());
            // The host refuses what does not wait for a word.
            let Some(upgrade) = known.and_then(|accessory| accessory.upgrade.as_deref()) else {
                continue;
            };
            let (flag, what) = match args.undo {
                true => (
                    "--undo",
                    "the app sees the other data, without what was written here since; what is there now is kept",
                ),
                false => ("--confirm", "the data that is kept is deleted for good"),
            };
            let place = &place.host;
            let asked = format!("{place}: {name}: {upgrade}\nWith {flag}, {what}. Type {name} to go on: ");
            if ui::ask(&asked).is_some_and(|typed| typed == name.as_str()) {
                continue;
            }
            return Err(failure(
                Kind::Refused,
                format!("{place}: {name}: with {flag}, {what}; it was not confirmed"),
            )
            .hint(format!("appliance accessory upgrade {name} {flag} --confirmed"))
            .into());
        }
    }
    Ok(())
}
