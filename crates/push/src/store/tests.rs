//! The store on a real directory.

use std::time::{Duration, SystemTime};

use super::*;
use crate::change::Tag;

fn limits() -> Limits {
    Limits {
        reserve: 0,
        ..Limits::default()
    }
}

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().expect("directory");
    let store = Store::open(directory.path(), limits()).expect("opens");
    (directory, store)
}

fn repository(name: &str) -> Repository {
    Repository::parse(name).expect("name")
}

fn expect(bytes: &[u8]) -> Option<BlobRef> {
    Some(BlobRef {
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
    })
}

/// Files below a directory, to show that nothing is left.
fn files(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).expect("directory").flatten() {
        if entry.path().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

fn image(
    store: &Store,
    name: &Repository,
    reference: &str,
    layers: &[(&[u8], Compression)],
) -> (Digest, Manifest) {
    let config = store
        .put_blob(format!("{{\"layers\":{}}}", layers.len()).as_bytes())
        .expect("config");
    let layers = layers
        .iter()
        .map(|(bytes, compression)| {
            let blob = store.put_blob(bytes).expect("layer");
            Descriptor::new(compression.media_type(), blob.digest, blob.size)
        })
        .collect();
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.to_owned()),
        artifact_type: None,
        config: Some(Descriptor::new(
            media_type::OCI_CONFIG,
            config.digest,
            config.size,
        )),
        layers,
        manifests: Vec::new(),
        subject: None,
        annotations: Default::default(),
    };
    let bytes = serde_json::to_vec(&manifest).expect("JSON");
    let digest = Digest::of(&bytes);
    let reference = if reference.is_empty() {
        digest.to_string()
    } else {
        reference.to_owned()
    };
    let reference = Reference::parse(&reference).expect("reference");
    store
        .put_manifest(name, &reference, media_type::OCI_MANIFEST, &bytes)
        .expect("stored");
    (digest, manifest)
}

#[test]
fn an_upload_in_pieces_becomes_a_blob_with_its_digest() {
    let (_directory, store) = store();
    let upload = store
        .begin(&repository("app"), None, u64::MAX, "me")
        .expect("begins");
    assert_eq!(store.append(&upload.id, None, b"hello ").expect("appends"), 6);
    assert_eq!(store.append(&upload.id, Some(6), b"world").expect("appends"), 11);
    let blob = store
        .finish(&upload.id, &Digest::of(b"hello world"))
        .expect("finishes");
    assert_eq!(store.read_blob(&blob.digest, 100).expect("reads"), b"hello world");
    assert!(matches!(
        store.status(&upload.id),
        Err(StoreError::UploadUnknown { .. })
    ));
}

#[test]
fn wrong_digests_and_too_many_bytes_leave_nothing_behind() {
    let (directory, store) = store();
    let upload = store
        .begin(&repository("app"), None, u64::MAX, "me")
        .expect("begins");
    store.append(&upload.id, None, b"evil").expect("appends");
    let wanted = Digest::of(b"good");
    let error = store.finish(&upload.id, &wanted).expect_err("refused");
    assert!(matches!(error, StoreError::DigestMismatch { .. }), "{error}");
    assert!(store.blob(&wanted).expect("asks").is_none());

    // Announced as one thing, finished as another.
    let upload = store
        .begin(&repository("app"), expect(b"good"), u64::MAX, "me")
        .expect("begins");
    store.append(&upload.id, None, b"evil").expect("appends");
    assert!(matches!(
        store.finish(&upload.id, &Digest::of(b"evil")),
        Err(StoreError::DigestMismatch { .. })
    ));
    assert!(
        files(directory.path()).is_empty(),
        "{:?}",
        files(directory.path())
    );

    let upload = store
        .begin(&repository("app"), expect(b"good"), u64::MAX, "me")
        .expect("begins");
    assert!(matches!(
        store.append(&upload.id, None, b"goodbye"),
        Err(StoreError::TooLarge { size: 7, limit: 4 })
    ));
    let capped = store.begin(&repository("app"), None, 3, "me").expect("begins");
    assert!(matches!(
        store.append(&capped.id, None, b"four"),
        Err(StoreError::TooLarge { .. })
    ));
    assert!(matches!(
        store.begin(&repository("app"), expect(b"four"), 3, "me"),
        Err(StoreError::TooLarge { size: 4, limit: 3 })
    ));
}

#[test]
fn a_truncated_upload_continues_in_another_process() {
    let (directory, store) = store();
    let content = b"0123456789";
    let upload = store
        .begin(&repository("app"), expect(content), u64::MAX, "me")
        .expect("begins");
    store.append(&upload.id, None, &content[..4]).expect("appends");
    assert!(matches!(
        store.finish(&upload.id, &Digest::of(content)),
        Err(StoreError::SizeMismatch { wanted: 10, found: 4 })
    ));
    drop(store);

    let store = Store::open(directory.path(), limits()).expect("opens again");
    let found = store
        .unfinished(&repository("app"), &expect(content).expect("some"))
        .expect("looks");
    let [(again, owner)] = found.as_slice() else {
        panic!("{found:?}")
    };
    assert_eq!((&again.id, again.offset, owner.as_str()), (&upload.id, 4, "me"));
    assert_eq!(store.adopt(&upload.id, "you").expect("adopted").offset, 4);
    let found = store
        .unfinished(&repository("app"), &expect(content).expect("some"))
        .expect("looks");
    assert_eq!(found[0].1, "you");
    let elsewhere = store
        .begin(&repository("other"), expect(content), u64::MAX, "me")
        .expect("begins");
    assert_ne!(elsewhere.id, upload.id);
    assert!(matches!(
        store.append(&upload.id, Some(3), b"x"),
        Err(StoreError::WrongOffset {
            expected: 4,
            given: 3,
            ..
        })
    ));
    store.append(&upload.id, Some(4), &content[4..]).expect("appends");
    store.finish(&upload.id, &Digest::of(content)).expect("finishes");
}

#[test]
fn room_is_checked_before_bytes_move_and_promises_count() {
    let directory = tempfile::tempdir().expect("directory");
    let free = Store::open(directory.path(), limits())
        .expect("opens")
        .room()
        .expect("room")
        .free;
    // A part of what the machine has, so large that other writers cannot use it up meanwhile.
    let ours = (free / 2).min(8 << 30);
    let most = ours / 8 * 5;
    let limits = Limits {
        reserve: free - ours,
        ..Limits::default()
    };
    let store = Store::open(directory.path(), limits).expect("opens");
    let huge = BlobRef {
        digest: Digest::of(b"huge"),
        size: 2 * ours,
    };
    let error = store
        .begin(&repository("app"), Some(huge), u64::MAX, "me")
        .expect_err("refused");
    assert!(matches!(error, StoreError::NoRoom { .. }), "{error}");
    assert!(files(directory.path()).is_empty());

    let first = BlobRef {
        digest: Digest::of(b"first"),
        size: most,
    };
    let upload = store
        .begin(&repository("app"), Some(first), u64::MAX, "me")
        .expect("fits");
    let second = BlobRef {
        digest: Digest::of(b"second"),
        size: most,
    };
    assert!(matches!(
        store.begin(&repository("app"), Some(second.clone()), u64::MAX, "me"),
        Err(StoreError::NoRoom { .. })
    ));
    store.cancel(&upload.id).expect("gives up");
    store
        .begin(&repository("app"), Some(second), u64::MAX, "me")
        .expect("fits now");

    let full = Store::open(
        directory.path(),
        Limits {
            reserve: u64::MAX,
            ..Limits::default()
        },
    )
    .expect("opens");
    let upload = full
        .begin(&repository("app"), None, u64::MAX, "me")
        .expect("nothing is announced");
    assert!(matches!(
        full.append(&upload.id, None, b"x"),
        Err(StoreError::NoRoom { .. })
    ));
    assert_eq!(full.status(&upload.id).expect("status").offset, 0);
}

#[test]
fn uploads_are_limited_and_abandoned_ones_are_cleaned() {
    let directory = tempfile::tempdir().expect("directory");
    let store = Store::open(
        directory.path(),
        Limits {
            max_uploads: 2,
            ..limits()
        },
    )
    .expect("opens");
    for _ in 0..2 {
        store
            .begin(&repository("app"), None, u64::MAX, "me")
            .expect("begins");
    }
    assert!(matches!(
        store.begin(&repository("app"), None, u64::MAX, "me"),
        Err(StoreError::TooManyUploads { .. })
    ));
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    let writing = |now| store.writing(now, hour).expect("looks");
    assert_eq!(writing(now), ["me".to_owned()].into());
    assert!(writing(now + 2 * hour).is_empty(), "nobody adds to them any more");
    assert_eq!(store.clean_uploads(now, hour).expect("cleans"), 0);
    assert_eq!(store.clean_uploads(now + 2 * hour, hour).expect("cleans"), 2);
    assert!(files(directory.path()).is_empty());
}

#[test]
fn manifests_need_their_blobs_and_tags_move() {
    let (_directory, store) = store();
    let name = repository("org/app");
    let missing = serde_json::json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
        "config": {"mediaType": media_type::OCI_CONFIG, "digest": Digest::of(b"no"), "size": 2}, "layers": []});
    let tag = Reference::Tag(Tag::parse("v1").expect("tag"));
    let put = |bytes: &[u8], kind: &str| store.put_manifest(&name, &tag, kind, bytes);
    let error = put(missing.to_string().as_bytes(), media_type::OCI_MANIFEST).expect_err("refused");
    assert!(matches!(error, StoreError::ManifestBlobUnknown { .. }), "{error}");
    let error = put(missing.to_string().as_bytes(), media_type::OCI_INDEX).expect_err("refused");
    assert!(matches!(error, StoreError::ManifestInvalid { .. }), "{error}");
    for bad in [
        &b"[]"[..],
        b"{}",
        b"{\"schemaVersion\":1}",
        b"{\"schemaVersion\":2}",
    ] {
        assert!(matches!(
            put(bad, media_type::OCI_MANIFEST),
            Err(StoreError::ManifestInvalid { .. })
        ));
    }
    let (first, _) = image(&store, &name, "v1", &[(b"a", Compression::None)]);
    let (second, _) = image(&store, &name, "v1", &[(b"b", Compression::None)]);
    assert_eq!(store.manifest(&name, &tag).expect("there").digest, second);
    assert!(store.manifest(&name, &Reference::Digest(first.clone())).is_ok());
    assert!(
        store
            .manifest(&repository("other"), &Reference::Digest(first))
            .is_err(),
        "repositories are apart"
    );
    store
        .delete_manifest(&name, &Reference::Digest(second))
        .expect("deleted");
    assert!(store.tags(&name).expect("tags").is_empty(), "the tag went along");
}

#[test]
fn layers_are_found_by_their_uncompressed_digest_which_is_computed_here() {
    let (_directory, store) = store();
    let content = b"the layer".repeat(1000);
    let mut gzip = flate2::GzBuilder::new().write(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&content).expect("compresses");
    let gzip = gzip.finish().expect("compresses");
    let zstd = zstd::encode_all(&content[..], 3).expect("compresses");
    let other = zstd::encode_all(&b"another"[..], 3).expect("compresses");
    let (_, manifest) = image(
        &store,
        &repository("app"),
        "",
        &[
            (&gzip, Compression::Gzip),
            (&zstd, Compression::Zstd),
            (&other, Compression::Zstd),
        ],
    );
    assert_eq!(store.index_layers(&manifest).expect("indexes"), 3);
    assert_eq!(
        store.index_layers(&manifest).expect("indexes"),
        0,
        "once is enough"
    );

    let query = HaveQuery {
        blobs: vec![Digest::of(&gzip), Digest::of(b"nothing")],
        diff_ids: vec![
            Digest::of(&content),
            Digest::of(b"another"),
            Digest::of(b"nothing"),
        ],
    };
    let answer = store.have(&query, &[Compression::Gzip]).expect("answers");
    assert_eq!(answer.blobs, [Digest::of(&gzip)]);
    let known = &answer.layers[&Digest::of(&content)];
    assert_eq!(
        (&known.digest, known.compression),
        (&Digest::of(&gzip), Compression::Gzip)
    );
    assert_eq!(
        answer.layers.len(),
        1,
        "what the engine cannot read is not offered"
    );
    let answer = store
        .have(&query, &[Compression::Zstd, Compression::Gzip])
        .expect("answers");
    assert_eq!(answer.layers.len(), 2);

    let many = HaveQuery {
        blobs: vec![Digest::of(b"x"); 2000],
        diff_ids: Vec::new(),
    };
    assert!(store.have(&many, &[]).is_err());
}

#[test]
fn collection_keeps_releases_recent_things_and_tags_if_asked() {
    let (directory, store) = store();
    let name = repository("app");
    let (kept, _) = image(
        &store,
        &name,
        "",
        &[(b"shared", Compression::None), (b"kept", Compression::None)],
    );
    let (tagged, _) = image(&store, &name, "v1", &[(b"tagged", Compression::None)]);
    let (_gone, manifest) = image(
        &store,
        &name,
        "",
        &[
            (b"shared", Compression::None),
            (b"gone", Compression::None),
            (b"more", Compression::None),
        ],
    );
    store.index_layers(&manifest).expect("indexes");
    let hour = Duration::from_secs(3600);
    let mut options = GcOptions {
        roots: [kept.clone()].into(),
        keep_tagged: true,
        min_age: hour,
    };
    let now = SystemTime::now();
    assert_eq!(
        store.collect(&options, now).expect("collects").removed,
        0,
        "everything is fresh"
    );

    let later = now + 2 * hour;
    let report = store.collect(&options, later).expect("collects");
    // Its own layers, its configuration and its manifest.
    assert_eq!(report.removed, 4);
    assert!(store.blob(&Digest::of(b"gone")).expect("asks").is_none());
    assert!(store.blob(&Digest::of(b"shared")).expect("asks").is_some());
    assert!(store.manifest(&name, &Reference::Digest(kept.clone())).is_ok());
    assert!(store.manifest(&name, &Reference::Digest(tagged)).is_ok());

    options.keep_tagged = false;
    store.collect(&options, later).expect("collects");
    assert!(store.tags(&name).expect("tags").is_empty());
    options.roots.clear();
    store.collect(&options, later).expect("collects");
    assert!(
        files(directory.path()).is_empty(),
        "{:?}",
        files(directory.path())
    );
    assert_eq!(store.usage().expect("usage"), Usage::default());
}

#[test]
fn a_blob_damaged_on_the_disk_is_not_believed() {
    let (directory, store) = store();
    let blob = store.put_blob(b"sound").expect("stored");
    let path = files(directory.path()).remove(0);
    std::fs::File::create(&path)
        .and_then(|mut file| file.write_all(b"bound"))
        .expect("damaged");
    assert!(matches!(
        store.read_blob(&blob.digest, 100),
        Err(StoreError::DigestMismatch { .. })
    ));
}

#[test]
fn referrers_are_listed_and_go_with_their_manifest() {
    let (_directory, store) = store();
    let name = repository("app");
    let (subject, _) = image(&store, &name, "", &[(b"a", Compression::None)]);
    let config = store.put_blob(b"{}").expect("config");
    let signature = serde_json::json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
        "artifactType": "application/example", "annotations": {"a": "b"},
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config.digest, "size": 2}, "layers": [],
        "subject": {"mediaType": media_type::OCI_MANIFEST, "digest": subject, "size": 1}})
    .to_string();
    let digest = Digest::of(signature.as_bytes());
    let reference = Reference::Digest(digest.clone());
    store
        .put_manifest(&name, &reference, media_type::OCI_MANIFEST, signature.as_bytes())
        .expect("stored");
    let found = store.referrers(&name, &subject).expect("lists");
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].digest.clone(), found[0].artifact_type.as_deref()),
        (digest, Some("application/example"))
    );
    assert_eq!(found[0].annotations["a"], "b");
    store.delete_manifest(&name, &reference).expect("deleted");
    assert!(store.referrers(&name, &subject).expect("lists").is_empty());
}

#[test]
#[allow(clippy::disallowed_methods)] // damage is not atomic
fn damage_is_found_thrown_away_and_mended_by_the_next_upload() {
    let (_keep, store) = store();
    let name = repository("demo");
    let layers: [(&[u8], Compression); 2] = [(b"lower", Compression::None), (b"upper", Compression::None)];
    let (_, manifest) = image(&store, &name, "v1", &layers);
    assert_eq!(store.drop_damaged(&manifest, true).expect("looked at"), []);
    let upper = manifest.layers[1].digest.clone();
    for (thorough, damage) in [(false, &b"upp"[..]), (true, b"UPPER")] {
        std::fs::write(store.blob_path(&upper), damage).expect("damaged");
        if thorough {
            assert_eq!(store.drop_damaged(&manifest, false).expect("looked at"), []);
        }
        let found = store.drop_damaged(&manifest, thorough).expect("looked at");
        assert_eq!(found, std::slice::from_ref(&upper));
        let query = HaveQuery {
            blobs: vec![upper.clone()],
            ..HaveQuery::default()
        };
        let have = store.have(&query, &[Compression::None]).expect("answered");
        assert!(have.blobs.is_empty(), "it would not be sent again");
        // A manifest that comes before it is told what is missing, not that it is wrong.
        std::fs::write(store.blob_path(&upper), b"upp").expect("damaged");
        let again = serde_json::to_vec(&manifest).expect("JSON");
        let reference = Reference::Digest(Digest::of(&again));
        let refused = store.put_manifest(&name, &reference, media_type::OCI_MANIFEST, &again);
        assert!(
            matches!(refused, Err(StoreError::ManifestBlobUnknown { .. })),
            "{refused:?}"
        );
        // What is not here is told again, and sending it mends the image.
        assert_eq!(
            store.drop_damaged(&manifest, false).expect("looked at"),
            std::slice::from_ref(&upper)
        );
        store.put_blob(b"upper").expect("sent again");
        assert_eq!(store.drop_damaged(&manifest, true).expect("looked at"), []);
    }
}
