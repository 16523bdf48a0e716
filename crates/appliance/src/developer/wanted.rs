//! Which image a deploy brings, wherever it comes from.

use appliance_config::Resolved;
use appliance_push::change::{Image, Platform};
use appliance_push::image::Prepared;

use super::build::{self, Output};
use super::image::{self, ImageArgs, Local};
use super::link::Link;
use super::project::Project;
use super::remote::{self, InRegistry};
use crate::ui;

/// Prefix of `--image` for an image that was pushed to the host through a tunnel.
const ON_HOST: &str = "host:";

/// The image of a deploy.
pub enum Wanted {
    /// From this machine, straight to the host.
    Sent(Local),
    /// From a registry, by the host.
    Pulled(Box<InRegistry>),
    /// There already, under this tag.
    OnHost(String),
}

impl Wanted {
    /// Finds the image, and builds it first, after `before_build`, where that is asked for: there is a Dockerfile, and nothing else is named.
    ///
    /// # Errors
    /// When the build fails, or there is no such image.
    pub async fn find(
        project: &Project,
        args: &ImageArgs,
        before_build: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let config = &project.loaded.config;
        if let Some(tag) = args
            .image
            .as_deref()
            .and_then(|image| image.strip_prefix(ON_HOST))
        {
            return Ok(Wanted::OnHost(tag.to_owned()));
        }
        if !args.skip_push && args.image.is_none() && build::wanted(project) {
            let output = if args.from_registry {
                Output::Registry
            } else {
                Output::Load
            };
            before_build()?;
            build::run(project, output, args.no_cache, "")?;
        }
        if args.from_registry {
            return Ok(Wanted::Pulled(Box::new(InRegistry::find(project).await?)));
        }
        // Of what is built here every version has its name; another image under that name would be nobody's wish.
        let or_latest = !args.skip_push && !build::wanted(project) && !project.version_was_given;
        let found = Local::find(config, args.image.as_deref(), or_latest).await;
        let local = match found {
            // With `-P` Kamal's hosts always pull: what was built elsewhere is in the registry and not here.
            Err(missing) if args.skip_push && args.image.is_none() && !config.registry.local => {
                let found = match InRegistry::find(project).await {
                    Ok(found) => found,
                    Err(error) => {
                        ui::warn(&format!("the registry has it neither: {error:#}"));
                        return Err(missing);
                    }
                };
                return Ok(Wanted::Pulled(Box::new(found)));
            }
            found => found?,
        };
        local.check_service(&config.service);
        Ok(Wanted::Sent(local))
    }

    /// What it is called, for people.
    pub fn name(&self) -> String {
        match self {
            Wanted::Sent(local) => format!("from the image {}", local.name()),
            Wanted::Pulled(found) => format!("from the registry, {}", found.image.digest),
            Wanted::OnHost(tag) => format!("from what was pushed as {tag}"),
        }
    }

    /// A secret that the release has to carry for it, by name.
    pub fn secret(&self) -> Option<(String, String)> {
        match self {
            Wanted::Pulled(found) => Some(found.secret.clone()),
            _ => None,
        }
    }

    /// The image as the release names it on one host, and what has to be sent there first.
    ///
    /// # Errors
    /// When it is not built for the host, or the host cannot be asked.
    pub async fn on(
        &self,
        link: &Link,
        host: &Platform,
        config: &Resolved,
    ) -> anyhow::Result<(Image, Option<Prepared>)> {
        match self {
            Wanted::Sent(local) => {
                local.check_platform(host)?;
                let prepared = local.prepare(link, host, &image::repository(config)?).await?;
                Ok((image::describe(config, &prepared)?, Some(prepared)))
            }
            Wanted::Pulled(found) => Ok((found.on(host)?, None)),
            Wanted::OnHost(tag) => Ok((remote::on_host(link, config, tag, host).await?, None)),
        }
    }
}
