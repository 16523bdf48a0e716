//! The hosts and the app that a command about a running app concerns.
//!
//! On the developer's machine both come from the configuration; on the host itself, and with `--on`, from what runs there.

use anyhow::Context as _;
use appliance_push::change::{AppName, Destination, Expectation, HostId, Verb};

use super::change::{Subject, conclude, submit};
use super::link::Link;
use super::project::{Project, glob};
use super::reach::{ReachArgs, SshSettings};
use crate::failure::{Kind, failure};
use crate::globals::Globals;
use crate::wire::{self, End};

/// Which app, for commands that work without a configuration too
#[derive(Debug, Clone, Default, clap::Args)]
pub struct AppArgs {
    #[command(flatten)]
    pub reach: ReachArgs,
    /// The app, where no configuration names it: service or service@destination
    #[arg(long, value_name = "APP")]
    pub app: Option<String>,
}

/// One host of the app.
pub struct Target {
    /// How the configuration names it.
    pub name: String,
    /// The connection.
    pub link: Link,
    /// Its identity.
    pub id: HostId,
    /// Roles of the app that run there, the primary one first, narrowed by `-r`.
    pub roles: Vec<String>,
}

/// An app and its hosts.
pub struct Targets {
    /// `service` or `service@destination`.
    pub app: String,
    /// The hosts, that of the primary role first.
    pub hosts: Vec<Target>,
    reach: ReachArgs,
    settings: SshSettings,
}

impl Targets {
    /// Connects to every host.
    ///
    /// # Errors
    /// When the configuration is wrong, a host cannot be reached, or it is not clear which app is meant.
    pub async fn find(args: &AppArgs, globals: &Globals) -> anyhow::Result<Self> {
        Self::find_on(args, globals, false).await
    }

    /// Like [`Targets::find`], and the hosts that run accessories alone.
    ///
    /// # Errors
    /// As [`Targets::find`].
    pub async fn with_accessories(args: &AppArgs, globals: &Globals) -> anyhow::Result<Self> {
        Self::find_on(args, globals, true).await
    }

    async fn find_on(args: &AppArgs, globals: &Globals, accessories: bool) -> anyhow::Result<Self> {
        let configured = globals.directory()?.join(&globals.config_file).exists();
        let mut links = Vec::new();
        let settings;
        let mut app = args.app.clone();
        if args.reach.on.is_empty() && (configured || !args.reach.is_local()) {
            let project = Project::open(globals)?;
            settings = project.ssh();
            app = app.or_else(|| Some(project.app_id()));
            let mut names = project.connecting(globals)?;
            if accessories && globals.roles.is_empty() && !globals.primary {
                let all = &project.loaded.config.accessories;
                for host in all.iter().flat_map(|accessory| &accessory.hosts) {
                    let wanted =
                        globals.hosts.is_empty() || globals.hosts.iter().any(|pattern| glob(pattern, host));
                    if wanted && !names.contains(host) {
                        names.push(host.clone());
                    }
                }
            }
            for host in names {
                links.push((host.clone(), args.reach.connect(&host, &settings).await?));
            }
        } else {
            settings = SshSettings::default();
            if app.is_none() && configured {
                app = Some(Project::open(globals)?.app_id());
            }
            for link in args.reach.hosts().await? {
                links.push((link.name(), link));
            }
        }
        let app = match app {
            Some(app) => app,
            None => only_app(&links).await?,
        };
        let mut hosts = Vec::new();
        for (name, link) in links {
            let info: wire::Host = link.get("/v1/host").await?;
            // One server under two names: that of its roles, and that of an accessory.
            if accessories && hosts.iter().any(|known: &Target| known.id == info.id) {
                continue;
            }
            let found: wire::App = link.get(&format!("/v1/apps/{app}")).await?;
            let matches = |role: &String| {
                globals.roles.is_empty() || globals.roles.iter().any(|pattern| glob(pattern, role))
            };
            hosts.push(Target {
                name,
                link,
                id: info.id,
                roles: found
                    .containers
                    .into_iter()
                    .map(|container| container.role)
                    .filter(matches)
                    .collect(),
            });
        }
        if !globals.roles.is_empty() && hosts.iter().all(|host| host.roles.is_empty()) {
            return Err(failure(
                Kind::Config,
                format!("No --roles match for {}", globals.roles.join(",")),
            )
            .into());
        }
        if globals.primary {
            hosts.truncate(1);
        }
        Ok(Self {
            app,
            hosts,
            reach: args.reach.clone(),
            settings,
        })
    }

    /// Whom a change of the app on `host` concerns.
    ///
    /// # Errors
    /// When the app's name is none.
    pub fn subject(&self, host: &Target) -> anyhow::Result<Subject> {
        let (service, destination) = split(&self.app)?;
        Ok(Subject {
            host: host.id.clone(),
            app: Some(service),
            destination,
            expects: Expectation::Any,
        })
    }

    /// Signs and submits a change of the app on one host.
    ///
    /// # Errors
    /// When no key of ours is enrolled there, the host refuses, or the change fails.
    pub async fn change(&self, host: &Target, verb: Verb) -> anyhow::Result<End> {
        self.change_as(host, self.subject(host)?, verb).await
    }

    /// Like [`Targets::change`] for a subject of one's own, such as the host itself.
    ///
    /// # Errors
    /// As [`Targets::change`].
    pub async fn change_as(&self, host: &Target, subject: Subject, verb: Verb) -> anyhow::Result<End> {
        let signer = self.reach.signer(&host.link, &self.settings).await?;
        let end = submit(&host.link, &signer, subject, verb).await?;
        conclude(&host.link, end)
    }

    /// The same change on every host; prints how each ended.
    ///
    /// # Errors
    /// The first host's that fails; later ones are not changed then.
    pub async fn change_all(&self, verb: &Verb) -> anyhow::Result<()> {
        for host in &self.hosts {
            if let End::Done { message, .. } = self.change(host, verb.clone()).await? {
                crate::ui::note(&format!("{}: {message}", host.name));
            }
        }
        Ok(())
    }
}

/// `service` or `service@destination` in its parts.
fn split(app: &str) -> anyhow::Result<(AppName, Option<Destination>)> {
    let (service, destination) = match app.split_once('@') {
        Some((service, destination)) => (service, Some(destination)),
        None => (app, None),
    };
    let bad = |error: appliance_push::change::BadName| failure(Kind::Config, format!("--app {app}: {error}"));
    Ok((
        AppName::parse(service).map_err(bad)?,
        destination.map(Destination::parse).transpose().map_err(bad)?,
    ))
}

async fn only_app(links: &[(String, Link)]) -> anyhow::Result<String> {
    let (_, link) = links.first().context("there is a host")?;
    let status: wire::Status = link.get("/v1/status").await?;
    let mut apps: Vec<String> = status.apps.into_iter().map(|app| app.app).collect();
    match apps.len() {
        1 => Ok(apps.remove(0)),
        0 => Err(failure(Kind::Config, format!("no app runs on {}", link.name())).into()),
        _ => Err(failure(
            Kind::Config,
            format!("{} runs {}; say which one is meant", link.name(), apps.join(", ")),
        )
        .hint(format!("--app {}", apps[0]))
        .into()),
    }
}
