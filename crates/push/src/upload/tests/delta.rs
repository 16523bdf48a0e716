//! Changed layers as deltas: how little travels, and what happens when the host cannot use one.

use super::*;
use crate::image::{Ask, Place};

/// 8 MiB in one layer, with or without one more line in the middle.
fn large(changed: bool) -> Vec<Vec<u8>> {
    let mut content = noise(7, 8 << 20);
    if changed {
        content.splice(4_000_000..4_000_000, *b"a line of source more");
    }
    vec![layer_tar("base", &noise(3, 2 << 20)), layer_tar("app", &content)]
}

fn ask(client: &Client) -> Ask {
    let (client, runtime) = (client.clone(), tokio::runtime::Handle::current());
    Arc::new(move |chunks| runtime.block_on(have_chunks(&client, &repository(), chunks)).ok())
}

async fn prepare_with(layers: &[Vec<u8>], client: &Client, cache: &Cache) -> (Prepared, tempfile::TempDir) {
    let scratch = tempfile::tempdir().expect("directory");
    let outline = Outline {
        id: Digest::of(b"an image"),
        diff_ids: layers.iter().map(|layer| Digest::of(layer)).collect(),
    };
    let answer = have(client, &outline.query(cache)).await.expect("answers");
    let source = Source::Archive(Box::new(std::io::Cursor::new(classic_archive(layers))));
    let mut how = options(scratch.path());
    how.ask = Some(ask(client));
    let (prepared, _) = prepare(source, answer, cache.clone(), how)
        .await
        .expect("prepared");
    (prepared, scratch)
}

async fn pushed(server: &Server) -> (Transport, Client, Cache, Digest) {
    let transport = over_tcp(server.address);
    let client = transport.client().await.expect("connects");
    let (image, cache, _scratch) =
        prepared(&large(false), nothing(&[Compression::Gzip]), Cache::default()).await;
    upload(&transport, client.clone(), &image, &how(&Seen::default()))
        .await
        .expect("uploaded");
    (transport, client, cache, image.digest())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_changed_line_in_a_large_layer_costs_a_few_chunks() {
    let server = serve(everything()).await;
    let (transport, client, cache, _) = pushed(&server).await;
    let (image, _scratch) = prepare_with(&large(true), &client, &cache).await;
    assert!(
        matches!(image.layers[1].place, Place::Delta(_)),
        "{:?}",
        image.layers[1]
    );
    let seen = Seen::default();
    let sent = upload(&transport, client.clone(), &image, &how(&seen))
        .await
        .expect("uploaded");
    assert!(sent.bytes < 600 << 10, "{sent:?}");
    assert_eq!(sent.bytes, image.summary().bytes_to_send);
    complete(&server, &image);
    let last = *seen.lock().expect("seen").last().expect("progress");
    assert_eq!(last.bytes, last.total);

    // The layer is what it was built to be, byte for byte, and is known as such at the next push.
    let layer = &image.layers[1].blob.digest;
    assert_eq!(*layer, Digest::of(&large(true)[1]));
    assert_eq!(
        server.store.read_blob(layer, 16 << 20).expect("there"),
        large(true)[1]
    );
    let (again, _scratch) = prepare_with(&large(true), &client, &Cache::default()).await;
    assert!(
        matches!(again.layers[1].place, Place::OnHost),
        "{:?}",
        again.layers[1]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_sent_whole_when_what_it_builds_on_has_gone() {
    let server = serve(everything()).await;
    let (transport, client, cache, first) = pushed(&server).await;
    let (image, _scratch) = prepare_with(&large(true), &client, &cache).await;
    assert!(matches!(image.layers[1].place, Place::Delta(_)));
    // Collected between the question and the upload.
    server
        .store
        .delete_manifest(&repository(), &Reference::Digest(first))
        .expect("deleted");
    let sent = upload(&transport, client.clone(), &image, &how(&Seen::default()))
        .await
        .expect("uploaded all the same");
    assert!(sent.bytes > 8 << 20, "{sent:?}");
    complete(&server, &image);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_repository_learns_and_copies_nothing() {
    let server = serve(everything()).await;
    let (_, client, ..) = pushed(&server).await;
    let chunks = crate::delta::cut(&large(false)[1][..], |_, _| ()).expect("memory");
    let ours = have_chunks(&client, &repository(), &chunks)
        .await
        .expect("answers");
    assert!(ours.iter().all(|there| *there));
    let other = Repository::parse("org/other").expect("name");
    let theirs = have_chunks(&client, &other, &chunks).await.expect("answers");
    assert!(theirs.iter().all(|there| !there));

    let delta = crate::delta::Recipe {
        size: large(false)[1].len() as u64,
        chunks: chunks.into_iter().map(|chunk| (chunk, false)).collect(),
    };
    let mut bytes = Vec::new();
    delta.write(&mut bytes).expect("memory");
    let bytes = zstd::encode_all(&bytes[..], 1).expect("memory");
    let wanted = BlobRef {
        digest: Digest::of(b"not here yet"),
        size: delta.size,
    };
    let refused = server.store.assemble(&other, &wanted, &bytes[..]);
    assert!(
        matches!(refused, Err(crate::store::StoreError::DeltaInvalid { .. })),
        "{refused:?}"
    );
    // Within the repository the chunks are found, but make up another layer than the one that was promised.
    let refused = server.store.assemble(&repository(), &wanted, &bytes[..]);
    assert!(
        matches!(refused, Err(crate::store::StoreError::DigestMismatch { .. })),
        "{refused:?}"
    );
    assert_eq!(server.store.blob_size(&wanted.digest).expect("asks"), None);
}
