//! Whole uploads into a real registry: over TCP, over a link that keeps breaking, over SSH.

mod delta;

use std::net::SocketAddr;
use std::sync::Mutex as StdMutex;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::image::tests::{classic_archive, layer_tar, noise, nothing, options};
use crate::image::{Cache, Outline, Source, prepare, prepare_from_cache};
use crate::registry::tests::{Server, everything, serve, serve_with};
use crate::registry::{Action, Denied};
use crate::sign::tests::Keys;
use crate::ssh::tests::Peer;
use crate::store::{Compression, Limits, Reference};
use crate::transport::Duplex;

fn repository() -> Repository {
    Repository::parse("org/shop").expect("name")
}

fn over_tcp(address: SocketAddr) -> Transport {
    Transport::Other {
        name: address.to_string(),
        open: Arc::new(move || {
            Box::pin(async move { Ok(Box::new(TcpStream::connect(address).await?) as Box<dyn Duplex>) })
        }),
    }
}

type Seen = Arc<StdMutex<Vec<Progress>>>;

fn how(seen: &Seen) -> UploadOptions {
    let seen = Arc::clone(seen);
    UploadOptions {
        repository: repository(),
        token: "token".to_owned(),
        parallel: 3,
        progress: Arc::new(move |progress| seen.lock().expect("seen").push(progress)),
    }
}

fn layers(seed: u64) -> Vec<Vec<u8>> {
    (0..4)
        .map(|index| layer_tar("file", &noise(seed + index, (1 + index as usize) << 20)))
        .collect()
}

async fn prepared(
    layers: &[Vec<u8>],
    have: HaveAnswer,
    cache: Cache,
) -> (Prepared, Cache, tempfile::TempDir) {
    let scratch = tempfile::tempdir().expect("directory");
    let source = Source::Archive(Box::new(std::io::Cursor::new(classic_archive(layers))));
    let (prepared, cache) = prepare(source, have, cache, options(scratch.path()))
        .await
        .expect("prepared");
    (prepared, cache, scratch)
}

fn complete(server: &Server, image: &Prepared) {
    let reference = Reference::Digest(image.digest());
    let stored = server
        .store
        .manifest(&repository(), &reference)
        .expect("the manifest is there");
    assert_eq!(stored.bytes, image.manifest);
    for layer in &image.layers {
        assert_eq!(
            server.store.blob_size(&layer.blob.digest).expect("asks"),
            Some(layer.blob.size)
        );
    }
}

/// Nothing is left half sent; after a cut there may be, until it is collected: the answer to its beginning was lost.
fn tidy(server: &Server) {
    assert_eq!(server.store.usage().expect("usage").uploads, 0);
}

#[tokio::test]
async fn an_image_arrives_and_the_next_push_sends_only_what_changed() {
    let server = serve(everything()).await;
    let transport = over_tcp(server.address);
    let client = transport.client().await.expect("connects");
    let first = layers(1);
    let (image, cache, _scratch) = prepared(&first, nothing(&[Compression::Gzip]), Cache::default()).await;
    let seen = Seen::default();
    let sent = upload(&transport, client.clone(), &image, &how(&seen))
        .await
        .expect("uploaded");
    assert_eq!((sent.bytes, sent.reconnects), (image.summary().bytes_to_send, 0));
    complete(&server, &image);
    let last = *seen.lock().expect("seen").last().expect("progress");
    assert_eq!((last.bytes, last.blobs, last.layers_total), (last.total, 5, 4));
    assert!(last.rate > 0.0);

    let mut second = first.clone();
    second[0] = layer_tar("file", &noise(99, 1 << 20));
    let outline = Outline {
        id: Digest::of(b"another"),
        diff_ids: second.iter().map(|layer| Digest::of(layer)).collect(),
    };
    let answer = have(&client, &outline.query(&cache)).await.expect("answers");
    assert_eq!(answer.blobs.len(), 3);
    let (image, cache, _scratch) = prepared(&second, answer, cache).await;
    let sent = upload(&transport, client.clone(), &image, &how(&seen))
        .await
        .expect("uploaded");
    assert!(sent.bytes < (1 << 20) + (100 << 10), "{sent:?}");
    complete(&server, &image);
    tidy(&server);

    // The very same again: neither export nor bytes, not even the configuration.
    let outline = Outline {
        id: image.config_digest(),
        diff_ids: outline.diff_ids,
    };
    let answer = have(&client, &outline.query(&cache)).await.expect("answers");
    let same = prepare_from_cache(&outline, &answer, &cache).expect("known");
    let sent = upload(&transport, client, &same, &how(&seen))
        .await
        .expect("uploaded");
    assert_eq!((sent.bytes, sent.already_there), (0, 1));
    assert_eq!(same.digest(), image.digest());
}

/// A way to `address` that breaks every connection after `bytes` upstream bytes, for the first `times` connections.
async fn breaking_link(address: SocketAddr, bytes: usize, times: u32) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let own = listener.local_addr().expect("address");
    let broken = Arc::new(AtomicU32::new(0));
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let breaks = broken.fetch_add(1, Ordering::SeqCst) < times;
            tokio::spawn(async move {
                let server = TcpStream::connect(address).await.expect("server");
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let up = async {
                    if breaks {
                        let mut limited = tokio::io::AsyncReadExt::take(&mut from_client, bytes as u64);
                        let _copied = tokio::io::copy(&mut limited, &mut to_server).await;
                    } else {
                        let _copied = tokio::io::copy(&mut from_client, &mut to_server).await;
                    }
                };
                let down = tokio::io::copy(&mut from_server, &mut to_client);
                tokio::select! { () = up => {}, _ = down => {} }
                let _closed = to_client.shutdown().await;
            });
        }
    });
    own
}

#[tokio::test]
async fn a_link_that_breaks_again_and_again_still_brings_the_image_over() {
    // Layers are sent as they are here: compressing is slow in a build without optimisation.
    let server = serve(everything()).await;
    let link = breaking_link(server.address, 3 << 20, 3).await;
    let transport = over_tcp(link);
    let (image, _, _scratch) = prepared(&layers(10), nothing(&[Compression::None]), Cache::default()).await;
    let client = transport.client().await.expect("connects");
    let seen = Seen::default();
    let sent = upload(&transport, client, &image, &how(&seen))
        .await
        .expect("uploaded");
    complete(&server, &image);
    assert_eq!(sent.reconnects, 3);
    // At most what was under way in each cut is sent twice: three workers, each with its buffers.
    let total = image.summary().bytes_to_send;
    assert!(sent.bytes < total * 2, "{} of {total}", sent.bytes);
    assert_eq!(seen.lock().expect("seen").last().expect("progress").reconnects, 3);
}

#[tokio::test]
async fn a_dead_link_is_given_up_with_its_reason_and_a_later_push_continues() {
    let server = serve(everything()).await;
    let link = breaking_link(server.address, 3 << 20, u32::MAX).await;
    let dead = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let gone = dead.local_addr().expect("address");
    drop(dead);
    let first = Arc::new(AtomicU32::new(0));
    let transport = Transport::Other {
        name: "host".to_owned(),
        open: Arc::new(move || {
            let address = if first.fetch_add(1, Ordering::SeqCst) == 0 {
                link
            } else {
                gone
            };
            Box::pin(async move { Ok(Box::new(TcpStream::connect(address).await?) as Box<dyn Duplex>) })
        }),
    };
    let (image, _, _scratch) = prepared(&layers(20), nothing(&[Compression::None]), Cache::default()).await;
    let client = transport.client().await.expect("connects");
    let impatient = Duration::from_millis(1);
    let outcome = upload_with(&transport, client, &image, &how(&Seen::default()), impatient).await;
    let error = outcome.expect_err("gives up");
    assert!(
        matches!(
            error,
            UploadError::Connection {
                source: TransportError::Other { .. },
                ..
            }
        ),
        "{error:?}"
    );

    let transport = over_tcp(server.address);
    let client = transport.client().await.expect("connects");
    let sent = upload(&transport, client, &image, &how(&Seen::default()))
        .await
        .expect("uploaded");
    complete(&server, &image);
    assert!(
        sent.bytes < image.summary().bytes_to_send,
        "what had arrived was not sent again"
    );
}

#[tokio::test]
async fn refusals_are_passed_on_in_the_hosts_own_words() {
    let (image, _, _scratch) = prepared(&layers(30), nothing(&[Compression::None]), Cache::default()).await;
    let full = serve_with(
        everything(),
        Limits {
            reserve: u64::MAX,
            ..Limits::default()
        },
    )
    .await;
    let transport = over_tcp(full.address);
    let client = transport.client().await.expect("connects");
    let error = upload(&transport, client, &image, &how(&Seen::default()))
        .await
        .expect_err("refused");
    let UploadError::Refused { status, message, .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(*status, StatusCode::INSUFFICIENT_STORAGE);
    assert!(message.contains("disk room"), "{message}");
    assert_eq!(full.store.usage().expect("usage"), Default::default());

    let picky = serve(Arc::new(|parts, _, action| match action {
        Action::PutManifest { .. } => Err(Denied::forbidden("not this one")),
        _ if parts.headers[AUTHORIZATION] == "Bearer token" => Ok(u64::MAX),
        _ => Err(Denied::unauthorized("who?")),
    }))
    .await;
    let transport = over_tcp(picky.address);
    let client = transport.client().await.expect("connects");
    let error = upload(&transport, client, &image, &how(&Seen::default()))
        .await
        .expect_err("refused");
    assert!(
        matches!(&error, UploadError::Refused { code, .. } if code == "DENIED"),
        "{error:?}"
    );
    assert!(error.to_string().contains("not this one"), "{error}");
}

#[tokio::test]
async fn an_image_travels_through_ssh() {
    let server = serve(everything()).await;
    let keys = Keys::new();
    let identity = keys.make("dev", &["-t", "ed25519"], "");
    let peer = Peer::start(
        &[keys.public("dev")],
        Some(server.address),
        &["-t", "ed25519"],
        &keys,
    )
    .await;
    let transport = Transport::Ssh(Box::new(peer.target(peer.options(&keys, &identity))));
    let client = transport.client().await.expect("connects");
    let (image, _, _scratch) = prepared(&layers(40), nothing(&[Compression::None]), Cache::default()).await;
    let sent = upload(&transport, client, &image, &how(&Seen::default()))
        .await
        .expect("uploaded");
    assert_eq!(sent.reconnects, 0);
    complete(&server, &image);
    tidy(&server);
}
