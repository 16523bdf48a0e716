//! From a real Docker Engine through the store back into a real Docker Engine.
//!
//! Needs an engine on this machine that shares our loopback; without one this part is left out.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use appliance_push::change::{Digest, Repository};
use appliance_push::image::{self, Cache, Outline, PrepareOptions, Source};
use appliance_push::registry::{Loopback, Registry};
use appliance_push::store::{Compression, HaveQuery, Limits, Reference, Store};
use base64::Engine as _;
use tokio::io::AsyncReadExt as _;

fn docker(arguments: &[&str]) -> Output {
    Command::new("docker")
        .args(arguments)
        .output()
        .expect("docker starts")
}

fn text(output: Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

fn write(path: &Path, bytes: &[u8]) {
    let mut file = std::fs::File::create(path).expect("created");
    std::io::Write::write_all(&mut file, bytes).expect("written");
    // The time is part of the layer.
    file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000))
        .expect("dated");
}

/// An image of two layers, removed at the end.
struct Image(String);

impl Image {
    fn build(name: &str, code: &[u8]) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        write(&directory.path().join("base"), &vec![b'b'; 3 << 20]);
        write(&directory.path().join("code"), code);
        let text = "FROM scratch\nADD base /base\nADD code /code\nLABEL service=shop\nCMD [\"/code\"]\n";
        write(&directory.path().join("Dockerfile"), text.as_bytes());
        let built = Command::new("docker")
            .args(["build", "-q", "-t", name])
            .arg(directory.path())
            .env("DOCKER_BUILDKIT", "0")
            .output()
            .expect("docker starts");
        assert!(
            built.status.success(),
            "{}",
            String::from_utf8_lossy(&built.stderr)
        );
        Self(name.to_owned())
    }

    fn outline(&self) -> Outline {
        let inspected = text(docker(&[
            "image",
            "inspect",
            "--format",
            "{{.Id}} {{json .RootFS.Layers}}",
            &self.0,
        ]));
        let (id, layers) = inspected.split_once(' ').expect("two parts");
        Outline {
            id: Digest::parse(id).expect("id"),
            diff_ids: serde_json::from_str(layers).expect("layers"),
        }
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _gone = docker(&["image", "rm", "-f", &self.0]);
    }
}

async fn export(name: &str) -> Source {
    let mut child = tokio::process::Command::new("docker")
        .args(["save", name])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("docker starts");
    let mut stdout = child.stdout.take().expect("stdout");
    let (mut sender, receiver) = tokio::io::duplex(1 << 20);
    tokio::spawn(async move {
        let _child = child;
        let mut buffer = vec![0; 1 << 16];
        while let Ok(count) = stdout.read(&mut buffer).await {
            if count == 0
                || tokio::io::AsyncWriteExt::write_all(&mut sender, &buffer[..count])
                    .await
                    .is_err()
            {
                break;
            }
        }
    });
    Source::Archive(Box::new(receiver))
}

/// Puts a prepared image into the store as an upload would.
fn put(store: &Store, repository: &Repository, prepared: &image::Prepared) {
    for (blob, place) in prepared.to_send() {
        let bytes = match place {
            image::Place::Memory(bytes) => bytes.to_vec(),
            image::Place::File(file) => std::fs::read(&file.path).expect("file"),
            image::Place::OnHost | image::Place::Delta(_) => unreachable!("it is to be sent"),
        };
        assert_eq!(store.put_blob(&bytes).expect("stored"), blob);
    }
    let reference = Reference::Digest(prepared.digest());
    let manifest = store
        .put_manifest(repository, &reference, prepared.media_type, &prepared.manifest)
        .expect("stored");
    store.index_layers(&manifest).expect("indexed");
}

async fn pull(loopback: &Loopback, reference: &str) -> Output {
    let config = tempfile::tempdir().expect("directory");
    let credentials = loopback.credentials();
    let auth = base64::engine::general_purpose::STANDARD
        .encode(format!("{}:{}", credentials.username, credentials.password));
    let auths = serde_json::json!({"auths": {loopback.address().to_string(): {"auth": auth}}});
    write(&config.path().join("config.json"), auths.to_string().as_bytes());
    let reference = reference.to_owned();
    tokio::task::spawn_blocking(move || {
        Command::new("docker")
            .arg("--config")
            .arg(config.path())
            .args(["pull", "-q", &reference])
            .output()
    })
    .await
    .expect("runs")
    .expect("docker starts")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_leaves_docker_and_comes_back_by_digest() {
    if !Command::new("docker")
        .args(["info", "--format", "x"])
        .output()
        .is_ok_and(|output| output.status.success())
    {
        eprintln!("there is no Docker Engine here: this part was left out");
        return;
    }
    let name = format!("appliance-push-test-{}", std::process::id());
    let directory = tempfile::tempdir().expect("directory");
    let store = Store::open(
        &directory.path().join("store"),
        Limits {
            reserve: 0,
            ..Limits::default()
        },
    )
    .expect("opens");
    let repository = Repository::parse("shop").expect("name");
    let options = |outline: &Outline| PrepareOptions {
        scratch: directory.path().join("scratch"),
        threads: 2,
        platform: None,
        name: None,
        id: Some(outline.id.clone()),
        ask: None,
    };
    let accepts = [Compression::Gzip];

    let first = Image::build(&name, b"one");
    let outline = first.outline();
    let have = store
        .have(&outline.query(&Cache::default()), &accepts)
        .expect("answers");
    let (prepared, cache) = image::prepare(export(&name).await, have, Cache::default(), options(&outline))
        .await
        .expect("prepared");
    assert_eq!(prepared.summary().layers_there, 0);
    put(&store, &repository, &prepared);
    let in_docker = prepared.digest();
    drop(first);

    // Docker has forgotten it; it comes back from the loopback, and only with the credentials of this pull.
    let loopback = Loopback::start(store.clone(), 0).await.expect("listens");
    let reference = loopback.reference(&repository, &in_docker);
    let stranger = docker(&["pull", "-q", &reference]);
    assert!(!stranger.status.success(), "without credentials");
    text(pull(&loopback, &reference).await);
    let inspected = text(docker(&[
        "image",
        "inspect",
        "--format",
        "{{json .RootFS.Layers}} {{.Config.Labels.service}}",
        &reference,
    ]));
    let layers = serde_json::to_string(&outline.diff_ids).expect("JSON");
    assert_eq!(inspected, format!("{layers} shop"));
    text(docker(&["image", "rm", &reference]));

    // A change of one layer: the other is found by what the host knows, without our cache.
    let second = Image::build(&name, b"two");
    let outline = second.outline();
    let query = outline.query(&Cache::default());
    assert_eq!(
        query,
        HaveQuery {
            blobs: Vec::new(),
            diff_ids: outline.diff_ids.clone()
        }
    );
    let have = store.have(&query, &accepts).expect("answers");
    let (prepared, _) = image::prepare(export(&name).await, have, cache, options(&outline))
        .await
        .expect("prepared");
    let summary = prepared.summary();
    assert_eq!((summary.layers, summary.layers_there), (2, 1));
    assert!(summary.bytes_to_send < 5000, "{summary:?}");
    put(&store, &repository, &prepared);
    let reference = loopback.reference(&repository, &prepared.digest());
    drop(second);
    text(pull(&loopback, &reference).await);
    text(docker(&["image", "rm", &reference]));
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_itself_pushes_into_the_registry_and_pulls_from_it() {
    if !Command::new("docker")
        .args(["info", "--format", "x"])
        .output()
        .is_ok_and(|output| output.status.success())
    {
        eprintln!("there is no Docker Engine here: this part was left out");
        return;
    }
    let directory = tempfile::tempdir().expect("directory");
    let store = Store::open(
        directory.path(),
        Limits {
            reserve: 0,
            ..Limits::default()
        },
    )
    .expect("opens");
    let registry = Registry::new(store.clone(), Arc::new(|_, _, _| Ok(u64::MAX)));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let registry = registry.clone();
            let service = hyper::service::service_fn(move |request| {
                let registry = registry.clone();
                async move { Ok::<_, std::convert::Infallible>(registry.answer(request).await) }
            });
            let stream = hyper_util::rt::TokioIo::new(stream);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(stream, service));
        }
    });
    let name = format!("{address}/org/appliance-push-test:v1");
    let image = Image::build(&name, b"pushed");
    let outline = image.outline();
    let ask = |arguments: Vec<String>| {
        tokio::task::spawn_blocking(move || {
            Command::new("docker")
                .args(arguments)
                .output()
                .expect("docker starts")
        })
    };
    text(
        ask(vec!["push".into(), "-q".into(), name.clone()])
            .await
            .expect("runs"),
    );
    let repository = Repository::parse("org/appliance-push-test").expect("name");
    assert_eq!(
        store
            .tags(&repository)
            .expect("tags")
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["v1"]
    );
    assert_eq!(store.usage().expect("usage").uploads, 0);
    drop(image);
    text(
        ask(vec!["pull".into(), "-q".into(), name.clone()])
            .await
            .expect("runs"),
    );
    let back = Image(name);
    assert_eq!(back.outline(), outline);
}

#[test]
fn a_registry_can_be_shared_between_threads() {
    fn shared<T: Send + Sync + Clone + 'static>(_: &T) {}
    let directory = tempfile::tempdir().expect("directory");
    let store = Store::open(directory.path(), Limits::default()).expect("opens");
    shared(&Registry::new(store, Arc::new(|_, _, _| Ok(0))));
}
