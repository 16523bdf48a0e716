//! Images from archives as both kinds of Docker store write them, and from layouts.

use std::collections::BTreeMap;
use std::path::Path;

use super::*;
use crate::sign::tests::fs_write;
use crate::store::{KnownLayer, media_type};

/// A layer's tar with one file.
pub(crate) fn layer_tar(name: &str, content: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, name, content);
    tar.into_inner().expect("tar")
}

fn append(tar: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, content).expect("appended");
}

fn link(tar: &mut tar::Builder<Vec<u8>>, name: &str, target: &str) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    tar.append_link(&mut header, name, target).expect("linked");
}

/// Content that compresses badly, so that layers are as large as they say.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed
        .wrapping_mul(2_862_933_555_777_941_757)
        .wrapping_add(3_037_000_493);
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    std::iter::repeat_with(&mut next).take(length).collect()
}

pub(crate) fn config(layers: &[Vec<u8>]) -> String {
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    serde_json::json!({"architecture": "amd64", "os": "linux", "docker_version": "20.10",
        "config": {"Labels": {"service": "shop"}}, "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    .to_string()
}

/// What `docker save` of the classic store (20.10) writes: layers first, the list last, repeated layers as links.
pub(crate) fn classic_archive(layers: &[Vec<u8>]) -> Vec<u8> {
    let config = config(layers);
    let config_name = format!("{}.json", Digest::of(config.as_bytes()).hex());
    let mut tar = tar::Builder::new(Vec::new());
    let mut first: BTreeMap<Digest, String> = BTreeMap::new();
    let mut names = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        let name = format!("{index:064x}/layer.tar");
        append(&mut tar, &format!("{index:064x}/VERSION"), b"1.0");
        match first.get(&Digest::of(layer)) {
            Some(target) => link(&mut tar, &name, &format!("../{target}")),
            None => append(&mut tar, &name, layer),
        }
        first.entry(Digest::of(layer)).or_insert_with(|| name.clone());
        names.push(name);
    }
    append(&mut tar, &config_name, config.as_bytes());
    let list =
        serde_json::json!([{"Config": config_name, "RepoTags": ["shop:v1"], "Layers": names}]).to_string();
    append(&mut tar, "manifest.json", list.as_bytes());
    append(&mut tar, "repositories", b"{}");
    tar.into_inner().expect("tar")
}

/// What the containerd store and `skopeo oci-archive:` write: blobs by digest, compressed as they were pulled.
fn oci_archive(layers: &[Vec<u8>], compression: Compression, with_list: bool) -> Vec<u8> {
    let config = config(layers);
    let mut tar = tar::Builder::new(Vec::new());
    let mut put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        append(&mut tar, &format!("blobs/sha256/{}", digest.hex()), bytes);
        digest
    };
    let config_digest = put(config.as_bytes());
    let mut descriptors = Vec::new();
    for layer in layers {
        let blob = match compression {
            Compression::None => layer.clone(),
            Compression::Zstd => zstd::encode_all(&layer[..], 1).expect("compressed"),
            Compression::Gzip => {
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                std::io::Write::write_all(&mut gzip, layer).expect("compressed");
                gzip.finish().expect("compressed")
            }
        };
        let digest = put(&blob);
        descriptors.push(
            serde_json::json!({"mediaType": compression.media_type(), "digest": digest, "size": blob.len()}),
        );
    }
    let manifest =
        serde_json::json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "layers": descriptors,
        "config": {"mediaType": media_type::OCI_CONFIG, "digest": config_digest, "size": config.len()}})
        .to_string();
    let manifest_digest = put(manifest.as_bytes());
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [
        {"mediaType": media_type::OCI_MANIFEST, "digest": manifest_digest, "size": manifest.len(),
         "platform": {"os": "linux", "architecture": "amd64"}},
        {"mediaType": media_type::OCI_MANIFEST, "digest": Digest::of(b"attestation"), "size": 1,
         "platform": {"os": "unknown", "architecture": "unknown"}}]});
    let name = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    if with_list {
        let blobs: Vec<String> = descriptors
            .iter()
            .map(|descriptor| {
                name(&Digest::parse(descriptor["digest"].as_str().expect("text")).expect("digest"))
            })
            .collect();
        let list = serde_json::json!([{"Config": name(&config_digest), "RepoTags": null, "Layers": blobs}]);
        append(&mut tar, "manifest.json", list.to_string().as_bytes());
    }
    append(&mut tar, "index.json", index.to_string().as_bytes());
    append(&mut tar, "oci-layout", b"{\"imageLayoutVersion\": \"1.0.0\"}");
    tar.into_inner().expect("tar")
}

pub(crate) fn nothing(accepts: &[Compression]) -> HaveAnswer {
    HaveAnswer {
        blobs: Vec::new(),
        layers: BTreeMap::new(),
        accepts: accepts.to_vec(),
        available: u64::MAX,
    }
}

pub(crate) fn options(scratch: &Path) -> PrepareOptions {
    PrepareOptions {
        scratch: scratch.to_owned(),
        threads: 2,
        platform: None,
        name: None,
        id: None,
        ask: None,
    }
}

async fn prepare_archive(
    archive: Vec<u8>,
    have: HaveAnswer,
    cache: Cache,
) -> Result<(Prepared, Cache, tempfile::TempDir), ImageError> {
    let scratch = tempfile::tempdir().expect("directory");
    let source = Source::Archive(Box::new(std::io::Cursor::new(archive)));
    let (prepared, cache) = prepare(source, have, cache, options(scratch.path())).await?;
    Ok((prepared, cache, scratch))
}

fn bytes_of(place: &Place) -> Vec<u8> {
    match place {
        Place::Memory(bytes) => bytes.to_vec(),
        Place::File(file) => std::fs::read(&file.path).expect("file"),
        Place::OnHost | Place::Delta(_) => panic!("the bytes are on the host"),
    }
}

fn three_layers() -> Vec<Vec<u8>> {
    vec![
        layer_tar("base", &noise(1, 2 << 20)),
        layer_tar("code", &noise(2, 300 << 10)),
        layer_tar("small", b"text"),
    ]
}

#[tokio::test]
async fn a_classic_export_becomes_blobs_that_hold_the_same_layers() {
    let mut layers = three_layers();
    layers.push(layers[2].clone());
    let (prepared, _, _scratch) = prepare_archive(
        classic_archive(&layers),
        nothing(&[Compression::Gzip, Compression::None]),
        Cache::default(),
    )
    .await
    .expect("prepared");
    assert_eq!(prepared.layers.len(), 4);
    for (layer, original) in prepared.layers.iter().zip(&layers) {
        let blob = bytes_of(&layer.place);
        assert_eq!(
            (Digest::of(&blob), blob.len() as u64),
            (layer.blob.digest.clone(), layer.blob.size)
        );
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&blob[..]), &mut content).expect("gzip");
        assert!(content == *original);
    }
    assert_eq!(
        prepared.to_send().len(),
        4,
        "three different layers and the configuration"
    );
    assert_eq!(prepared.permission().len(), 5);
    assert_eq!(
        prepared.config_digest(),
        Digest::of(config(&layers).as_bytes()),
        "Docker's image ID"
    );
    let manifest = crate::store::Manifest::parse(&prepared.manifest).expect("a manifest");
    assert!(
        manifest
            .layers
            .iter()
            .all(|layer| layer.media_type == media_type::OCI_LAYER_GZIP)
    );
    assert_eq!(prepared.platform.to_string(), "linux/amd64");
}

#[tokio::test]
async fn the_same_image_gives_the_same_digests_from_every_kind_of_archive() {
    let layers = three_layers();
    let accepts = [Compression::Zstd, Compression::Gzip];
    let mut digests = Vec::new();
    for archive in [
        classic_archive(&layers),
        zstd::encode_all(&classic_archive(&layers)[..], 1).expect("compressed"),
        oci_archive(&layers, Compression::None, true),
        oci_archive(&layers, Compression::None, false),
    ] {
        let (prepared, _, _scratch) = prepare_archive(archive, nothing(&accepts), Cache::default())
            .await
            .expect("prepared");
        assert!(
            prepared
                .layers
                .iter()
                .all(|layer| layer.compression == Compression::Zstd),
            "the host's first choice"
        );
        digests.push(prepared.digest());
    }
    digests.dedup();
    assert_eq!(digests.len(), 1);
}

#[tokio::test]
async fn compressed_blobs_are_sent_as_they_are_unless_the_host_cannot_read_them() {
    let layers = three_layers();
    let archive = oci_archive(&layers, Compression::Gzip, true);
    let (kept, _, _scratch) = prepare_archive(
        archive,
        nothing(&[Compression::Zstd, Compression::Gzip]),
        Cache::default(),
    )
    .await
    .expect("prepared");
    assert!(
        kept.layers
            .iter()
            .all(|layer| layer.compression == Compression::Gzip)
    );
    let zstd = oci_archive(&layers, Compression::Zstd, false);
    let (changed, _, _scratch) = prepare_archive(zstd, nothing(&[Compression::Gzip]), Cache::default())
        .await
        .expect("prepared");
    assert!(
        changed
            .layers
            .iter()
            .all(|layer| layer.compression == Compression::Gzip)
    );
    assert_eq!(changed.layers[0].diff_id, Digest::of(&layers[0]));
    let error = prepare_archive(classic_archive(&layers), nothing(&[]), Cache::default())
        .await
        .expect_err("refused");
    assert!(matches!(error, ImageError::NoCompression), "{error:?}");
}

#[tokio::test]
async fn only_the_changed_layer_is_prepared_and_an_unchanged_image_needs_no_export() {
    let layers = three_layers();
    let accepts = [Compression::Gzip];
    let (first, cache, _scratch) =
        prepare_archive(classic_archive(&layers), nothing(&accepts), Cache::default())
            .await
            .expect("prepared");
    // Between two pushes the cache is a file.
    let file = tempfile::tempdir().expect("directory");
    let path = file.path().join("deep/cache.json");
    cache.save(&path).expect("saved");
    let cache = Cache::load(&path);

    let outline = Outline {
        id: first.config_digest(),
        diff_ids: layers.iter().map(|layer| Digest::of(layer)).collect(),
    };
    let query = outline.query(&cache);
    assert_eq!(query.blobs.len(), 3);
    let mut have = nothing(&accepts);
    assert!(
        prepare_from_cache(&outline, &have, &cache).is_none(),
        "the host has nothing yet"
    );
    have.blobs = query.blobs;
    let again = prepare_from_cache(&outline, &have, &cache).expect("no export needed");
    assert_eq!(again.digest(), first.digest());
    assert_eq!(
        (again.summary().layers_there, again.to_send().len()),
        (3, 1),
        "only the configuration"
    );

    let mut changed = layers.clone();
    changed[1] = layer_tar("code", &noise(9, 300 << 10));
    let (second, _, _scratch) = prepare_archive(classic_archive(&changed), have.clone(), cache)
        .await
        .expect("prepared");
    let summary = second.summary();
    assert_eq!((summary.layers, summary.layers_there), (3, 2));
    assert!(summary.bytes_to_send < 320 << 10, "{summary:?}");

    // Another machine without a cache: the host's own knowledge of its layers is enough.
    let layer = &first.layers[0];
    let known = KnownLayer {
        digest: layer.blob.digest.clone(),
        size: layer.blob.size,
        compression: layer.compression,
    };
    let mut have = nothing(&accepts);
    have.layers.insert(layer.diff_id.clone(), known);
    let (third, _, scratch) = prepare_archive(classic_archive(&changed), have, Cache::default())
        .await
        .expect("prepared");
    assert!(matches!(third.layers[0].place, Place::OnHost));
    drop(third);
    assert_eq!(
        scratch.path().read_dir().expect("list").count(),
        0,
        "temporary files are gone"
    );
}

#[tokio::test]
async fn damaged_and_foreign_sources_are_refused() {
    let layers = three_layers();
    let accepts = nothing(&[Compression::Gzip]);
    let refuse = |archive: Vec<u8>| {
        let accepts = accepts.clone();
        async move {
            prepare_archive(archive, accepts, Cache::default())
                .await
                .expect_err("refused")
        }
    };
    // A layer that is not what the configuration says.
    let mut other = layers.clone();
    other[1] = layer_tar("code", b"evil");
    let mut evil = classic_archive(&layers);
    let place = evil
        .windows(512)
        .position(|window| window == &layers[1][..512])
        .expect("the layer is there");
    evil[place + 600] ^= 1;
    assert!(matches!(refuse(evil).await, ImageError::Damaged { .. }));
    let whole = classic_archive(&layers);
    assert!(matches!(
        refuse(whole[..whole.len() / 2].to_vec()).await,
        ImageError::Archive(_)
    ));
    assert!(matches!(
        refuse(layer_tar("x", b"y")).await,
        ImageError::NotAnImage { .. }
    ));
    assert!(matches!(
        refuse(b"no tar at all".repeat(100)).await,
        ImageError::Archive(_)
    ));
    let scratch = tempfile::tempdir().expect("directory");
    let mut options = options(scratch.path());
    options.platform = Some(Platform {
        os: "linux".into(),
        architecture: "arm64".into(),
        variant: None,
    });
    let source = Source::Archive(Box::new(std::io::Cursor::new(whole)));
    let error = prepare(source, accepts, Cache::default(), options)
        .await
        .expect_err("refused");
    assert!(matches!(&error, ImageError::Platform { .. }), "{error:?}");
    assert!(error.to_string().contains("linux/arm64"), "{error}");
    assert_eq!(scratch.path().read_dir().expect("list").count(), 0);
}

#[tokio::test]
async fn a_layout_directory_is_read_in_place() {
    let layers = three_layers();
    let directory = tempfile::tempdir().expect("directory");
    let mut archive = tar::Archive::new(std::io::Cursor::new(oci_archive(
        &layers,
        Compression::Gzip,
        false,
    )));
    archive.unpack(directory.path()).expect("unpacked");
    let outline = layout::outline(directory.path(), None, None).expect("outline");
    assert_eq!(outline.diff_ids.len(), 3);
    let scratch = tempfile::tempdir().expect("directory");
    let source = || Source::Layout(directory.path().to_owned());
    let have = nothing(&[Compression::Gzip]);
    let (prepared, _) = prepare(source(), have.clone(), Cache::default(), options(scratch.path()))
        .await
        .expect("prepared");
    assert_eq!(prepared.config_digest(), outline.id);
    assert_eq!(
        scratch.path().read_dir().expect("list").count(),
        0,
        "nothing was copied"
    );
    let blob = directory
        .path()
        .join("blobs/sha256")
        .join(prepared.layers[0].blob.digest.hex());
    drop(prepared);
    assert!(blob.exists(), "the user's own files stay");

    let mut bytes = std::fs::read(&blob).expect("blob");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs_write(&blob, &bytes);
    let error = prepare(source(), have, Cache::default(), options(scratch.path()))
        .await
        .expect_err("refused");
    assert!(
        matches!(error, ImageError::Damaged { .. } | ImageError::Archive(_)),
        "{error:?}"
    );
}

#[tokio::test]
async fn of_several_images_the_named_one_is_taken_and_of_several_platforms_the_hosts() {
    let directory = tempfile::tempdir().expect("directory");
    let mut entries = Vec::new();
    for (architecture, tag, content) in [
        ("amd64", "one", b"first"),
        ("arm64", "one", b"other"),
        ("amd64", "two", b"again"),
    ] {
        let config = config(&[layer_tar("app", content)]).replace("amd64", architecture);
        let put = |bytes: &[u8]| {
            let digest = Digest::of(bytes);
            let blobs = directory.path().join("blobs/sha256");
            std::fs::create_dir_all(&blobs).expect("made");
            fs_write(&blobs.join(digest.hex()), bytes);
            digest
        };
        let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "layers": [],
            "config": {"mediaType": media_type::OCI_CONFIG, "digest": put(config.as_bytes()), "size": config.len()}})
        .to_string();
        entries.push((
            Digest::of(config.as_bytes()),
            serde_json::json!({"mediaType": media_type::OCI_MANIFEST, "digest": put(manifest.as_bytes()),
                "size": manifest.len(), "platform": {"os": "linux", "architecture": architecture},
                "annotations": {"org.opencontainers.image.ref.name": tag}}),
        ));
    }
    let list: Vec<_> = entries.iter().map(|(_, entry)| entry.clone()).collect();
    let index = serde_json::json!({"schemaVersion": 2, "manifests": list}).to_string();
    fs_write(&directory.path().join("index.json"), index.as_bytes());
    let built = |architecture: &str| Platform {
        os: "linux".to_owned(),
        architecture: architecture.to_owned(),
        variant: None,
    };
    let find = |platform: &Platform, name| {
        layout::outline(directory.path(), Some(platform), name)
            .map(|outline| outline.id)
            .map_err(|error| error.to_string())
    };
    let (amd64, arm64) = (built("amd64"), built("arm64"));
    assert_eq!(find(&amd64, Some("one")).as_ref(), Ok(&entries[0].0));
    assert_eq!(find(&arm64, Some("one")).as_ref(), Ok(&entries[1].0));
    assert_eq!(find(&arm64, None).as_ref(), Ok(&entries[1].0));
    assert_eq!(find(&amd64, Some("two")).as_ref(), Ok(&entries[2].0));
    let refused = find(&arm64, Some("two")).expect_err("not for arm64");
    assert!(
        refused.contains("linux/arm64") && refused.contains("linux/amd64"),
        "{refused}"
    );
    let several = find(&amd64, None).expect_err("two are there");
    assert!(several.contains("2 images"), "{several}");
    let none = find(&amd64, Some("three")).expect_err("no such image");
    assert!(none.contains("no image three"), "{none}");
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 64, ..Default::default() })]

    /// Whatever an archive holds, the outcome is true blobs or an error, and no temporary file.
    #[test]
    fn altered_archives_never_give_false_blobs(
        changes in proptest::collection::vec((0..20_000_usize, proptest::prelude::any::<u8>()), 0..6),
        length in 4_000..20_000_usize,
        classic in proptest::prelude::any::<bool>(),
    ) {
        let layers = vec![layer_tar("a", b"first"), layer_tar("b", b"second")];
        let mut archive =
            if classic { classic_archive(&layers) } else { oci_archive(&layers, Compression::Gzip, true) };
        for (place, byte) in changes {
            if let Some(old) = archive.get_mut(place) {
                *old = byte;
            }
        }
        archive.truncate(length);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        let prepared = prepare_archive(archive, nothing(&[Compression::Gzip]), Cache::default());
        if let Ok((prepared, _, scratch)) = runtime.block_on(prepared) {
            for (blob, place) in prepared.to_send() {
                let bytes = bytes_of(&place);
                assert_eq!((Digest::of(&bytes), bytes.len() as u64), (blob.digest, blob.size));
            }
            drop(prepared);
            assert_eq!(scratch.path().read_dir().expect("list").count(), 0);
        }
    }
}
