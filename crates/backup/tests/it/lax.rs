//! A lax store beside the strict one: moto checks no signature and no digest, and knows versions and unfinished uploads.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use appliance_backup::backup::{Order, Source, backup};
use appliance_backup::names::{Kind, Subject};
use appliance_backup::recover;
use appliance_backup::restore::{Target, restore};
use appliance_backup::retention::Plan;
use appliance_backup::store::Store;

use crate::rig::{self, cluster, outside, subject};

/// A moto server; it ends with this value.
struct Moto {
    child: Child,
    port: u16,
}

impl Moto {
    fn start() -> Self {
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
    async fn bucket(&self) {
        use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
        use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new(
                rig::s3::ACCESS,
                rig::s3::SECRET,
                None,
                None,
                "test",
            ))
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

    fn store(&self, prefix: &str) -> Arc<dyn Store> {
        rig::s3::store(rig::s3::options(self.port, prefix))
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lax_store_with_versions_keeps_backups_as_well_and_is_swept() {
    let directory = tempfile::tempdir().expect("directory");
    let moto = Moto::start();
    moto.bucket().await;
    let server = cluster::shared().postgres(directory.path());
    server.run("postgres", "CREATE DATABASE lax").await.expect("made");
    // More than two parts, so that the object is a multipart one.
    server
        .run(
            "lax",
            "CREATE EXTENSION pgcrypto SCHEMA public; CREATE TABLE public.t AS SELECT n, public.gen_random_bytes(1024) AS b \
             FROM generate_series(1, 18000) AS n",
        )
        .await
        .expect("filled");
    let repository = rig::repository(moto.store("some/prefix")).await;
    let journal = rig::journal(directory.path());
    let order = Order {
        subject: subject("lax"),
        image: None,
        bandwidth: None,
        previous: None,
        odd: None,
    };
    let mut made = Vec::new();
    for _ in 0..2 {
        let source = Source::Postgres(&server);
        made.push(
            backup(&repository, &journal, &order, source, outside())
                .await
                .expect("a backup"),
        );
    }
    let restored = restore(
        &repository,
        &journal,
        &server,
        &made[0],
        &Target::Beside,
        None,
        outside(),
    )
    .await
    .expect("restored");
    assert_eq!(restored.rows, 18_000);

    // What was removed is removed for every list, though the store keeps the versions.
    let catalogue = repository.catalogue("").await.expect("listed");
    let plan = Plan {
        keep: vec![],
        remove: vec![made[0].id.clone()],
        frozen: None,
    };
    recover::prune(&repository, &journal, &catalogue, &plan, "word")
        .await
        .expect("pruned");
    assert_eq!(
        repository.catalogue("").await.expect("listed").backups.len(),
        1,
        "one is left"
    );

    // Unfinished uploads: ours goes once it is old, those of others stay whatever their age.
    let store = &repository.store;
    let ours = subject("lax").key(&made[1].id, "vol-00007.zst.age");
    store.begin(&ours).await.expect("begun");
    store.begin("photos/holiday.jpg").await.expect("begun");
    let elsewhere = Subject {
        kind: Kind::Redis,
        ..subject("lax")
    };
    moto.store("another/prefix")
        .begin(&elsewhere.key(&made[1].id, "vol-00000.zst.age"))
        .await
        .expect("begun");
    let now = jiff::Timestamp::now();
    assert_eq!(recover::sweep(&repository, "", now).await.expect("swept"), 0);
    let later = now + jiff::SignedDuration::from_hours(49);
    assert_eq!(recover::sweep(&repository, "", later).await.expect("swept"), 1);
    let left = store.unfinished("").await.expect("listed");
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(left[0].key, "photos/holiday.jpg");
    assert_eq!(
        moto.store("another/prefix")
            .unfinished("")
            .await
            .expect("listed")
            .len(),
        1,
        "another prefix is not ours"
    );
    assert_eq!(repository.catalogue("").await.expect("listed").backups.len(), 1);
}
