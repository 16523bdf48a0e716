//! Images that this machine does not send: in a registry the hosts pull from, or on the host already.

use anyhow::Context as _;
use appliance_config::model::{Credential, Resolved};
use appliance_containers::Docker;
use appliance_containers::engine::{Credentials, Engine as _, PullRequest};
use appliance_push::change::{Digest, EnvName, Image, Platform, RemoteRegistry, Tag};
use appliance_push::store::{Manifest, media_type};
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Empty};

use super::image;
use super::link::Link;
use super::project::Project;
use crate::commands::registry::credentials;
use crate::failure::{Kind, failure};

/// The secret that carries a registry password that the configuration writes out.
pub const PASSWORD: &str = "APPLIANCE_REGISTRY_PASSWORD";
/// Kamal's default registry.
const DOCKER_HUB: &str = "docker.io";

/// An image in the configured registry, with what the hosts need to pull it.
pub struct InRegistry {
    /// As the release names it; the platform is the host's.
    pub image: Image,
    /// The password, under the name the release gives it.
    pub secret: (String, String),
    platforms: Vec<(String, String, Option<String>)>,
}

impl InRegistry {
    /// Asks the registry, through the local Docker, which image the version's tag means now.
    ///
    /// # Errors
    /// When the registry is a local one, refuses, or has no such image.
    pub async fn find(project: &Project) -> anyhow::Result<Self> {
        let config: &Resolved = &project.loaded.config;
        let registry = &config.registry;
        if registry.local {
            return Err(failure(
                Kind::Config,
                "--from-registry: the configured registry is on this machine, where the hosts cannot pull from",
            )
            .hint("appliance deploy (the image goes straight to each host)")
            .into());
        }
        let (username, password) = credentials(project, registry)?;
        let server = registry.server.clone().unwrap_or_else(|| DOCKER_HUB.to_owned());
        let request = PullRequest {
            reference: config.image.absolute.clone(),
            credentials: Some(Credentials {
                username: username.clone(),
                password: password.clone(),
                server: server.clone(),
            }),
            platform: None,
        };
        let found = Docker::at(image::socket()?)
            .resolve(&request)
            .await
            .map_err(|error| {
                failure(Kind::Config, crate::agent::chain(&error))
                    .hint("appliance build push (builds it and pushes it to the registry)")
            })?;
        let secret_name = match &registry.password {
            Some(Credential::Secret { secret }) => secret.clone(),
            _ => PASSWORD.to_owned(),
        };
        let platform = Platform {
            os: "linux".to_owned(),
            architecture: String::new(),
            variant: None,
        };
        Ok(Self {
            image: Image {
                repository: image::repository(config)?,
                digest: Digest::parse(&found.digest).context("the registry's digest")?,
                config: None,
                tag: Tag::parse(&config.version).context("version")?,
                platform,
                registry: Some(RemoteRegistry {
                    server,
                    username: Some(username),
                    password_secret: Some(EnvName::parse(&secret_name).context("registry/password")?),
                }),
            },
            secret: (secret_name, password),
            platforms: found.platforms,
        })
    }

    /// The image for one host.
    ///
    /// # Errors
    /// When it is not built for the host's platform.
    pub fn on(&self, host: &Platform) -> anyhow::Result<Image> {
        let fits = |(os, architecture, _): &(String, String, Option<String>)| {
            *os == host.os && *architecture == host.architecture
        };
        if !self.platforms.is_empty() && !self.platforms.iter().any(fits) {
            let built: Vec<String> = self
                .platforms
                .iter()
                .map(|(os, architecture, _)| format!("{os}/{architecture}"))
                .collect();
            return Err(failure(
                Kind::Config,
                format!(
                    "the image {} is built for {}, the server runs {host}",
                    self.image.tag,
                    built.join(", ")
                ),
            )
            .hint(format!(
                "add {} to builder/arch, then: appliance build push",
                host.architecture
            ))
            .into());
        }
        let mut image = self.image.clone();
        image.platform = host.clone();
        Ok(image)
    }
}

/// An image that was pushed to the host through a tunnel, by its tag.
///
/// # Errors
/// When the host has none of that tag.
pub async fn on_host(link: &Link, config: &Resolved, tag: &str, host: &Platform) -> anyhow::Result<Image> {
    let repository = image::repository(config)?;
    let tag =
        Tag::parse(tag).map_err(|error| failure(Kind::Config, format!("--image host:{tag}: {error}")))?;
    let path = format!("/v2/{repository}/manifests/{tag}");
    let accept = [
        media_type::OCI_MANIFEST,
        media_type::DOCKER_MANIFEST,
        media_type::OCI_INDEX,
        media_type::DOCKER_LIST,
    ];
    let request = Request::builder()
        .method(Method::GET)
        .uri(&path)
        .header(header::ACCEPT, accept.join(", "))
        .body(Empty::new().map_err(|never| match never {}).boxed())
        .context("the manifest's address")?;
    let answer = link.send(request).await?;
    if answer.status() == http::StatusCode::NOT_FOUND {
        return Err(failure(
            Kind::Config,
            format!("{} has no image {repository}:{tag}", link.name()),
        )
        .hint(format!(
            "appliance tunnel -- docker push localhost:5000/{repository}:{tag}"
        ))
        .into());
    }
    let bytes = link
        .checked(&path, answer)
        .await?
        .into_body()
        .collect()
        .await?
        .to_bytes();
    let manifest = Manifest::parse(&bytes).with_context(|| format!("the image {repository}:{tag}"))?;
    if let Some(described) = &manifest.config {
        let path = format!("/v2/{repository}/blobs/{}", described.digest);
        check_platform(&link.get::<BuiltFor>(&path).await?, &tag, host)?;
    }
    Ok(Image {
        repository,
        digest: Digest::of(&bytes),
        config: manifest.config.map(|config| config.digest),
        tag: Tag::parse(&config.version).context("version")?,
        platform: host.clone(),
        registry: None,
    })
}

/// What an image's configuration says of its platform.
#[derive(serde::Deserialize)]
struct BuiltFor {
    os: String,
    architecture: String,
}

fn check_platform(built: &BuiltFor, tag: &Tag, host: &Platform) -> anyhow::Result<()> {
    if built.os == host.os && built.architecture == host.architecture {
        return Ok(());
    }
    Err(failure(
        Kind::Config,
        format!(
            "the image {tag} is built for {}/{}, the server runs {host}",
            built.os, built.architecture
        ),
    )
    .hint(format!("push one that is built for {host}"))
    .into())
}
