//! The registry over real sockets, asked as the distribution specification's conformance suite asks, and by `skopeo`.

mod access;
mod sequences;
mod specification;
mod stock;
mod uploads;

use std::net::SocketAddr;

use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::change::Digest;
use crate::store::{Compression, HaveQuery, Limits, media_type};

pub(crate) struct Server {
    _directory: tempfile::TempDir,
    pub(crate) store: Store,
    pub(crate) address: SocketAddr,
}

pub(crate) async fn serve(authorize: Authorize) -> Server {
    serve_with(
        authorize,
        Limits {
            reserve: 0,
            ..Limits::default()
        },
    )
    .await
}

pub(crate) async fn serve_with(authorize: Authorize, limits: Limits) -> Server {
    let directory = tempfile::tempdir().expect("directory");
    let store = Store::open(directory.path(), limits).expect("opens");
    let registry = Registry::new(store.clone(), authorize);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let registry = registry.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let registry = registry.clone();
                    async move {
                        if request.uri().path() == crate::upload::HAVE_PATH {
                            return Ok::<_, std::convert::Infallible>(have(&registry, request).await);
                        }
                        Ok(match request.uri().path() {
                            crate::upload::CHUNKS_PATH => registry.chunks(request).await,
                            crate::upload::DELTAS_PATH => registry.delta(request).await,
                            _ => registry.answer(request).await,
                        })
                    }
                });
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _cut = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    Server {
        _directory: directory,
        store,
        address,
    }
}

/// What the agent does at this path.
async fn have(registry: &Registry, request: Request<hyper::body::Incoming>) -> Response<AnswerBody> {
    let bytes = request.into_body().collect().await.expect("body").to_bytes();
    let query: HaveQuery = serde_json::from_slice(&bytes).expect("query");
    let answer = registry
        .store()
        .have(&query, &[Compression::Gzip, Compression::None])
        .expect("answer");
    Response::new(answer::full(serde_json::to_vec(&answer).expect("JSON")))
}

pub(crate) fn everything() -> Authorize {
    Arc::new(|_, _, _| Ok(u64::MAX))
}

struct Reply {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Reply {
    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .unwrap_or_else(|| panic!("no {name} in {:?}", self.headers))
            .to_str()
            .expect("text")
    }

    fn code(&self) -> String {
        let value: serde_json::Value = serde_json::from_slice(&self.body).expect("an error in JSON");
        value["errors"][0]["code"].as_str().expect("a code").to_owned()
    }
}

impl Server {
    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let stream = TcpStream::connect(self.address).await.expect("connects");
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .expect("HTTP");
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "registry");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Full::new(Bytes::copy_from_slice(body)))
            .expect("request");
        let response = sender.send_request(request).await.expect("answer");
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("body").to_bytes().to_vec();
        Reply {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
        }
    }

    async fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, &[], b"").await
    }

    async fn push_blob(&self, name: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let reply = self
            .ask(
                "POST",
                &format!("/v2/{name}/blobs/uploads/?digest={digest}"),
                &[],
                bytes,
            )
            .await;
        assert_eq!(reply.status, 201);
        digest
    }

    async fn push_manifest(&self, name: &str, reference: &str, manifest: &serde_json::Value) -> Reply {
        let kind = manifest["mediaType"].as_str().expect("a media type").to_owned();
        let path = format!("/v2/{name}/manifests/{reference}");
        self.ask(
            "PUT",
            &path,
            &[("content-type", &kind)],
            manifest.to_string().as_bytes(),
        )
        .await
    }
}

fn manifest(config: &Digest, size: usize, layers: serde_json::Value) -> serde_json::Value {
    serde_json::json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
        "config": {"mediaType": media_type::OCI_CONFIG, "digest": config, "size": size}, "layers": layers})
}

#[tokio::test]
async fn pull() {
    let server = serve(everything()).await;
    let base = server.get("/v2/").await;
    assert_eq!(
        (base.status, base.header("docker-distribution-api-version")),
        (200, "registry/2.0")
    );
    let digest = server.push_blob("org/app", b"0123456789").await;
    let path = format!("/v2/org/app/blobs/{digest}");
    let whole = server.get(&path).await;
    assert_eq!((whole.status, whole.body.as_slice()), (200, &b"0123456789"[..]));
    let head = server.ask("HEAD", &path, &[], b"").await;
    assert_eq!(
        (head.status, head.header("content-length"), head.body.len()),
        (200, "10", 0)
    );
    assert_eq!(head.header("docker-content-digest"), digest.as_str());

    for (range, status, content) in [
        ("bytes=2-4", 206, "234"),
        ("bytes=7-", 206, "789"),
        ("bytes=-2", 206, "89"),
        ("bytes=8-99", 206, "89"),
        ("bytes=0-1,3-4", 200, "0123456789"),
        ("lines=1-2", 200, "0123456789"),
    ] {
        let part = server.ask("GET", &path, &[("range", range)], b"").await;
        assert_eq!(
            (part.status, String::from_utf8_lossy(&part.body).as_ref()),
            (status, content),
            "{range}"
        );
    }
    let none = server.ask("GET", &path, &[("range", "bytes=10-")], b"").await;
    assert_eq!((none.status, none.header("content-range")), (416, "bytes */10"));

    let unknown = server
        .get(&format!("/v2/org/app/blobs/{}", Digest::of(b"x")))
        .await;
    assert_eq!((unknown.status, unknown.code().as_str()), (404, "BLOB_UNKNOWN"));
    let unknown = server.get("/v2/org/app/manifests/none").await;
    assert_eq!(
        (unknown.status, unknown.code().as_str()),
        (404, "MANIFEST_UNKNOWN")
    );
    let bad = server.get("/v2/org/app/blobs/sha256:12").await;
    assert_eq!((bad.status, bad.code().as_str()), (400, "DIGEST_INVALID"));
    let bad = server.get("/v2/ORG/tags/list").await;
    assert_eq!((bad.status, bad.code().as_str()), (400, "NAME_INVALID"));
    assert_eq!(server.get("/v2/_catalog").await.status, 404);
}

#[tokio::test]
async fn push_in_pieces_whole_and_mounted() {
    let server = serve(everything()).await;
    let content = b"a layer in pieces";
    let digest = Digest::of(content);
    let begun = server.ask("POST", "/v2/app/blobs/uploads/", &[], b"").await;
    assert_eq!((begun.status, begun.header("range")), (202, "0-0"));
    let location = begun.header("location").to_owned();
    let first = server
        .ask("PATCH", &location, &[("content-range", "0-6")], &content[..7])
        .await;
    assert_eq!((first.status, first.header("range")), (202, "0-6"));
    // Out of order, and a length that does not fit its range.
    let wrong = server
        .ask("PATCH", &location, &[("content-range", "9-16")], &content[9..])
        .await;
    assert_eq!(
        (wrong.status, wrong.code().as_str(), wrong.header("range")),
        (416, "BLOB_UPLOAD_INVALID", "0-6")
    );
    let wrong = server
        .ask("PATCH", &location, &[("content-range", "7-8")], &content[7..])
        .await;
    assert_eq!(wrong.status, 416);
    let status = server.get(&location).await;
    assert_eq!((status.status, status.header("range")), (204, "0-6"));
    assert_eq!(
        server.get(&location.replace("/app/", "/other/")).await.status,
        404,
        "uploads belong to a repository"
    );
    let done = server
        .ask("PUT", &format!("{location}?digest={digest}"), &[], &content[7..])
        .await;
    assert_eq!(
        (done.status, done.header("location")),
        (201, format!("/v2/app/blobs/{digest}").as_str())
    );
    assert_eq!(server.get(done.header("location")).await.body, content);
    assert_eq!(server.get(&location).await.code(), "BLOB_UPLOAD_UNKNOWN");

    let mounted = server
        .ask(
            "POST",
            &format!("/v2/other/blobs/uploads/?mount={digest}&from=app"),
            &[],
            b"",
        )
        .await;
    assert_eq!(mounted.status, 201);
    let absent = Digest::of(b"absent");
    let fallback = server
        .ask(
            "POST",
            &format!("/v2/other/blobs/uploads/?mount={absent}&from=app"),
            &[],
            b"",
        )
        .await;
    assert_eq!(fallback.status, 202);
    let cancelled = server.ask("DELETE", fallback.header("location"), &[], b"").await;
    assert_eq!(cancelled.status, 204);
    assert_eq!(server.get(fallback.header("location")).await.status, 404);

    let wrong = server
        .ask(
            "POST",
            &format!("/v2/app/blobs/uploads/?digest={absent}"),
            &[],
            b"present",
        )
        .await;
    assert_eq!((wrong.status, wrong.code().as_str()), (400, "DIGEST_INVALID"));
    assert_eq!(
        server.store.usage().expect("usage").uploads,
        0,
        "nothing is left of it"
    );
    assert_eq!(
        server
            .ask("DELETE", &format!("/v2/app/blobs/{digest}"), &[], b"")
            .await
            .status,
        405
    );
}

#[tokio::test]
async fn content_discovery_and_management() {
    let server = serve(everything()).await;
    assert_eq!(server.get("/v2/app/tags/list").await.code(), "NAME_UNKNOWN");
    let config = server.push_blob("app", b"{}").await;
    let image = manifest(&config, 2, serde_json::json!([]));
    let digest = Digest::of(image.to_string().as_bytes());
    for tag in ["c", "a", "b"] {
        let stored = server.push_manifest("app", tag, &image).await;
        assert_eq!(
            (stored.status, stored.header("docker-content-digest")),
            (201, digest.as_str())
        );
    }
    let wrong = server
        .push_manifest("app", Digest::of(b"x").as_str(), &image)
        .await;
    assert_eq!(wrong.code(), "DIGEST_INVALID");
    let missing = manifest(&Digest::of(b"absent"), 6, serde_json::json!([]));
    assert_eq!(
        server.push_manifest("app", "x", &missing).await.code(),
        "MANIFEST_BLOB_UNKNOWN"
    );

    let tags = |reply: &Reply| -> serde_json::Value { serde_json::from_slice(&reply.body).expect("JSON") };
    let all = server.get("/v2/app/tags/list").await;
    assert_eq!(
        tags(&all),
        serde_json::json!({"name": "app", "tags": ["a", "b", "c"]})
    );
    let page = server.get("/v2/app/tags/list?n=2").await;
    assert_eq!(tags(&page)["tags"], serde_json::json!(["a", "b"]));
    assert_eq!(
        page.header("link"),
        "</v2/app/tags/list?n=2&last=b>; rel=\"next\""
    );
    let rest = server.get("/v2/app/tags/list?n=2&last=b").await;
    assert_eq!(tags(&rest)["tags"], serde_json::json!(["c"]));
    assert!(rest.headers.get("link").is_none());
    let none = server.get("/v2/app/tags/list?n=0").await;
    assert_eq!(tags(&none)["tags"], serde_json::json!([]));

    let read = server.get("/v2/app/manifests/a").await;
    assert_eq!(
        (read.status, read.header("content-type")),
        (200, media_type::OCI_MANIFEST)
    );
    assert_eq!(read.body, image.to_string().as_bytes());

    let mut signature = manifest(&config, 2, serde_json::json!([]));
    signature["artifactType"] = "application/example".into();
    signature["subject"] =
        serde_json::json!({"mediaType": media_type::OCI_MANIFEST, "digest": digest, "size": 1});
    let own = Digest::of(signature.to_string().as_bytes());
    let stored = server.push_manifest("app", own.as_str(), &signature).await;
    assert_eq!(stored.header("oci-subject"), digest.as_str());
    let listed = server
        .get(&format!(
            "/v2/app/referrers/{digest}?artifactType=application/example"
        ))
        .await;
    assert_eq!(listed.header("oci-filters-applied"), "artifactType");
    assert_eq!(tags(&listed)["manifests"][0]["digest"], own.as_str());
    let filtered = server
        .get(&format!("/v2/app/referrers/{digest}?artifactType=none"))
        .await;
    assert_eq!(tags(&filtered)["manifests"], serde_json::json!([]));
    let nothing = server
        .get(&format!("/v2/app/referrers/{}", Digest::of(b"none")))
        .await;
    assert_eq!(
        (nothing.status, &tags(&nothing)["manifests"]),
        (200, &serde_json::json!([]))
    );

    assert_eq!(
        server.ask("DELETE", "/v2/app/manifests/a", &[], b"").await.status,
        202
    );
    assert_eq!(server.get("/v2/app/manifests/a").await.status, 404);
    assert_eq!(
        server
            .ask("DELETE", &format!("/v2/app/manifests/{digest}"), &[], b"")
            .await
            .status,
        202
    );
    assert_eq!(server.get("/v2/app/manifests/b").await.status, 404);
}
