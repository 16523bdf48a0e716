//! A registry on the loopback with one image behind a password, as Docker pulls from it: plain HTTP/1.1, read only.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::{image, sha256};

/// `tester:secret` in base64.
const AUTHORIZATION: &str = "authorization: basic dgvzdgvyonnly3jlda==";
const NO: &[u8] = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"there is no such thing"}]}"#;
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

pub(crate) struct Registry {
    /// `127.0.0.1:<port>`.
    pub(crate) address: String,
    /// Of the manifest, `sha256:…`.
    pub(crate) digest: String,
    /// Every request line that was let in.
    pub(crate) asked: Arc<Mutex<Vec<String>>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Serves the image; with one byte of its configuration changed if `tampered`.
pub(crate) async fn serve(tampered: bool) -> Registry {
    let (mut config, layer) = image();
    if tampered {
        // Another configuration, so that Docker has no reason to take the image for one it knows.
        config.extend_from_slice(b" ");
    }
    let mut blobs = BTreeMap::new();
    let name = |bytes: &[u8]| format!("sha256:{}", sha256(bytes));
    let (config_digest, layer_digest) = (name(&config), name(&layer));
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": config.len() },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer_digest, "size": layer.len() }],
    })
    .to_string()
    .into_bytes();
    let digest = name(&manifest);
    if tampered {
        // Not the layer: Docker asks for a wrong layer again and again, for half a minute.
        config[0] ^= 1;
    }
    blobs.insert(format!("/v2/app/manifests/{digest}"), (MANIFEST, manifest));
    blobs.insert(
        format!("/v2/app/blobs/{config_digest}"),
        ("application/octet-stream", config),
    );
    blobs.insert(
        format!("/v2/app/blobs/{layer_digest}"),
        ("application/octet-stream", layer),
    );
    blobs.insert("/v2/".to_owned(), ("application/json", b"{}".to_vec()));

    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let (blobs, noted) = (Arc::new(blobs), Arc::clone(&asked));
    let serving = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((connection, _)) = listener.accept().await {
            connections.spawn(answer(connection, Arc::clone(&blobs), Arc::clone(&noted)));
        }
    });
    Registry {
        address,
        digest,
        asked,
        serving,
    }
}

type Blobs = Arc<BTreeMap<String, (&'static str, Vec<u8>)>>;

async fn answer(connection: TcpStream, blobs: Blobs, asked: Arc<Mutex<Vec<String>>>) {
    // Docker tries TLS first, whose hello begins with this byte, and waits ten seconds for an answer to it.
    let mut first = [0];
    if !matches!(connection.peek(&mut first).await, Ok(1)) || first == [0x16] {
        return;
    }
    let mut reader = BufReader::new(connection);
    loop {
        let mut head = Vec::new();
        loop {
            let mut line = Vec::new();
            match reader.read_until(b'\n', &mut line).await {
                Ok(1..) if line != b"\r\n" => head.push(String::from_utf8_lossy(&line).trim().to_owned()),
                Ok(1..) => break,
                _ => return,
            }
        }
        let words: Vec<String> = head[0].split(' ').map(str::to_owned).collect();
        let [method, path, _] = &words[..] else { return };
        let allowed = head.iter().any(|line| line.to_ascii_lowercase() == AUTHORIZATION);
        let (status, extra, kind, body): (&str, &str, &str, &[u8]) = match blobs.get(path) {
            _ if !allowed => (
                "401 Unauthorized",
                "WWW-Authenticate: Basic realm=\"test\"\r\n",
                "text/plain",
                NO,
            ),
            Some((kind, body)) => ("200 OK", "", kind, body),
            None => ("404 Not Found", "", "application/json", NO),
        };
        if allowed {
            asked.lock().expect("whole").push(format!("{method} {path}"));
        }
        let length = body.len();
        let head =
            format!("HTTP/1.1 {status}\r\n{extra}Content-Type: {kind}\r\nContent-Length: {length}\r\n\r\n");
        let body = if method == "HEAD" { &b""[..] } else { body };
        let stream = reader.get_mut();
        if stream.write_all(head.as_bytes()).await.is_err() || stream.write_all(body).await.is_err() {
            return;
        }
    }
}
