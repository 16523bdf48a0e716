//! `appliance push`: check, send, sign, start, switch, drain — on every host of the configuration together.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use appliance_push::change::{Canary, Expectation, Release, Verb};
use futures_util::future::join_all;

use crate::developer::canary::CanaryArgs;
use crate::developer::change::{conclude, submit};
use crate::developer::fleet::{self, Host, Order, Way};
use crate::developer::hooks::Hooks;
use crate::developer::image::{self, Local};
use crate::developer::link::Link;
use crate::developer::project::Project;
use crate::developer::reach::ReachArgs;
use crate::developer::release::{self, Making, secret_names};
use crate::globals::Globals;
use crate::ui;
use crate::wire::{self, End};

/// Send the app's image and release to every server, and switch to it without dropping a request
#[derive(Debug, clap::Args)]
pub struct PushArgs {
    #[command(flatten)]
    reach: ReachArgs,
    /// Image in the local Docker (default: the configuration's image, tagged with the version or latest)
    #[arg(long, value_name = "NAME")]
    image: Option<String>,
    #[command(flatten)]
    canary: CanaryArgs,
}

/// What a push brings, whichever host it goes to.
struct Cargo<'a> {
    project: &'a Project,
    local: &'a Local,
    /// Values of every secret that any host needs.
    secrets: BTreeMap<String, String>,
    error_pages: BTreeMap<String, String>,
    canary: Option<Canary>,
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
    let names: BTreeSet<String> = hosts.iter().flat_map(|host| secret_names(config, host)).collect();
    let secrets = project.secrets(&names)?;
    let error_pages = release::error_pages(config, &project.directory)?;
    args.canary.resolve(&project.loaded.extension, true)?;
    let local = Local::find(config, args.image.as_deref()).await?;
    local.check_service(&config.service);
    ui::note(&format!(
        "{} {} from the image {}",
        project.app_id(),
        config.version,
        local.name()
    ));

    let mut hooks = Hooks::new(&project, globals, "deploy", &hosts);
    hooks.run("pre-connect")?;
    let way = Way {
        project: &project,
        reach: &args.reach,
        settings: project.ssh(),
    };
    let mut reached = way.connect(&hosts).await?;
    let serves = reached.iter().any(|host| host.app.current.is_some());
    let cargo = Cargo {
        project: &project,
        local: &local,
        secrets,
        error_pages,
        canary: args.canary.resolve(&project.loaded.extension, serves)?,
    };
    let releases = join_all(reached.iter_mut().map(|host| cargo.bring(&way, host))).await;
    let releases: Vec<Release> = releases.into_iter().collect::<anyhow::Result<_>>()?;

    hooks.locked();
    hooks.run("pre-deploy")?;
    let verbs = releases
        .into_iter()
        .map(|release| Verb::Deploy(Box::new(release)));
    let changes: Vec<(Host, Verb)> = reached.into_iter().zip(verbs).collect();
    let first = changes.first().map(|(host, _)| host.link.clone());
    fleet::roll_out(&way, &Order::of(config), &hooks, changes).await?;
    if let Some(link) = first {
        tell_trust(&link, config).await;
    }
    hooks.run_after("post-deploy", begun.elapsed())
}

impl Cargo<'_> {
    /// Sends the image to one host, as far as it lacks it, and makes its release.
    async fn bring(&self, way: &Way<'_>, host: &mut Host) -> anyhow::Result<Release> {
        let config = &self.project.loaded.config;
        self.local.check_platform(&host.info.platform)?;
        let prepared = self.local.prepare(&host.link, &host.info.platform).await?;
        let described = image::describe(config, &prepared)?;
        // The release is made before the upload, so that a value it cannot carry costs no upload.
        let names = secret_names(config, &host.name);
        let secrets = self.secrets.iter().filter(|(name, _)| names.contains(*name));
        let making = Making {
            host: &host.name,
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
        let sent = image::send(&host.link, &prepared, &described.repository, token).await?;
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
        Ok(release)
    }
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
