//! Verbs about images.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::auth::DockerCredentials;
use bollard::errors::Error;
use bollard::query_parameters::{
    CreateImageOptions, ImportImageOptions, ListImagesOptions, PushImageOptions, RemoveImageOptions,
    TagImageOptions,
};
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};

use super::{Docker, translate};
use crate::engine::{Credentials, ImageInfo, PullRequest, RemoteImage};
use crate::error::EngineError;

/// Until a pull or load begins to answer; the daemon may read a whole archive first.
const LONG: Duration = Duration::from_secs(3600);

/// The text goes into the path of a request.
fn checked<'a>(doing: &str, reference: &'a str) -> Result<&'a str, EngineError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./:@-".contains(c);
    let good = reference.starts_with(|c: char| c.is_ascii_alphanumeric())
        && reference.chars().all(plain)
        && !reference
            .split('/')
            .any(|part| part.is_empty() || part == "." || part == "..");
    good.then_some(reference).ok_or_else(|| EngineError::Malformed {
        doing: doing.to_owned(),
        given: reference.to_owned(),
    })
}

fn credentials(request: &PullRequest) -> Option<DockerCredentials> {
    request.credentials.as_ref().map(login)
}

fn login(credentials: &Credentials) -> DockerCredentials {
    DockerCredentials {
        username: Some(credentials.username.clone()),
        password: Some(credentials.password.clone()),
        serveraddress: Some(credentials.server.clone()),
        ..DockerCredentials::default()
    }
}

impl Docker {
    /// Pushes `repository:tag`, a name that the image has, to the registry that it names.
    ///
    /// # Errors
    /// When the name is none, Docker cannot be reached, or the registry cannot or refuses.
    pub async fn push_image(
        &self,
        repository: &str,
        tag: &str,
        credentials: &Credentials,
    ) -> Result<(), EngineError> {
        let doing = format!("pushing {repository}:{tag}");
        checked(&doing, repository)?;
        let client = self.client(&doing).await?.with_timeout(LONG);
        let options = PushImageOptions {
            tag: Some(tag.to_owned()),
            ..PushImageOptions::default()
        };
        let pushed = client.push_image(repository, Some(options), Some(login(credentials)));
        let mut progress = std::pin::pin!(pushed);
        while let Some(step) = progress.next().await {
            step.map_err(|error| self.failure(&doing, error))?;
        }
        Ok(())
    }

    /// Unpacked sizes of an image's layers in bytes, lowest first; Docker does not tell of empty ones.
    ///
    /// # Errors
    /// When the name is none, or Docker cannot be reached or has no such image.
    pub async fn layer_sizes(&self, image: &str) -> Result<Vec<u64>, EngineError> {
        let doing = format!("asking for the layers of {image}");
        checked(&doing, image)?;
        let client = self.client(&doing).await?;
        let steps = client
            .image_history(image)
            .await
            .map_err(|error| self.failure(&doing, error))?;
        let sizes = steps
            .iter()
            .rev()
            .filter_map(|step| u64::try_from(step.size).ok());
        Ok(sizes.filter(|size| *size > 0).collect())
    }

    pub(super) async fn pull_image(&self, request: &PullRequest) -> Result<ImageInfo, EngineError> {
        let reference = &request.reference;
        let doing = format!("pulling image {reference}");
        checked(&doing, reference)?;
        let client = self.client(&doing).await?.with_timeout(LONG);
        let options = CreateImageOptions {
            // A reference without a tag would mean every tag.
            from_image: Some(with_tag(reference)),
            platform: request.platform.clone().unwrap_or_default(),
            ..CreateImageOptions::default()
        };
        let mut progress = std::pin::pin!(client.create_image(Some(options), None, credentials(request)));
        while let Some(step) = progress.next().await {
            step.map_err(|error| self.failure(&doing, error))?;
        }
        let found = self.image(reference).await?;
        found.ok_or_else(|| EngineError::NotFound {
            doing,
            message: "it is not there after the pull".to_owned(),
        })
    }

    pub(super) async fn resolve_remote(&self, request: &PullRequest) -> Result<RemoteImage, EngineError> {
        let reference = &request.reference;
        let doing = format!("asking the registry for {reference}");
        checked(&doing, reference)?;
        let client = self.client(&doing).await?;
        let found = client
            .inspect_registry_image(reference, credentials(request))
            .await
            .map_err(|error| self.failure(&doing, error))?;
        let digest = found.descriptor.digest.ok_or(EngineError::Incomplete {
            doing,
            what: "Descriptor.digest",
        })?;
        let platforms = found.platforms.into_iter().filter_map(|platform| {
            let variant = platform.variant.filter(|variant| !variant.is_empty());
            Some((platform.os?, platform.architecture?, variant))
        });
        Ok(RemoteImage {
            digest,
            platforms: platforms.collect(),
        })
    }

    pub(super) async fn image(&self, reference: &str) -> Result<Option<ImageInfo>, EngineError> {
        let doing = format!("looking at image {reference}");
        checked(&doing, reference)?;
        let client = self.client(&doing).await?;
        match client.inspect_image(reference).await {
            Ok(found) => translate::image(found)
                .map(Some)
                .ok_or(EngineError::Incomplete { doing, what: "Id" }),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
            Err(error) => Err(self.failure(&doing, error)),
        }
    }

    pub(super) async fn every_image(&self) -> Result<Vec<ImageInfo>, EngineError> {
        const DOING: &str = "listing images";
        const AT_ONCE: usize = 8;
        let client = self.client(DOING).await?;
        let listed = client
            .list_images(None::<ListImagesOptions>)
            .await
            .map_err(|error| self.failure(DOING, error))?;
        let found: Vec<Option<ImageInfo>> = stream::iter(listed)
            .map(|summary| async move { self.image(&summary.id).await })
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        // One may have been removed in between.
        Ok(found.into_iter().flatten().collect())
    }

    pub(super) async fn name_image(
        &self,
        image: &str,
        repository: &str,
        tag: &str,
    ) -> Result<(), EngineError> {
        let doing = format!("naming image {image} {repository}:{tag}");
        checked(&doing, image)?;
        let client = self.client(&doing).await?;
        let options = TagImageOptions {
            repo: Some(repository.to_owned()),
            tag: Some(tag.to_owned()),
        };
        client
            .tag_image(image, Some(options))
            .await
            .map_err(|error| self.failure(&doing, error))
    }

    pub(super) async fn drop_image(&self, reference: &str) -> Result<bool, EngineError> {
        let doing = format!("removing image {reference}");
        checked(&doing, reference)?;
        let client = self.client(&doing).await?;
        match client
            .remove_image(reference, None::<RemoveImageOptions>, None)
            .await
        {
            Ok(_) => Ok(true),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(false),
            Err(error) => Err(self.failure(&doing, error)),
        }
    }

    pub(super) fn save_images<'a>(
        &'a self,
        references: &'a [&'a str],
    ) -> BoxStream<'a, Result<Bytes, EngineError>> {
        let doing = format!("exporting image {}", references.join(", "));
        stream::once(async move {
            for reference in references {
                checked(&doing, reference)?;
            }
            let client = self.client(&doing).await?;
            let archive = client.export_images(references);
            Ok(archive.map_err(move |error| self.failure(&doing, error)).boxed())
        })
        .try_flatten()
        .boxed()
    }

    pub(super) async fn load_archive(
        &self,
        archive: BoxStream<'static, io::Result<Bytes>>,
    ) -> Result<Vec<String>, EngineError> {
        const DOING: &str = "loading an image archive";
        let client = self.client(DOING).await?.with_timeout(LONG);
        // The client library reports a failing input as a broken connection; the reason is kept here.
        let input_error: Arc<Mutex<Option<io::Error>>> = Arc::default();
        let noted = Arc::clone(&input_error);
        let archive = archive.map_err(move |error| {
            let told = io::Error::new(error.kind(), error.to_string());
            *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            told
        });
        let options = ImportImageOptions {
            quiet: true,
            ..ImportImageOptions::default()
        };
        let mut answers = client.import_image_stream(options, archive, None);
        let mut loaded = Vec::new();
        while let Some(answer) = answers.next().await {
            let text = match answer {
                Ok(answer) => answer.stream.unwrap_or_default(),
                Err(error) => {
                    let input = input_error.lock().unwrap_or_else(PoisonError::into_inner).take();
                    return Err(match input {
                        Some(source) => EngineError::Input {
                            doing: DOING.to_owned(),
                            source,
                        },
                        None => self.failure(DOING, error),
                    });
                }
            };
            loaded.extend(text.lines().filter_map(loaded_name));
        }
        Ok(loaded)
    }
}

/// `Loaded image: name:tag` or `Loaded image ID: sha256:…`.
fn loaded_name(line: &str) -> Option<String> {
    let rest = line.trim().strip_prefix("Loaded image")?;
    let rest = rest.strip_prefix(" ID").unwrap_or(rest);
    rest.strip_prefix(": ").map(str::to_owned)
}

fn with_tag(reference: &str) -> String {
    let name = reference.rsplit('/').next().unwrap_or(reference);
    if name.contains([':', '@']) {
        reference.to_owned()
    } else {
        format!("{reference}:latest")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_cannot_leave_its_place_in_the_path() {
        for bad in [
            "", "../etc", "a/../b", "a//b", "/a", "a?x=1", "a#b", "a b", "a%2fb", "-a",
        ] {
            assert!(checked("t", bad).is_err(), "{bad:?}");
        }
        for good in [
            "app",
            "127.0.0.1:5000/app@sha256:00ff",
            "ghcr.io/a/b_c:v1.2-3",
            "sha256:00ff",
        ] {
            assert!(checked("t", good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn only_a_bare_name_gets_the_tag_latest() {
        assert_eq!(with_tag("localhost:5000/app"), "localhost:5000/app:latest");
        assert_eq!(with_tag("app:v1"), "app:v1");
        assert_eq!(with_tag("app@sha256:00"), "app@sha256:00");
    }

    #[test]
    fn what_docker_says_it_loaded() {
        assert_eq!(loaded_name("Loaded image: a/b:c\n"), Some("a/b:c".to_owned()));
        assert_eq!(
            loaded_name("Loaded image ID: sha256:00"),
            Some("sha256:00".to_owned())
        );
        assert_eq!(loaded_name("Loading layer"), None);
    }
}
