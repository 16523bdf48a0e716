//! A lax S3 server: moto checks no signature and no digest, and knows versions and unfinished uploads.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use appliance_backup::store::Store;

use super::s3;

/// A moto server; it ends with this value.
pub struct Moto {
    child: Child,
    pub port: u16,
}

impl Moto {
    pub fn start() -> Self {
        let program =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/moto/bin/moto_server");
        // A port that was free a moment ago: the server cannot be handed one.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a port")
            .port();
        let child = Command::new(&program)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}; cargo xtask test installs it", program.display()));
        let begun = std::time::Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed().as_secs() < 60, "moto does not listen");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        Self { child, port }
    }

    /// A bucket that keeps every version of its objects, as one with object lock does.
    pub async fn bucket(&self) {
        use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
        use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new(s3::ACCESS, s3::SECRET, None, None, "test"))
            .endpoint_url(format!("http://127.0.0.1:{}", self.port))
            .force_path_style(true);
        let client = aws_sdk_s3::Client::from_conf(config.build());
        client.create_bucket().bucket("bkt").send().await.expect("made");
        let versions = VersioningConfiguration::builder()
            .status(BucketVersioningStatus::Enabled)
            .build();
        client
            .put_bucket_versioning()
            .bucket("bkt")
            .versioning_configuration(versions)
            .send()
            .await
            .expect("versions are kept");
    }

    pub fn store(&self, prefix: &str) -> Arc<dyn Store> {
        s3::store(s3::options(self.port, prefix))
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
