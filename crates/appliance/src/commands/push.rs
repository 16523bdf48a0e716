//! `appliance push`: check, send, sign, start, switch, drain.

use std::collections::BTreeSet;

use anyhow::Context as _;
use appliance_push::change::{AppName, Destination, Expectation, Verb};

use crate::developer::change::{Subject, conclude, submit};
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
}

/// Pushes to every host of the configuration, the primary role's first.
///
/// # Errors
/// When configuration, secrets or image are wrong (nothing was sent), a host cannot be reached or refuses,
/// or the release does not become healthy (the former one serves).
pub async fn run(args: &PushArgs, globals: &Globals) -> anyhow::Result<()> {
    let project = Project::load(globals)?;
    let config = &project.loaded.config;
    let hosts = project.hosts(globals)?;
    // Everything that can be wrong on this side is found before anything is sent.
    let names: BTreeSet<String> = hosts.iter().flat_map(|host| secret_names(config, host)).collect();
    let secrets = project.secrets(&names)?;
    let local = Local::find(config, args.image.as_deref()).await?;
    local.check_service(&config.service);
    ui::note(&format!(
        "{} {} from the image {}",
        project.app_id(),
        config.version,
        local.name()
    ));

    let settings = project.ssh();
    for host in &hosts {
        let mut link = args.reach.connect(host, &settings).await?;
        let info: wire::Host = link.get("/v1/host").await?;
        local.check_platform(&info.platform)?;
        let signer = args.reach.signer(&link, &settings).await?;
        let app: wire::App = link.get(&format!("/v1/apps/{}", project.app_id())).await?;
        let subject = || -> anyhow::Result<Subject> {
            Ok(Subject {
                host: info.id.clone(),
                app: Some(AppName::parse(&config.service).context("service")?),
                destination: project
                    .destination
                    .as_deref()
                    .map(Destination::parse)
                    .transpose()
                    .context("destination")?,
                expects: Expectation::Release(app.current.as_ref().map(|release| release.number)),
            })
        };

        let prepared = local.prepare(&link, &info.platform).await?;
        let described = image::describe(config, &prepared)?;
        // The release is made before the upload, so that a value it cannot carry costs no upload.
        let making = Making {
            host,
            recipient: info.id.as_str(),
            image: described.clone(),
            secrets: &secrets,
            performer: &project.performer,
        };
        let release = release::release(config, &project.loaded.extension, &making)?;

        let step = ui::step(&format!("{host}: upload"));
        let verb = Verb::Upload {
            blobs: prepared.permission(),
        };
        let mut permission = subject()?;
        permission.expects = Expectation::Any;
        let token = match conclude(&link, submit(&link, &signer, permission, verb).await?) {
            Ok(End::Token { token, .. }) => token,
            Ok(other) => anyhow::bail!("{} answers an upload with {other:?}", link.name()),
            Err(error) => {
                step.failed();
                return Err(error);
            }
        };
        let sent = image::send(&link, &prepared, &described.repository, token).await?;
        let summary = prepared.summary();
        step.done(&format!(
            "{} sent ({} of {} layers were there, {} in all)",
            ui::bytes(sent.bytes),
            summary.layers_there,
            summary.layers,
            ui::bytes(summary.bytes)
        ));

        // The upload has ways of its own to outlive a broken connection; what follows needs one that lives.
        if sent.reconnects > 0 || link.client().is_closed() {
            link = args.reach.connect(host, &settings).await?;
        }
        let step = ui::step(&format!("{host}: rollout"));
        let end = submit(&link, &signer, subject()?, Verb::Deploy(Box::new(release))).await?;
        match conclude(&link, end) {
            Ok(End::Done { message, .. }) => step.done(&message),
            Ok(_) => step.done(""),
            Err(error) => {
                step.failed();
                return Err(error);
            }
        }
        tell_trust(&link, config).await;
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
