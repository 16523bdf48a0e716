//! `appliance push`: check, send, sign, start, switch, drain — on every host of the configuration together.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use appliance_push::change::{Canary, Expectation, Image, Release, Verb};
use appliance_push::image::Prepared;
use futures_util::future::join_all;

use crate::developer::canary::CanaryArgs;
use crate::developer::change::{conclude, submit};
use crate::developer::fleet::{self, Host, Order, Way};
use crate::developer::hooks::Hooks;
use crate::developer::image::{self, ImageArgs};
use crate::developer::link::Link;
use crate::developer::project::Project;
use crate::developer::reach::ReachArgs;
use crate::developer::release::{self, Making, secret_names};
use crate::developer::turn::Patience;
use crate::developer::wanted::Wanted;
use crate::globals::Globals;
use crate::ui;
use crate::wire::{self, End};

/// Send the app's image and release to every server, and switch to it without dropping a request
#[derive(Debug, clap::Args)]
pub struct PushArgs {
    #[command(flatten)]
    pub reach: ReachArgs,
    #[command(flatten)]
    image: ImageArgs,
    #[command(flatten)]
    canary: CanaryArgs,
}

/// What a push brings, whichever host it goes to.
struct Cargo<'a> {
    project: &'a Project,
    wanted: &'a Wanted,
    /// Values of every secret that any host needs.
    secrets: BTreeMap<String, String>,
    error_pages: BTreeMap<String, String>,
    canary: Option<Canary>,
    /// The patterns of `-r`.
    only: &'a [String],
}

/// Pushes to every host of the configuration, the primary role's first.
///
/// # Errors
/// When configuration, secrets or image are wrong (nothing was sent), a host cannot be reached or refuses,
/// or the release does not become healthy on all of them (the former one serves).
pub async fn run(args: &PushArgs, globals: &Globals) -> anyhow::Result<()> {
    let begun = Instant::now();
    let project = Project::load(globals)?;
    let config = &project.loaded.config;
    let hosts = project.hosts(globals)?;
    // Everything that can be wrong on this side is found before anything is sent.
    let names: BTreeSet<String> = hosts
        .iter()
        .flat_map(|host| secret_names(config, &project.loaded.extension, host, &globals.roles))
        .collect();
    let mut secrets = project.secrets(&names)?;
    let error_pages = release::error_pages(config, &project.directory)?;
    args.canary.resolve(&project.loaded.extension, true)?;
    release::check_command(config, &project.loaded.extension)?;
    let left_out = release::command_left_out(config, &project.loaded.extension, &hosts, &globals.roles);
    if let Some(warning) = left_out {
        ui::warn(&warning);
    }
    let mut hooks = Hooks::new(&project, globals, &hosts);
    hooks.before_connecting()?;
    let wanted = Wanted::find(&project, &args.image, || hooks.run("pre-build")).await?;
    secrets.extend(wanted.secret());
    ui::note(&format!(
        "{} {} {}",
        project.app_id(),
        config.version,
        wanted.name()
    ));

    let way = Way {
        project: &project,
        reach: &args.reach,
        settings: project.ssh(),
    };
    let mut reached = way.connect(&hosts).await?;
    let patience = Patience::of(globals);
    patience.wait(&way, reached.iter_mut()).await?;
    let serves = reached.iter().any(|host| host.app.current.is_some());
    let mut canary = args.canary.resolve(&project.loaded.extension, serves)?;
    // One host promotes its canary by itself; of several each would decide for itself.
    let hold = canary
        .as_mut()
        .filter(|_| reached.len() > 1)
        .and_then(|canary| canary.hold.take())
        .map(|seconds| Duration::from_secs(seconds.into()));
    let cargo = Cargo {
        project: &project,
        wanted: &wanted,
        secrets,
        error_pages,
        canary,
        only: &globals.roles,
    };
    let releases = join_all(reached.iter_mut().map(|host| cargo.bring(&way, host))).await;
    let releases: Vec<Release> = releases.into_iter().collect::<anyhow::Result<_>>()?;

    patience.free(&way, reached.iter_mut()).await?;
    hooks.locked();
    hooks.run("pre-deploy")?;
    let verbs = releases
        .into_iter()
        .map(|release| Verb::Deploy(Box::new(release)));
    let mut changes: Vec<(Host, Verb)> = reached.into_iter().zip(verbs).collect();
    fleet::roll_out(&way, &Order::of(config), &hooks, &patience, &mut changes).await?;
    if let Some(hold) = hold {
        let hosts: Vec<&Host> = changes.iter().map(|(host, _)| host).collect();
        super::canary::hold(&way, &hosts, &config.version, hold).await?;
    }
    if let Some((host, _)) = changes.first() {
        tell_trust(&host.link, config).await;
    }
    super::accessory::announce(&args.reach, globals).await;
    hooks.run_after("post-deploy", begun.elapsed())
}

impl Cargo<'_> {
    /// Sends the image to one host, as far as it lacks it, and makes its release.
    async fn bring(&self, way: &Way<'_>, host: &mut Host) -> anyhow::Result<Release> {
        let config = &self.project.loaded.config;
        let (described, prepared) = self.wanted.on(&host.link, &host.info.platform, config).await?;
        // The release is made before the upload, so that a value it cannot carry costs no upload.
        let mut names = secret_names(config, &self.project.loaded.extension, &host.name, self.only);
        names.extend(self.wanted.secret().map(|(name, _)| name));
        let secrets = self.secrets.iter().filter(|(name, _)| names.contains(*name));
        let making = Making {
            host: &host.name,
            only: self.only,
            recipient: host.info.id.as_str(),
            image: described.clone(),
            secrets: &secrets
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
            performer: &self.project.performer,
            canary: self.canary.clone(),
            error_pages: &self.error_pages,
        };
        let release = release::release(config, &self.project.loaded.extension, &making)?;

        if let Some(prepared) = &prepared {
            deliver_to(way, host, prepared, &described).await?;
        }
        Ok(release)
    }
}

/// Brings the image to every host and starts nothing (`build deliver`, `build pull`).
///
/// # Errors
/// When the build fails, a host cannot be reached or refuses.
pub async fn deliver(args: &PushArgs, globals: &Globals, build: bool) -> anyhow::Result<()> {
    let project = Project::load(globals)?;
    let config = &project.loaded.config;
    let hosts = project.hosts(globals)?;
    let hooks = Hooks::new(&project, globals, &hosts);
    hooks.before_connecting()?;
    let mut which = args.image.clone();
    which.skip_push |= !build;
    let wanted = Wanted::find(&project, &which, || hooks.run("pre-build")).await?;
    let way = Way {
        project: &project,
        reach: &args.reach,
        settings: project.ssh(),
    };
    for mut host in way.connect(&hosts).await? {
        match wanted.on(&host.link, &host.info.platform, config).await? {
            (described, Some(prepared)) => deliver_to(&way, &mut host, &prepared, &described).await?,
            (described, None) => ui::note(&format!(
                "{}: has or pulls {} itself when it is deployed",
                host.name, described.digest
            )),
        }
    }
    Ok(())
}

/// Buys the permission to upload, and sends what the host lacks.
async fn deliver_to(
    way: &Way<'_>,
    host: &mut Host,
    prepared: &Prepared,
    described: &Image,
) -> anyhow::Result<()> {
    let step = ui::step(&format!("{}: upload", host.name));
    let verb = Verb::Upload {
        blobs: prepared.permission(),
    };
    let mut permission = way.subject(host)?;
    permission.expects = Expectation::Any;
    let end = submit(&host.link, &host.signer, permission, verb).await?;
    let token = match conclude(&host.link, end) {
        Ok(End::Token { token, .. }) => token,
        Ok(other) => anyhow::bail!("{} answers an upload with {other:?}", host.link.name()),
        Err(error) => {
            step.failed();
            return Err(error);
        }
    };
    let sent = image::send(&host.link, prepared, &described.repository, token).await?;
    let summary = prepared.summary();
    step.done(&format!(
        "{} sent ({} of {} layers were there, {} in all)",
        ui::bytes(sent.bytes),
        summary.layers_there,
        summary.layers,
        ui::bytes(summary.bytes)
    ));
    // The upload has ways of its own to outlive a broken connection; what follows needs one that lives.
    if sent.reconnects > 0 || host.link.client().is_closed() {
        host.link = way.reach.connect(&host.name, &way.settings).await?;
    }
    Ok(())
}

/// Where the local CA signs, visitors' browsers will complain; whoever pushes should not learn it from them.
async fn tell_trust(link: &Link, config: &appliance_config::Resolved) {
    let issued: Vec<wire::Certificate> = link.get("/v1/certificates").await.unwrap_or_default();
    let is_issued = |host: &String| {
        issued
            .iter()
            .any(|one| one.name == *host && one.not_after.is_some())
    };
    let local_ca = config
        .roles
        .iter()
        .filter_map(|role| role.proxy.as_ref())
        .filter(|proxy| proxy.ssl && proxy.custom_certificate.is_none())
        .any(|proxy| !proxy.hosts.iter().all(is_issued));
    if local_ca && link.get_bytes("/v1/ca").await.is_ok() {
        ui::note("the certificate is signed by the host's own CA, which browsers do not trust by themselves");
    }
}
