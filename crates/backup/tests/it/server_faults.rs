//! A server's bad days, for each version of PostgreSQL: its sessions ended, itself killed, its doors closed; what was
//! stored altered; the disk of the backups full. After each the same holds, as [`Scene::holds`] says.

use std::sync::Arc;

use appliance_backup::backup::{Source, backup};
use appliance_backup::manifest::Manifest;
use appliance_backup::names::MANIFEST;
use appliance_backup::postgres::Postgres;
use appliance_backup::store::FileStore;

use crate::rig::cluster::{self, Cluster};
use crate::rig::full::Full;
use crate::rig::scene::Scene;
use crate::rig::{self, chain, outside, subject};

/// What a backup and a restore spend most of their time with.
const FILLER: &str = "CREATE TABLE public.filler AS SELECT n, repeat(md5(n::text), 200) AS x FROM generate_series(1, 12000) AS n";

async fn scene(cluster: &Cluster, directory: &std::path::Path, name: &str) -> Scene {
    let root = directory.join(cluster.version.to_string());
    Scene::new(cluster, rig::in_directory(root).await, name).await
}

/// Waits until a session of ours copies the filler in a database like this one, and does something about it.
async fn meanwhile(server: &Postgres, database: &str, what: impl AsyncFn()) {
    let question = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname LIKE '{database}' AND query LIKE 'COPY public.filler %' \
         AND state = 'active'"
    );
    while server.run("postgres", &question).await.expect("asked") == "0" {}
    what().await;
}

async fn end_sessions(server: &Postgres) {
    let ours = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                WHERE query LIKE 'COPY public.filler %' AND pid <> pg_backend_pid()";
    server.run("postgres", ours).await.expect("ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_fails_is_never_a_backup() {
    let directory = tempfile::tempdir().expect("directory");
    for version in cluster::VERSIONS {
        let cluster = Cluster::of(version);
        let scene = scene(&cluster, directory.path(), "trouble").await;
        let server = &scene.server;
        server.run("trouble", FILLER).await.expect("filled");

        // Somebody ends its session while it dumps; then the whole server goes, as with a container that is stopped.
        let ended = meanwhile(server, "trouble", async || end_sessions(server).await);
        let (failed, ()) = tokio::join!(scene.back_up(), ended);
        let text = chain(&failed.expect_err("its session was ended"));
        assert!(text.contains("pg_dump"), "{text}");
        scene.holds(&format!("{version}: pg_dump's session ended")).await;
        let stopped = meanwhile(server, "trouble", async || cluster.stop());
        let (failed, ()) = tokio::join!(scene.back_up(), stopped);
        let text = chain(&failed.expect_err("its server was stopped"));
        assert!(text.contains("pg_dump"), "{text}");
        let failed = scene.back_up().await.expect_err("there is no server");
        assert!(chain(&failed).contains("psql"), "{}", chain(&failed));
        cluster.run();
        scene
            .holds(&format!("{version}: the server killed in a backup"))
            .await;

        // The same in the middle of a restore.
        let newest = scene.back_up().await.expect("a backup");
        scene.goes_on().await;
        let ended = meanwhile(server, "trouble\\_restore%", async || end_sessions(server).await);
        let (failed, ()) = tokio::join!(scene.swap(&newest), ended);
        let text = chain(&failed.expect_err("its session was ended"));
        assert!(text.contains("pg_restore"), "{text}");
        scene
            .holds(&format!("{version}: pg_restore's session ended"))
            .await;
        let newest = scene.back_up().await.expect("a backup");
        scene.goes_on().await;
        let stopped = meanwhile(server, "trouble\\_restore%", async || cluster.stop());
        let (failed, ()) = tokio::join!(scene.swap(&newest), stopped);
        failed.expect_err("its server was stopped");
        cluster.run();
        scene
            .holds(&format!("{version}: the server killed in a restore"))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_lets_us_not_in_is_told_and_settings_of_its_own_do_no_harm() {
    let directory = tempfile::tempdir().expect("directory");
    for version in cluster::VERSIONS {
        let cluster = Cluster::of(version);
        let scene = scene(&cluster, directory.path(), "trouble").await;
        let server = &scene.server;
        let roles = "CREATE ROLE nobody LOGIN; CREATE ROLE guarded LOGIN SUPERUSER PASSWORD 'right'";
        server.run("postgres", roles).await.expect("made");
        cluster.allow("local all guarded scram-sha-256");
        let socket = cluster.socket().to_str().expect("text");
        let with = |host: &str, user: &str, password: &str| {
            let env = [("PGHOST", host), ("PGUSER", user), ("PGPASSWORD", password)];
            let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
            Postgres::new(Arc::clone(server.place()), env.to_vec())
        };
        for (way, says) in [
            (with("/nonexistent", "postgres", ""), "psql"),
            (with(socket, "nobody", ""), "permission denied"),
            (with(socket, "guarded", "wrong"), "password authentication failed"),
        ] {
            scene.goes_on().await;
            let failed = scene.back_up_by(&way).await.expect_err(says);
            assert!(chain(&failed).contains(says), "{}", chain(&failed));
            scene.holds(&format!("{version}: {says}")).await;
        }
        let right = with(socket, "guarded", "right");
        scene.back_up_by(&right).await.expect("the right password");

        // Settings that would end every dump after a moment, and a migration that holds a table for one.
        let settings = "ALTER DATABASE trouble SET statement_timeout TO '1ms'; \
                        ALTER DATABASE trouble SET default_transaction_read_only TO on; \
                        ALTER DATABASE trouble SET idle_in_transaction_session_timeout TO '1ms'";
        server.run("postgres", settings).await.expect("set");
        let newest = scene.back_up().await.expect("whatever the settings");
        scene.swap(&newest).await.expect("whatever the settings");
        let reset = "ALTER DATABASE trouble RESET ALL";
        server.run("postgres", reset).await.expect("reset");
        scene.holds(&format!("{version}: settings")).await;
        let held = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND relation = 'public.t'::regclass AND granted";
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'appliance backup%' AND wait_event_type = 'Lock'";
        let migration = server.run("trouble", "BEGIN; LOCK TABLE public.t; SELECT pg_sleep(60)");
        let ends = async {
            while server.run("trouble", held).await.expect("asked") == "0" {}
            let waited = async {
                while server.run("postgres", waits).await.expect("asked") == "0" {}
                let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'BEGIN; LOCK%' AND pid <> pg_backend_pid()";
                server.run("postgres", end).await.expect("ended");
            };
            tokio::join!(scene.back_up(), waited).0
        };
        let (_ended, stored) = tokio::join!(migration, ends);
        stored.expect("it waited for the table");
        scene.ends(&format!("{version}: a lock")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_leaves_nothing() {
    let directory = tempfile::tempdir().expect("directory");
    for version in cluster::VERSIONS {
        let scene = scene(cluster::live(version), directory.path(), "brimful").await;
        let root = directory.path().join(version.to_string());
        // Large enough that it has several parts.
        let random = "CREATE TABLE public.random AS SELECT n, sha512(n::text::bytea) || sha512((-n)::text::bytea) AS x \
                      FROM generate_series(1, 120000) AS n";
        scene.server.run("brimful", random).await.expect("filled");
        for writes in 0..2 {
            scene.goes_on().await;
            let store = Full::after(writes, FileStore::new(&root));
            let full = scene.repository.through(Arc::new(store));
            let order = rig::order(subject("brimful"));
            let source = Source::Postgres(&scene.server);
            let failed = backup(&full, &scene.journal(), &order, source, outside())
                .await
                .expect_err("full");
            assert!(chain(&failed).contains("No space left"), "{}", chain(&failed));
            let left: Vec<_> = walk(&root)
                .into_iter()
                .filter(|name| name.contains(".upload-"))
                .collect();
            assert!(left.is_empty(), "{left:?}");
            scene
                .holds(&format!("{version}: full after {writes} writes"))
                .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_altered_or_replayed_reaches_live_data() {
    let directory = tempfile::tempdir().expect("directory");
    for version in cluster::VERSIONS {
        let scene = scene(cluster::live(version), directory.path(), "altered").await;
        let root = directory.path().join(version.to_string());
        let old = scene.back_up().await.expect("a backup");
        scene.goes_on().await;
        let new = scene.back_up().await.expect("a backup");
        let path = |manifest: &Manifest, name: &str| root.join(manifest.subject.key(&manifest.id, name));
        let read = |manifest: &Manifest, name: &str| std::fs::read(path(manifest, name)).expect("read");
        let volume = "vol-00000.zst.age";
        let text = String::from_utf8(read(&new, MANIFEST)).expect("text");
        let altered = text.replace("\"rows\":501", "\"rows\":999").into_bytes();
        assert_ne!(altered, text.as_bytes());
        let mut flipped = read(&new, volume);
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        let stranger = appliance_backup::sign::Signer::from_seed(&[9; 32]);
        let forged = stranger.seal(&new).expect("sealed");
        for (what, name, bytes) in [
            ("another number", MANIFEST, altered),
            ("an older manifest", MANIFEST, read(&old, MANIFEST)),
            ("a stranger's signature", MANIFEST, forged),
            ("a flipped byte", volume, flipped),
            ("another volume", volume, read(&old, volume)),
            ("no volume", volume, Vec::new()),
        ] {
            scene.goes_on().await;
            let good = read(&new, name);
            overwrite(&path(&new, name), &bytes);
            // By the list, and by whoever has the manifest already.
            let listed = scene.repository.catalogue("").await.expect("listed");
            let listed = listed.backups.iter().any(|found| found.manifest.id == new.id);
            assert!(!listed || name == volume, "{version}: {what} is listed");
            if name == volume {
                scene.swap(&new).await.expect_err(what);
            }
            overwrite(&path(&new, name), &good);
            scene.stays(&format!("{version}: {what}")).await;
        }
        scene.swap(&new).await.expect("as it was, it restores");
        scene.ends(&format!("{version}: altered")).await;
    }
}

fn overwrite(path: &std::path::Path, bytes: &[u8]) {
    use std::io::Write as _;
    std::fs::File::create(path)
        .and_then(|mut file| file.write_all(bytes))
        .expect("written");
}

fn walk(directory: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| match entry.path() {
            path if path.is_dir() => walk(&path),
            path => vec![path.display().to_string()],
        })
        .collect()
}
