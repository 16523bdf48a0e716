//! Stock clients: `skopeo`, and the listener that Docker pulls from.

use std::process::Command;

use super::*;

fn installed(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

/// A one-layer OCI layout as `skopeo` reads it.
fn layout(path: &std::path::Path) {
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
    layout(&source);
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
    let original = crate::image::layout::outline(&source, None, None).expect("outline");
    let returned = crate::image::layout::outline(&back, None, None).expect("outline");
    assert_eq!(returned, original);
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
