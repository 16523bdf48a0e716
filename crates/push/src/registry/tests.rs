//! The registry over real sockets, asked as the distribution specification's conformance suite asks, and by `skopeo`.

use std::net::SocketAddr;
use std::process::Command;

use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use jiff::{SignedDuration, Timestamp};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::change::{BlobRef, Digest, Fingerprint, Repository};
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
                        Ok(registry.answer(request).await)
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

#[tokio::test]
async fn a_cut_upload_keeps_what_arrived_and_continues() {
    let server = serve(everything()).await;
    let content = vec![7_u8; 3 << 20];
    let digest = Digest::of(&content);
    let begin = format!("/v2/app/blobs/uploads/?expect={digest}&size={}", content.len());
    let begun = server.ask("POST", &begin, &[], b"").await;
    assert_eq!(begun.header("appliance-upload-offset"), "0");
    let mut stream = TcpStream::connect(server.address).await.expect("connects");
    let head = format!(
        "PUT {}?digest={digest} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        begun.header("location"),
        content.len()
    );
    stream.write_all(head.as_bytes()).await.expect("head");
    stream.write_all(&content[..1_000_000]).await.expect("a part");
    drop(stream);

    // The server notices the end on its own time; the store tells when it has taken everything in.
    let arrived = async {
        loop {
            let again = server.ask("POST", &begin, &[], b"").await;
            if again.header("appliance-upload-offset") == "1000000" {
                return again;
            }
            tokio::task::yield_now().await;
        }
    };
    let again = tokio::time::timeout(std::time::Duration::from_secs(20), arrived)
        .await
        .expect("arrives");
    assert_eq!(
        again.header("location"),
        begun.header("location"),
        "the same upload"
    );
    let range = format!("1000000-{}", content.len() - 1);
    let path = format!("{}?digest={digest}", again.header("location"));
    let done = server
        .ask("PUT", &path, &[("content-range", &range)], &content[1_000_000..])
        .await;
    assert_eq!(done.status, 201);
    assert_eq!(
        server.ask("POST", &begin, &[], b"").await.status,
        201,
        "there already"
    );
    assert_eq!(
        server.store.blob_size(&digest).expect("asks"),
        Some(content.len() as u64)
    );
}

#[tokio::test]
async fn two_senders_of_one_blob_do_not_meet_but_a_deserted_upload_is_taken_over() {
    let server = serve(everything()).await;
    let content = vec![9_u8; 2 << 20];
    let digest = Digest::of(&content);
    let begin = format!("/v2/app/blobs/uploads/?expect={digest}&size={}", content.len());
    let (one, two) = (
        [("authorization", "Bearer one")],
        [("authorization", "Bearer two")],
    );
    let first = server
        .ask("POST", &begin, &one, b"")
        .await
        .header("location")
        .to_owned();
    // The first sender keeps sending until the second one, who asks meanwhile, has its answer.
    let mut sent = 0;
    let asking = server.ask("POST", &begin, &two, b"");
    tokio::pin!(asking);
    let second = loop {
        let piece = &content[sent..][..1024];
        let range = format!("{sent}-{}", sent + piece.len() - 1);
        let headers = [one[0], ("content-range", range.as_str())];
        let sending = async {
            let reply = server.ask("PATCH", &first, &headers, piece).await;
            assert_eq!(reply.status, 202);
        };
        tokio::select! {
            biased;
            second = &mut asking => break second,
            () = sending => sent += piece.len(),
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    assert_eq!(
        (second.status, second.header("appliance-upload-offset")),
        (202, "0")
    );
    let second = second.header("location").to_owned();
    assert_ne!(second, first);
    assert_eq!(server.ask("DELETE", &second, &two, b"").await.status, 204);
    let again = server.ask("POST", &begin, &one, b"").await;
    assert_eq!(again.header("location"), first, "its own is found again");
    // Now the first one stands still.
    let taken = server.ask("POST", &begin, &two, b"").await;
    assert_eq!(taken.header("location"), first);
    let offset: usize = taken.header("appliance-upload-offset").parse().expect("a number");
    let path = format!("{first}?digest={digest}");
    let range = format!("{offset}-{}", content.len() - 1);
    let done = server
        .ask(
            "PUT",
            &path,
            &[two[0], ("content-range", &range)],
            &content[offset..],
        )
        .await;
    assert_eq!(done.status, 201);
}

#[tokio::test]
async fn too_little_room_is_said_before_bytes_move() {
    let server = serve_with(
        everything(),
        Limits {
            reserve: u64::MAX,
            ..Limits::default()
        },
    )
    .await;
    let digest = Digest::of(b"x");
    let begin = format!("/v2/app/blobs/uploads/?expect={digest}&size=1");
    let refused = server.ask("POST", &begin, &[], b"").await;
    assert_eq!((refused.status, refused.code().as_str()), (507, "SIZE_INVALID"));
    assert!(String::from_utf8_lossy(&refused.body).contains("disk room"));
    let whole = server
        .ask(
            "POST",
            &format!("/v2/app/blobs/uploads/?digest={digest}"),
            &[],
            b"x",
        )
        .await;
    assert_eq!(whole.status, 507);
    assert_eq!(server.store.usage().expect("usage"), Default::default());
}

fn holder() -> Fingerprint {
    Fingerprint::parse(&format!("SHA256:{}", "A".repeat(43))).expect("fingerprint")
}

#[tokio::test]
async fn tokens_allow_exactly_what_was_signed() {
    let grants = Grants::default();
    let now: Timestamp = "2026-01-02T03:04:05Z".parse().expect("time");
    let clock = Arc::new(std::sync::Mutex::new(now));
    let authorize: Authorize = {
        let (grants, clock) = (grants.clone(), Arc::clone(&clock));
        Arc::new(move |parts, repository, action| match action {
            Action::Read => Ok(0),
            _ => grants.check(parts, repository, action, *clock.lock().expect("clock")),
        })
    };
    let server = serve(authorize).await;
    let listed = BlobRef {
        digest: Digest::of(b"{}"),
        size: 2,
    };
    let image = manifest(&listed.digest, 2, serde_json::json!([]));
    let own = BlobRef {
        digest: Digest::of(image.to_string().as_bytes()),
        size: image.to_string().len() as u64,
    };
    let grant = Grant {
        holder: holder(),
        expires: now + SignedDuration::from_mins(5),
        scope: Scope::blobs([&listed, &own]),
    };
    let token = grants.issue(grant.clone(), now);
    let bearer = format!("Bearer {}", token.expose());
    let auth = [("authorization", bearer.as_str())];
    let begin = |digest: &Digest, size: u64| format!("/v2/app/blobs/uploads/?expect={digest}&size={size}");

    let anonymous = server.ask("POST", &begin(&listed.digest, 2), &[], b"").await;
    assert_eq!(
        (anonymous.status, anonymous.code().as_str()),
        (401, "UNAUTHORIZED")
    );
    assert!(anonymous.headers.contains_key("www-authenticate"));
    let wrong = server
        .ask(
            "POST",
            &begin(&listed.digest, 2),
            &[("authorization", "Bearer 00")],
            b"",
        )
        .await;
    assert_eq!(wrong.status, 401);
    let other = server
        .ask("POST", &begin(&Digest::of(b"other"), 5), &auth, b"")
        .await;
    assert_eq!((other.status, other.code().as_str()), (403, "DENIED"));
    assert!(String::from_utf8_lossy(&other.body).contains(holder().as_str()));
    assert_eq!(
        server
            .ask("POST", &begin(&listed.digest, 3), &auth, b"")
            .await
            .status,
        403,
        "another size"
    );
    // Not announced, then finished as something that was not signed.
    let sneaky = server.ask("POST", "/v2/app/blobs/uploads/", &auth, b"").await;
    assert_eq!(sneaky.status, 202);
    let finish = format!("{}?digest={}", sneaky.header("location"), Digest::of(b"oo"));
    assert_eq!(server.ask("PUT", &finish, &auth, b"oo").await.status, 403);
    let finish = format!("{}?digest={}", sneaky.header("location"), listed.digest);
    assert_eq!(
        server.ask("PUT", &finish, &auth, &[b'x'; 5000]).await.status,
        413,
        "larger than anything signed"
    );

    let whole = format!("/v2/app/blobs/uploads/?digest={}", listed.digest);
    assert_eq!(server.ask("POST", &whole, &auth, b"{}").await.status, 201);
    let typed = [auth[0], ("content-type", media_type::OCI_MANIFEST)];
    let put = |reference: &str| format!("/v2/app/manifests/{reference}");
    let text = image.to_string();
    assert_eq!(
        server
            .ask("PUT", &put("latest"), &typed, text.as_bytes())
            .await
            .status,
        403,
        "no tags"
    );
    assert_eq!(
        server
            .ask("PUT", &put(own.digest.as_str()), &typed, text.as_bytes())
            .await
            .status,
        201
    );
    assert_eq!(
        server
            .ask("DELETE", &put(own.digest.as_str()), &auth, b"")
            .await
            .status,
        403
    );

    let tunnel = Scope::Repository {
        name: Repository::parse("app").expect("name"),
        bytes: 100,
    };
    let second = grants.issue(
        Grant {
            scope: tunnel,
            ..grant.clone()
        },
        now,
    );
    let basic = base64::Engine::encode(
        &base64::engine::general_purpose::STANDARD,
        format!("x:{}", second.expose()),
    );
    let basic = format!("Basic {basic}");
    let basic = [
        ("authorization", basic.as_str()),
        ("content-type", media_type::OCI_MANIFEST),
    ];
    assert_eq!(
        server
            .ask("PUT", &put("latest"), &basic, text.as_bytes())
            .await
            .status,
        201
    );
    let elsewhere = "/v2/other/blobs/uploads/";
    assert_eq!(server.ask("POST", elsewhere, &basic, b"").await.status, 403);

    *clock.lock().expect("clock") = grant.expires;
    assert_eq!(
        server.ask("POST", &whole, &auth, b"{}").await.status,
        401,
        "expired"
    );
    *clock.lock().expect("clock") = now;
    grants.revoke_holder(&holder());
    assert_eq!(
        server.ask("POST", &whole, &auth, b"{}").await.status,
        401,
        "revoked"
    );
}

fn installed(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

/// A one-layer OCI layout as `skopeo` reads it; returns the manifest's digest.
fn layout(path: &std::path::Path) -> Digest {
    let blobs = path.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).expect("directory");
    let write = |path: &std::path::Path, bytes: &[u8]| crate::sign::tests::fs_write(path, bytes);
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        write(&blobs.join(digest.hex()), bytes);
        digest
    };
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o644);
    tar.append_data(&mut header, "hello", &b"world"[..]).expect("tar");
    let tar = tar.into_inner().expect("tar");
    let layer = put(&tar);
    let config = serde_json::json!({"architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer]}})
    .to_string();
    let config_digest = put(config.as_bytes());
    let layers =
        serde_json::json!([{"mediaType": media_type::OCI_LAYER, "digest": layer, "size": tar.len()}]);
    let image = manifest(&config_digest, config.len(), layers).to_string();
    let digest = put(image.as_bytes());
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [
        {"mediaType": media_type::OCI_MANIFEST, "digest": digest, "size": image.len()}]});
    write(&path.join("index.json"), index.to_string().as_bytes());
    write(&path.join("oci-layout"), b"{\"imageLayoutVersion\":\"1.0.0\"}");
    digest
}

async fn run(command: &mut Command) -> String {
    let mut command = std::mem::replace(command, Command::new("true"));
    let output = tokio::task::spawn_blocking(move || (command.output(), command));
    let (output, command) = output.await.expect("runs");
    let output = output.expect("starts");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn skopeo_pushes_and_pulls() {
    if !installed("skopeo") {
        eprintln!("skopeo is not installed: this part was left out");
        return;
    }
    let server = serve(everything()).await;
    let directory = tempfile::tempdir().expect("directory");
    let source = directory.path().join("source");
    let digest = layout(&source);
    let remote = format!("docker://{}/org/app:v1", server.address);
    let copy = |from: String, to: String| {
        let mut command = Command::new("skopeo");
        command.args([
            "copy",
            "--quiet",
            "--insecure-policy",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
        ]);
        command.args([from, to]);
        command
    };
    run(&mut copy(format!("oci:{}", source.display()), remote.clone())).await;
    let back = directory.path().join("back");
    run(&mut copy(remote.clone(), format!("oci:{}:v1", back.display()))).await;
    let inspected = run(Command::new("skopeo").args([
        "inspect",
        "--tls-verify=false",
        "--format",
        "{{.Digest}}",
        &remote,
    ]))
    .await;
    let stored = server.get("/v2/org/app/manifests/v1").await;
    assert_eq!(inspected.trim(), stored.header("docker-content-digest"));
    // skopeo compresses on the way, so the manifest is its own; the configuration stays.
    let original = crate::image::layout::outline(&source, None).expect("outline");
    let returned = crate::image::layout::outline(&back, None).expect("outline");
    assert_eq!(returned, original);
    let _ = digest;
    let list = run(Command::new("skopeo").args([
        "list-tags",
        "--tls-verify=false",
        &format!("docker://{}/org/app", server.address),
    ]))
    .await;
    assert!(list.contains("\"v1\""), "{list}");
}

#[tokio::test]
async fn the_loopback_serves_one_pull_and_nobody_else() {
    let server = serve(everything()).await;
    let digest = server.push_blob("app", b"secret").await;
    let loopback = Loopback::start(server.store.clone(), 0).await.expect("listens");
    assert!(loopback.address().ip().is_loopback());
    let credentials = loopback.credentials().clone();
    let basic = |password: &str| {
        let text = format!("{}:{password}", credentials.username);
        format!(
            "Basic {}",
            base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text)
        )
    };
    let door = Server {
        _directory: tempfile::tempdir().expect("directory"),
        store: server.store.clone(),
        address: loopback.address(),
    };
    let path = format!("/v2/app/blobs/{digest}");
    assert_eq!(door.get(&path).await.status, 401);
    assert_eq!(
        door.ask("GET", &path, &[("authorization", &basic("wrong"))], b"")
            .await
            .status,
        401
    );
    let right = basic(&credentials.password);
    let right = [("authorization", right.as_str())];
    assert_eq!(door.ask("GET", &path, &right, b"").await.body, b"secret");
    assert_eq!(
        door.ask("POST", "/v2/app/blobs/uploads/", &right, b"")
            .await
            .status,
        403,
        "read-only"
    );
    let address = loopback.address();
    drop(loopback);
    let closed = async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), closed)
        .await
        .expect("the port is closed");
}
