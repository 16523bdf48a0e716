//! Whether an image will fit, asked before bytes move and before a release gets a number.
//!
//! An image lies here twice: compressed in our store, and unpacked where Docker keeps its data, about twice as large.
//! The two may be on different file systems, and each is asked for its own part.
//! What Docker has already costs nothing again; where that is too little room, what nobody needs is given up first.

use std::collections::BTreeSet;

use appliance_push::change::{Digest, Image};
use appliance_push::store::{Reference, Room, Store, StoreError};
use serde::Deserialize;

use super::{Agent, chain};
use crate::wire::End;

/// Unpacked, a layer is about this many times as large as what travels.
const UNPACKED: u64 = 2;
/// Bytes of the largest image configuration that is looked into.
const CONFIG: u64 = 4 << 20;

/// Bytes that something takes: in our store, and in Docker's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needed {
    /// Compressed, in our store.
    pub store: u64,
    /// Unpacked, in Docker's.
    pub engine: u64,
}

impl Needed {
    /// Blobs of this many bytes together, none of which is here yet.
    pub fn uploaded(bytes: u64) -> Self {
        Self {
            store: bytes,
            engine: bytes.saturating_mul(UNPACKED),
        }
    }
}

/// Room in our store, and in Docker's where that is another file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rooms {
    store: Room,
    engine: Option<Room>,
}

impl Rooms {
    /// Where it does not fit, with the figures.
    fn check(self, needed: Needed) -> Result<(), (&'static str, StoreError)> {
        let Some(engine) = self.engine else {
            let both = needed.store.saturating_add(needed.engine);
            return self.store.check(both).map_err(|error| ("", error));
        };
        self.store.check(needed.store).map_err(|error| ("", error))?;
        engine
            .check(needed.engine)
            .map_err(|error| ("where Docker keeps its data: ", error))
    }
}

/// The refusal of what will not fit, after everything of ours that nobody needs was given up.
///
/// # Errors
/// When the store's file system cannot be asked.
pub async fn refusal(agent: &Agent, needed: Needed) -> Result<Option<End>, StoreError> {
    if needed == Needed::default() || rooms(agent).await?.check(needed).is_ok() {
        return Ok(None);
    }
    super::disk::tidy(agent).await;
    Ok(rooms(agent)
        .await?
        .check(needed)
        .err()
        .map(|(place, error)| End::Refused {
            code: "disk-full".to_owned(),
            message: format!("{place}{}", chain(&error)),
            next:
                "appliance prune all, or on the host: docker system df, and free some room; then push again"
                    .to_owned(),
        }))
}

async fn rooms(agent: &Agent) -> Result<Rooms, StoreError> {
    let store = agent.images.store().room()?;
    // Where Docker does not say, it is taken to lie beside us: that asks for more, not for less.
    let room = super::disk::docker_room(agent, &agent.state.join("images")).await;
    let engine = room.map(|(free, _)| Room {
        free,
        reserve: store.reserve,
        promised: 0,
    });
    Ok(Rooms { store, engine })
}

/// What a release's image will still take, once Docker fetches it.
///
/// Nobody says how large an image in another registry is: there the reserve has to be whole, and no more is known.
pub async fn of(agent: &Agent, image: &Image) -> Needed {
    // Without Docker the rollout itself says so, better than a forecast could.
    let Ok(images) = agent.docker.images().await else {
        return Needed::default();
    };
    let there = images.iter().any(|found| {
        found
            .digests
            .iter()
            .any(|name| name.ends_with(image.digest.as_str()))
            || image.config.as_ref().is_some_and(|id| found.id == id.as_str())
    });
    if there {
        return Needed::default();
    }
    if image.registry.is_some() {
        return Needed { store: 0, engine: 1 };
    }
    let layers: BTreeSet<&str> = images
        .iter()
        .flat_map(|image| &image.diff_ids)
        .map(String::as_str)
        .collect();
    let bytes = missing(agent.images.store(), image, &layers).unwrap_or(0);
    Needed {
        store: 0,
        engine: bytes.saturating_mul(UNPACKED),
    }
}

#[derive(Deserialize)]
struct Manifest {
    config: Blob,
    layers: Vec<Blob>,
}

#[derive(Deserialize)]
struct Blob {
    digest: Digest,
    size: u64,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// Compressed bytes of those layers that Docker does not have; `None` if the store does not say.
fn missing(store: &Store, image: &Image, there: &BTreeSet<&str>) -> Option<u64> {
    let reference = Reference::Digest(image.digest.clone());
    let manifest = store.manifest(&image.repository, &reference).ok()?;
    let manifest: Manifest = serde_json::from_slice(&manifest.bytes).ok()?;
    let config = store.read_blob(&manifest.config.digest, CONFIG).ok()?;
    let config: Config = serde_json::from_slice(&config).ok()?;
    let layers = manifest.layers.iter().zip(&config.rootfs.diff_ids);
    Some(
        layers
            .filter(|(_, id)| !there.contains(id.as_str()))
            .map(|(layer, _)| layer.size)
            .sum(),
    )
}

#[cfg(test)]
mod tests {
    use appliance_push::change::Repository;
    use appliance_push::store::Limits;

    use super::*;

    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    const GIB: u64 = 1 << 30;

    fn room(free: u64) -> Room {
        Room {
            free,
            reserve: GIB,
            promised: 0,
        }
    }

    #[test]
    fn one_file_system_has_to_hold_both_copies_and_two_hold_their_own() {
        let needed = Needed::uploaded(GIB);
        let together = |free| Rooms {
            store: room(free),
            engine: None,
        };
        assert!(together(4 * GIB).check(needed).is_ok());
        assert!(together(4 * GIB - 1).check(needed).is_err());
        let apart = Rooms {
            store: room(2 * GIB),
            engine: Some(room(3 * GIB)),
        };
        assert!(apart.check(needed).is_ok());
        let full = Rooms {
            engine: Some(room(3 * GIB - 1)),
            ..apart
        };
        let (place, error) = full.check(needed).expect_err("refused");
        assert!(place.contains("Docker"), "{place}{error}");
    }

    #[test]
    fn a_pull_of_unknown_size_begins_only_while_the_reserve_is_whole() {
        let unknown = Needed { store: 0, engine: 1 };
        let rooms = |free| Rooms {
            store: room(20 * GIB),
            engine: Some(room(free)),
        };
        assert!(rooms(2 * GIB).check(unknown).is_ok());
        assert!(rooms(GIB / 2).check(unknown).is_err());
    }

    #[test]
    fn only_layers_that_docker_lacks_are_counted() {
        let directory = tempfile::tempdir().expect("directory");
        let limits = Limits {
            reserve: 0,
            ..Limits::default()
        };
        let store = Store::open(directory.path(), limits).expect("opens");
        let repository = Repository::parse("app").expect("repository");
        let put = |bytes: &[u8]| -> Digest {
            let upload = store.begin(&repository, None, u64::MAX, "me").expect("begins");
            store.append(&upload.id, None, bytes).expect("is taken");
            store
                .finish(&upload.id, &Digest::of(bytes))
                .expect("is whole")
                .digest
        };
        let base = put(&[1; 700]);
        let top = put(&[2; 30]);
        let config = br#"{"rootfs":{"type":"layers","diff_ids":["sha256:base","sha256:top"]}}"#;
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": put(config), "size": config.len()},
            "layers": [
                {"mediaType": LAYER, "digest": base, "size": 700},
                {"mediaType": LAYER, "digest": top, "size": 30},
            ],
        })
        .to_string();
        let digest = Digest::of(manifest.as_bytes());
        store
            .put_manifest(
                &repository,
                &Reference::Digest(digest.clone()),
                MANIFEST,
                manifest.as_bytes(),
            )
            .expect("is stored");
        let image: Image = serde_json::from_value(serde_json::json!({
            "repository": "app", "digest": digest, "tag": "v1",
            "platform": {"os": "linux", "architecture": "amd64"},
        }))
        .expect("image");
        assert_eq!(missing(&store, &image, &BTreeSet::new()), Some(730));
        assert_eq!(missing(&store, &image, &["sha256:base"].into()), Some(30));
        let other = Image {
            digest: Digest::of(b"other"),
            ..image
        };
        assert_eq!(missing(&store, &other, &BTreeSet::new()), None);
    }
}
