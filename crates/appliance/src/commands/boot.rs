//! `appliance app boot`: a release in new containers, without downtime.

use appliance_push::change::{Expectation, RoleName, Verb};

use crate::developer::earlier;
use crate::developer::hooks::Hooks;
use crate::developer::project::Project;
use crate::developer::targets::{AppArgs, Targets};
use crate::globals::Globals;
use crate::ui;
use crate::wire::{self, End};

/// Starts the current release again, or that of `--version`.
///
/// # Errors
/// When a host cannot be reached, has no such release, or it does not become healthy.
pub async fn run(args: &AppArgs, globals: &Globals) -> anyhow::Result<()> {
    let targets = Targets::find(args, globals).await?;
    // Hooks are the project's: where there is none, or hosts are named by hand, there is nothing to run.
    let configured = args.reach.on.is_empty() && globals.directory()?.join(&globals.config_file).exists();
    let project = configured.then(|| Project::open(globals)).transpose()?;
    let hook = |name: &str, host: &str, version: &str| match &project {
        Some(project) => {
            let mut hooks = Hooks::new(project, globals, &[host.to_owned()]);
            hooks.about(version);
            hooks.locked();
            hooks.run(name)
        }
        None => Ok(()),
    };
    for host in &targets.hosts {
        let app: wire::App = host.link.get(&format!("/v1/apps/{}", targets.app)).await?;
        let current = app.current.as_ref();
        let other = globals
            .version
            .as_ref()
            .filter(|wanted| current.is_none_or(|current| current.version != **wanted));
        let roles: Vec<RoleName> = match globals.roles.is_empty() {
            true => Vec::new(),
            false if host.roles.is_empty() => continue,
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
        let mut subject = targets.subject(host)?;
        subject.expects = Expectation::Release(current.map(|current| current.number));
        let version = other.or(current.map(|current| &current.version));
        let version = version.cloned().unwrap_or_default();
        hook("pre-app-boot", &host.name, &version)?;
        let step = ui::step(&format!("{}: boot", host.name));
        match targets.change_as(host, subject, verb).await {
            Ok(End::Done { message, .. }) => step.done(&message),
            Ok(_) => step.done(""),
            Err(error) => {
                step.failed();
                return Err(error);
            }
        }
        hook("post-app-boot", &host.name, &version)?;
    }
    Ok(())
}
