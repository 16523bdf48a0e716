//! Images on this host: our own registry's store, and Docker's copy of what runs.
//!
//! Docker pulls from a listener on the loopback that lives as long as one pull and asks for a password made for it.
//! Images are found by manifest digest; tags are for people.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use appliance_containers::EngineError;
use appliance_containers::engine::{Credentials, Engine, ImageInfo, PullRequest};
use appliance_push::change::{Digest, Image, RemoteRegistry, Repository, Tag};
use appliance_push::registry::{
    Action, AnswerBody, Grant, Grants, Loopback, LoopbackError, Registry, Scope, Token,
};
use appliance_push::store::{
    Compression, GcOptions, HaveAnswer, HaveQuery, Limits, Manifest, Reference, Store, StoreError,
};
use http::{Request, Response};
use hyper::body::Incoming;
use jiff::{SignedDuration, Timestamp};

use super::apps::Apps;

/// Content used more recently stays: whoever failed may push the same again.
pub const MIN_AGE: Duration = Duration::from_secs(6 * 3600);
/// The same where the disk is full.
pub const MIN_AGE_FULL: Duration = Duration::from_secs(1800);
/// A push that nobody heard of for so long is none under way; until then all that it brings stays.
const IDLE_PUSH: Duration = Duration::from_secs(1800);
/// Unfinished uploads that nobody continued this long are given up.
const IDLE_UPLOAD: Duration = Duration::from_secs(24 * 3600);
/// Prefix of the names under which our loopback registry's images are known to Docker.
const LOOPBACK: &str = "127.0.0.1:";

/// The label with the service's name on an image that Kamal's builder or ours made.
const SERVICE: &str = "service";

/// Why an image is not here.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// The store.
    #[error("the image store")]
    Store(#[from] StoreError),
    /// Docker.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The listener Docker pulls from.
    #[error(transparent)]
    Loopback(#[from] LoopbackError),
    /// Neither here nor in any registry.
    #[error("the image {repository}@{digest} is not on this host; push it again")]
    Missing {
        /// Its repository.
        repository: Repository,
        /// Its manifest.
        digest: Digest,
    },
    /// The disk has damaged it.
    #[error(
        "the image {repository}@{digest} is damaged on this host's disk ({} parts, which are thrown away); push it again, and look at the disk",
        parts.len()
    )]
    Damaged {
        /// Its repository.
        repository: Repository,
        /// Its manifest.
        digest: Digest,
        /// What is damaged or gone.
        parts: Vec<Digest>,
    },
    /// The release does not carry the registry's password.
    #[error("the release carries no secret {0} for the registry")]
    NoPassword(String),
    /// A task was lost.
    #[error("the image store's thread ended")]
    Thread(#[from] tokio::task::JoinError),
    /// What Docker pulled is not what was asked for.
    #[error("Docker pulled {reference} but knows no image of that digest")]
    Vanished {
        /// What was pulled.
        reference: String,
    },
}

/// An image in Docker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Here {
    /// Docker's id.
    pub id: String,
    /// `repository:tag`, for people.
    pub name: String,
}

/// The images of this host.
pub struct Images {
    store: Store,
    registry: Registry,
    grants: Grants,
    docker: Arc<dyn Engine>,
}

impl Images {
    /// Opens the store in `directory`.
    ///
    /// # Errors
    /// When the directory cannot be used.
    pub fn open(directory: &Path, docker: Arc<dyn Engine>) -> Result<Self, StoreError> {
        let store = Store::open(directory, Limits::default())?;
        let grants = Grants::default();
        let known = grants.clone();
        let registry = Registry::new(
            store.clone(),
            Arc::new(move |parts, repository, action| match action {
                // Whoever reaches the socket may look; the agent has checked their key before.
                Action::Read => Ok(0),
                _ => known.check(parts, repository, action, Timestamp::now()),
            }),
        );
        Ok(Self {
            store,
            registry,
            grants,
            docker,
        })
    }

    /// The content-addressed store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The registry, for what it answers beside `/v2`.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Answers a request below `/v2`; where the repository is none that the peer may look at, only a token opens it.
    pub async fn serve(&self, request: Request<Incoming>, visible: bool) -> Response<AnswerBody> {
        if visible {
            return self.registry.answer(request).await;
        }
        let (parts, body) = request.into_parts();
        let name = super::api::repository_of(parts.uri.path()).and_then(|name| Repository::parse(name).ok());
        match self
            .grants
            .check(&parts, name.as_ref(), &Action::Continue, Timestamp::now())
        {
            Ok(_) => self.registry.answer(Request::from_parts(parts, body)).await,
            Err(denied) => super::reads::hidden(&format!("this repository: {denied}")),
        }
    }

    /// Allows writing what `scope` says until `expires`.
    pub fn allow(
        &self,
        holder: &appliance_push::change::Fingerprint,
        scope: Scope,
        expires: Timestamp,
    ) -> Token {
        let grant = Grant {
            holder: holder.clone(),
            expires,
            scope,
        };
        self.grants.issue(grant, Timestamp::now())
    }

    /// Takes back what a removed key was allowed.
    pub fn revoke(&self, holder: &appliance_push::change::Fingerprint) {
        self.grants.revoke_holder(holder);
    }

    /// What of an image is here already. Blocks on the disk.
    ///
    /// # Errors
    /// When the store fails.
    pub fn have(&self, query: &HaveQuery) -> Result<HaveAnswer, StoreError> {
        // Every Docker reads these two; zstd would need Docker 23 and is decided when it pays.
        self.store.have(query, &[Compression::Gzip, Compression::None])
    }

    /// Whether the image was uploaded to this host.
    ///
    /// # Errors
    /// When the store fails.
    pub fn has(&self, image: &Image) -> Result<bool, StoreError> {
        let reference = Reference::Digest(image.digest.clone());
        match self.store.manifest(&image.repository, &reference) {
            Ok(_) => Ok(true),
            Err(StoreError::ManifestUnknown { .. } | StoreError::BlobUnknown { .. }) => Ok(false),
            Err(StoreError::DigestMismatch { .. }) => {
                tracing::error!("the manifest {} is damaged on the disk", image.digest);
                self.store.drop_if_damaged(&image.digest)?;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether Docker has an image or can have it: the store's copy is as it was sent, and the disk has room.
    ///
    /// What is damaged is thrown away, so that it is sent again by the next push.
    ///
    /// # Errors
    /// When it is damaged, the disk is full, or the store fails.
    pub async fn obtainable(&self, image: &Image) -> Result<(), ImagesError> {
        let needed = self.in_docker(image).await?.is_none();
        if needed {
            self.store.room()?.check(1)?;
        }
        if image.registry.is_some() {
            return Ok(());
        }
        match self.damaged(image, false).await? {
            Some(error) if needed => Err(error),
            Some(error) => {
                tracing::warn!("{}", super::chain(&error));
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// What is wrong with the store's copy; `thorough` reads all of it.
    async fn damaged(&self, image: &Image, thorough: bool) -> Result<Option<ImagesError>, ImagesError> {
        let (store, image) = (self.store.clone(), image.clone());
        let look = move || {
            let reference = Reference::Digest(image.digest.clone());
            let manifest = match store.manifest(&image.repository, &reference) {
                Ok(stored) => Manifest::parse(&stored.bytes)?,
                // Docker's copy is the only one, or `has` tells it.
                Err(StoreError::ManifestUnknown { .. }) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let parts = store.drop_damaged(&manifest, thorough)?;
            Ok((!parts.is_empty()).then_some(ImagesError::Damaged {
                repository: image.repository,
                digest: image.digest,
                parts,
            }))
        };
        tokio::task::spawn_blocking(look).await?
    }

    /// Makes sure that Docker has the image under its name.
    ///
    /// # Errors
    /// When it is nowhere to be had, or Docker does not take it.
    pub async fn fetch(
        &self,
        image: &Image,
        secrets: &BTreeMap<String, String>,
    ) -> Result<Here, ImagesError> {
        let name = name(&image.repository, &image.tag);
        let found = match self.in_docker(image).await? {
            Some(found) => found,
            None => {
                let reference = match &image.registry {
                    Some(registry) => self.pull_remote(image, registry, secrets).await?,
                    None => self.pull_own(image).await?,
                };
                match self.in_docker(image).await? {
                    Some(found) => found,
                    None => return Err(ImagesError::Vanished { reference }),
                }
            }
        };
        if !found.tags.contains(&name) {
            self.docker
                .tag_image(&found.id, image.repository.as_str(), image.tag.as_str())
                .await?;
        }
        Ok(Here { id: found.id, name })
    }

    /// By the manifest's digest; an image that never saw a registry has none, and is known by its id.
    async fn in_docker(&self, image: &Image) -> Result<Option<ImageInfo>, EngineError> {
        let (digest, id) = (&image.digest, image.config.as_ref());
        let images = self.docker.images().await?;
        Ok(images.into_iter().find(|image| {
            image
                .digests
                .iter()
                .any(|name| digest_of(name) == Some(digest.as_str()))
                || (image.digests.is_empty() && id.is_some_and(|id| image.id == id.as_str()))
        }))
    }

    async fn pull_own(&self, image: &Image) -> Result<String, ImagesError> {
        if !self.has(image)? {
            return Err(ImagesError::Missing {
                repository: image.repository.clone(),
                digest: image.digest.clone(),
            });
        }
        let listener = Loopback::start(self.store.clone(), 0).await?;
        let reference = listener.reference(&image.repository, &image.digest);
        let request = PullRequest {
            reference: reference.clone(),
            credentials: Some(Credentials {
                username: listener.credentials().username.clone(),
                password: listener.credentials().password.clone(),
                server: listener.address().to_string(),
            }),
            platform: None,
        };
        if let Err(error) = self.docker.pull(&request).await {
            // Docker sees damage as a digest that is not the one it asked for; only a close look tells which part it is.
            return Err(match self.damaged(image, true).await? {
                Some(damaged) => damaged,
                None => error.into(),
            });
        }
        Ok(reference)
    }

    async fn pull_remote(
        &self,
        image: &Image,
        registry: &RemoteRegistry,
        secrets: &BTreeMap<String, String>,
    ) -> Result<String, ImagesError> {
        let reference = format!("{}/{}@{}", registry.server, image.repository, image.digest);
        let credentials = match (&registry.username, &registry.password_secret) {
            (Some(username), Some(secret)) => Some(Credentials {
                username: username.clone(),
                password: secrets
                    .get(secret.as_str())
                    .cloned()
                    .ok_or_else(|| ImagesError::NoPassword(secret.to_string()))?,
                server: registry.server.clone(),
            }),
            _ => None,
        };
        let request = PullRequest {
            reference: reference.clone(),
            credentials,
            platform: None,
        };
        self.docker.pull(&request).await?;
        Ok(reference)
    }

    /// Removes images that no release at hand names, from Docker and from the store, there only content that was not used
    /// for `min_age` and that no push under way brings.
    ///
    /// # Errors
    /// When the store or the ledgers fail; images that Docker wants to keep are left to it.
    pub async fn collect(&self, apps: &Apps, min_age: Duration) -> anyhow::Result<()> {
        let mut roots = BTreeSet::new();
        let mut tags = BTreeSet::new();
        let mut repositories = BTreeSet::from([LOOPBACK.to_owned()]);
        for app in apps.ids()? {
            for number in apps.read(&app)?.releases {
                let image = apps.release(&app, number)?.release.image;
                tags.insert(name(&image.repository, &image.tag));
                if let Some(registry) = &image.registry {
                    repositories.insert(format!("{}/{}@", registry.server, image.repository));
                }
                roots.insert(image.digest);
            }
        }
        // What a container was made from stays whole, its names included: an adopted host's way back needs them.
        let containers = self.docker.list(&[]).await?;
        let used: BTreeSet<&str> = containers.iter().map(|one| one.image_id.as_str()).collect();
        for found in self.docker.images().await? {
            if used.contains(found.id.as_str()) || !is_left_over(&found, &repositories, &roots) {
                continue;
            }
            for reference in found.tags.iter().chain(&found.digests) {
                if !tags.contains(reference)
                    && let Err(error) = self.docker.remove_image(reference).await
                {
                    tracing::debug!("Docker keeps {reference}: {}", super::chain(&error));
                }
            }
        }
        let (store, grants) = (self.store.clone(), self.grants.clone());
        let report = tokio::task::spawn_blocking(move || {
            let now = SystemTime::now();
            store.clean_uploads(now, IDLE_UPLOAD)?;
            // A layer that came an hour ago waits for the one that is still on its way.
            let writing = store.writing(now, IDLE_PUSH)?;
            let idle = SignedDuration::try_from(IDLE_PUSH).expect("half an hour is in range");
            roots.extend(grants.under_way(Timestamp::now(), idle, &writing));
            let options = GcOptions {
                roots,
                keep_tagged: true,
                min_age,
            };
            store.collect(&options, now)
        })
        .await??;
        tracing::info!(
            "the image store is tidy: {} blobs with {} bytes removed",
            report.removed,
            report.freed
        );
        Ok(())
    }
}

/// Whether an image in Docker is of ours and named by no release at hand (`roots`).
///
/// Of ours is what came from our own registry, and from a repository that one of our apps is pulled from
/// if it also carries the label that Kamal's builder and ours put on every image.
fn is_left_over(found: &ImageInfo, repositories: &BTreeSet<String>, roots: &BTreeSet<Digest>) -> bool {
    let ours = found.digests.iter().any(|name| {
        repositories.iter().any(|repository| {
            name.starts_with(repository) && (repository == LOOPBACK || found.labels.contains_key(SERVICE))
        })
    });
    let needed = found
        .digests
        .iter()
        .any(|name| digest_of(name).is_some_and(|digest| roots.iter().any(|root| root.as_str() == digest)));
    ours && !needed
}

fn name(repository: &Repository, tag: &Tag) -> String {
    format!("{repository}:{tag}")
}

/// The digest of `repository@sha256:…`.
fn digest_of(name: &str) -> Option<&str> {
    name.split_once('@').map(|(_, digest)| digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_images_of_ours_that_no_release_names_are_left_over() {
        let digest = |letter: &str| format!("sha256:{}", letter.repeat(64));
        let repositories = [LOOPBACK, "ghcr.io/ann/demo@"].map(str::to_owned).into();
        let roots = [Digest::parse(&digest("a")).expect("digest")].into();
        let found = |name: String, labelled: bool| {
            let labels = labelled.then(|| (SERVICE.to_owned(), "demo".to_owned()));
            let image = ImageInfo {
                digests: vec![name],
                labels: labels.into_iter().collect(),
                ..ImageInfo::default()
            };
            is_left_over(&image, &repositories, &roots)
        };
        assert!(found(format!("127.0.0.1:4000/demo@{}", digest("b")), false));
        assert!(
            !found(format!("127.0.0.1:4000/demo@{}", digest("a")), false),
            "a release"
        );
        assert!(found(format!("ghcr.io/ann/demo@{}", digest("b")), true));
        assert!(
            !found(format!("ghcr.io/ann/demo@{}", digest("a")), true),
            "a release"
        );
        assert!(
            !found(format!("ghcr.io/ann/demo@{}", digest("b")), false),
            "not built for a service"
        );
        assert!(
            !found(format!("postgres@{}", digest("b")), true),
            "somebody else's"
        );
    }
}
