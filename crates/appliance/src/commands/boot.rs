//! `appliance app boot`: a release in new containers, without downtime.

use appliance_push::change::{Expectation, RoleName, Verb};

use crate::developer::earlier;
use crate::developer::fleet::{self, Host, Order, Way};
use crate::developer::hooks::Hooks;
use crate::developer::project::Project;
use crate::developer::targets::{AppArgs, Target, Targets};
use crate::developer::turn::Patience;
use crate::globals::Globals;
use crate::ui;
use crate::wire::{self, End};

/// Starts the current release again, or that of `--version`, on all hosts together.
///
/// Hosts that were named by hand (`--on`) are no group: one after the other is changed.
///
/// # Errors
/// When a host cannot be reached, has no such release, or it does not become healthy on all of them.
pub async fn run(args: &AppArgs, globals: &Globals) -> anyhow::Result<()> {
    let targets = Targets::find(args, globals).await?;
    let mut boots = Vec::new();
    for host in &targets.hosts {
        let app: wire::App = host.link.get(&format!("/v1/apps/{}", targets.app)).await?;
        boots.extend(Boot::of(host, app, globals)?);
    }
    // Hooks are the project's: where there is none, or hosts are named by hand, there is nothing to run.
    let configured = args.reach.on.is_empty() && globals.directory()?.join(&globals.config_file).exists();
    if configured {
        let project = Project::open(globals)?;
        if args.app.as_ref().is_none_or(|app| *app == project.app_id()) {
            return together(&project, args, globals, boots).await;
        }
    }
    for boot in boots {
        let mut subject = targets.subject(boot.host)?;
        subject.expects = Expectation::Release(boot.app.current.as_ref().map(|current| current.number));
        let step = ui::step(&format!("{}: boot", boot.host.name));
        match targets.change_as(boot.host, subject, boot.verb).await {
            Ok(End::Done { message, .. }) => step.done(&message),
            Ok(_) => step.done(""),
            Err(error) => {
                step.failed();
                return Err(error);
            }
        }
    }
    Ok(())
}

/// What one host is to do.
struct Boot<'a> {
    host: &'a Target,
    app: wire::App,
    verb: Verb,
    version: String,
}

impl<'a> Boot<'a> {
    /// Nothing on a host without a role that `-r` names.
    fn of(host: &'a Target, app: wire::App, globals: &Globals) -> anyhow::Result<Option<Self>> {
        let current = app.current.as_ref();
        let other = globals
            .version
            .as_ref()
            .filter(|wanted| current.is_none_or(|current| current.version != **wanted));
        let roles: Vec<RoleName> = match globals.roles.is_empty() {
            true => Vec::new(),
            false if host.roles.is_empty() => return Ok(None),
            false => host
                .roles
                .iter()
                .map(|role| RoleName::parse(role))
                .collect::<Result<_, _>>()?,
        };
        let verb = match (other, current) {
            (Some(wanted), _) => Verb::Rollback {
                to: Some(earlier::find(&app, wanted)?.number),
                roles,
            },
            // A part of what runs, in new containers.
            (None, Some(current)) if !roles.is_empty() => Verb::Rollback {
                to: Some(current.number),
                roles,
            },
            (None, _) => Verb::AppRestart,
        };
        let version = other.or(current.map(|current| &current.version));
        Ok(Some(Self {
            host,
            version: version.cloned().unwrap_or_default(),
            app,
            verb,
        }))
    }
}

/// As a push goes: all hosts, or none.
async fn together(
    project: &Project,
    args: &AppArgs,
    globals: &Globals,
    boots: Vec<Boot<'_>>,
) -> anyhow::Result<()> {
    let way = Way {
        project,
        reach: &args.reach,
        settings: project.ssh(),
    };
    let names: Vec<String> = boots.iter().map(|boot| boot.host.name.clone()).collect();
    let mut hooks = Hooks::new(project, globals, &names);
    if let Some(first) = boots.first() {
        hooks.about(&first.version);
    }
    hooks.locked();
    let mut changes = Vec::new();
    for boot in boots {
        let link = boot.host.link.clone();
        let host = Host {
            name: boot.host.name.clone(),
            info: link.get("/v1/host").await?,
            signer: way.reach.signer(&link, &way.settings).await?,
            app: boot.app,
            link,
        };
        changes.push((host, boot.verb));
    }
    let patience = Patience::of(globals);
    patience
        .wait(&way, changes.iter_mut().map(|(host, _)| host))
        .await?;
    let order = Order::of(&project.loaded.config);
    fleet::roll_out(&way, &order, &hooks, &patience, &mut changes).await
}
