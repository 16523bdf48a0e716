//! Out and back: the same database, in every way there is.

use std::path::Path;
use std::process::Stdio;

use appliance_backup::backup::{Source, backup};
use appliance_backup::manifest::Manifest;
use appliance_backup::names::{Kind, Subject};
use appliance_backup::postgres::Postgres;
use appliance_backup::repository::Repository;
use appliance_backup::restore::{self, Part, RestoreError, Target, drill, restore};
use appliance_backup::store::PART;
use appliance_backup::stream::{self, Feed};

use crate::rig::cluster::Cluster;
use crate::rig::{self, S3, cluster, outside, subject};

async fn back_up(repository: &Repository, directory: &Path, server: &Postgres, database: &str) -> Manifest {
    let order = rig::order(subject(database));
    backup(
        repository,
        &rig::journal(directory),
        &order,
        Source::Postgres(server),
        outside(),
    )
    .await
    .expect("a backup")
}

/// A table, where nobody can tell how much room there is.
fn part(table: &str) -> Option<Part<'_>> {
    Some(Part { table, free: None })
}

/// A database of its own with everything in it.
async fn all_types(cluster: &Cluster, server: &Postgres, name: &str) {
    server
        .run(
            "postgres",
            "DO $$ BEGIN CREATE ROLE reader; CREATE ROLE \"odd role\" LOGIN PASSWORD 'x'; GRANT reader TO \"odd role\"; \
             EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$",
        )
        .await
        .expect("roles");
    let quoted = appliance_backup::postgres::sql::ident(name);
    let statements = [
        format!("CREATE DATABASE {quoted} OWNER \"odd role\""),
        format!("GRANT CONNECT ON DATABASE {quoted} TO reader"),
        format!("ALTER DATABASE {quoted} SET work_mem TO '7MB'"),
        format!("ALTER ROLE reader IN DATABASE {quoted} SET search_path TO public, \"odd schema\""),
        format!("COMMENT ON DATABASE {quoted} IS 'the shop''s own'"),
    ];
    for statement in statements {
        server.run("postgres", &statement).await.expect("prepared");
    }
    cluster.file(
        name,
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/all_types.sql"),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_all_types_comes_back_equal_by_swap_undo_and_drill() {
    for version in cluster::VERSIONS {
        comes_back_equal(version).await;
    }
}

async fn comes_back_equal(version: u32) {
    let directory = tempfile::tempdir().expect("directory");
    let s3 = S3::start(&directory.path().join("s3")).await;
    let cluster = Cluster::of(version);
    let server = cluster.postgres(directory.path());
    let name = "all types='x'";
    all_types(&cluster, &server, name).await;
    let repository = rig::repository(s3.store("some/prefix")).await;
    let before = cluster.plain(name);
    let manifest = back_up(&repository, directory.path(), &server, name).await;
    let counts = manifest.counts.clone().expect("counted");
    assert_eq!(counts.tables["public.every_type"].rows, 504);
    assert_eq!(counts.tables["public.no_columns"].rows, 7);
    assert_eq!(counts.tables["public.child"].rows, 2);
    assert_eq!(counts.large_objects, 5);
    assert!(
        !counts.tables.contains_key("public.parted"),
        "its partitions count for themselves"
    );

    // The live database is spoilt; the swap brings back what was, with owner, grants, settings and comment.
    let properties = server.database(name).await.expect("asked").expect("there");
    server
        .run(
            name,
            "DROP TABLE public.every_type CASCADE; INSERT INTO public.nothing VALUES (1)",
        )
        .await
        .expect("spoilt");
    let spoilt = cluster.plain(name);
    let journal = rig::journal(directory.path());
    let restored = restore(
        &repository,
        &journal,
        &server,
        &manifest,
        &Target::Swap,
        None,
        outside(),
    )
    .await
    .expect("restored");
    assert_eq!(restored.rows, counts.rows());
    assert_eq!(cluster.plain(name), before);
    assert_eq!(
        server.database(name).await.expect("asked").expect("there"),
        properties
    );
    assert_eq!(cluster.plain(&restored.before.expect("kept")), spoilt);
    assert!(
        !server
            .databases()
            .await
            .expect("asked")
            .iter()
            .any(|other| other.contains("_before_")),
        "not backed up"
    );

    restore::undo(&journal, &server, &manifest.subject, outside())
        .await
        .expect("undone");
    assert_eq!(cluster.plain(name), spoilt);
    restore::undo(&journal, &server, &manifest.subject, outside())
        .await
        .expect("and back");
    assert_eq!(cluster.plain(name), before);

    // Beside the live one under a name of the user's choice, which must be free.
    let target = Target::Into("copy".to_owned());
    restore(
        &repository,
        &journal,
        &server,
        &manifest,
        &target,
        None,
        outside(),
    )
    .await
    .expect("restored");
    assert_eq!(cluster.plain("copy"), before);
    let taken = restore(
        &repository,
        &journal,
        &server,
        &manifest,
        &target,
        None,
        outside(),
    )
    .await;
    assert!(matches!(taken, Err(RestoreError::Taken { .. })));
    // One table only.
    let one = restore(
        &repository,
        &journal,
        &server,
        &manifest,
        &Target::Beside,
        part("public.no_columns"),
        outside(),
    )
    .await
    .expect("one table");
    assert_eq!(
        server
            .run(&one.database, "SELECT count(*) FROM public.no_columns")
            .await
            .expect("asked"),
        "7"
    );
    assert_eq!(
        server
            .run(&one.database, "SELECT to_regclass('public.parent') IS NULL")
            .await
            .expect("asked"),
        "t"
    );

    // One table of types of its own, in a schema of its own, with keys, indexes and a sequence.
    let weird = "\"odd \"\"schema\"\"\".\"Weird.Name; --\"";
    for (table, quoted, keyed) in [
        ("every_type", "public.every_type", true),
        (weird, weird, false),
        ("public.parted", "public.parted", false),
    ] {
        let one = restore(
            &repository,
            &journal,
            &server,
            &manifest,
            &Target::Beside,
            part(table),
            outside(),
        )
        .await
        .expect("one table");
        let sum =
            format!("SELECT count(*), sum(pg_catalog.hashtextextended(t::text, 0)::numeric) FROM {quoted} t");
        let made = format!(
            "SELECT string_agg(pg_get_indexdef(indexrelid), '; ' ORDER BY indexrelid::regclass::text) \
             FROM pg_index WHERE indrelid = {}::regclass",
            appliance_backup::postgres::sql::literal(quoted)
        );
        for question in [&sum, &made] {
            let there = server.run(&one.database, question).await.expect("asked");
            assert_eq!(there, server.run(name, question).await.expect("asked"), "{table}");
        }
        let indexes = server.run(&one.database, &made).await.expect("asked");
        assert_eq!(indexes.contains("UNIQUE"), keyed, "{indexes}");
    }
    let missing = restore(
        &repository,
        &journal,
        &server,
        &manifest,
        &Target::Beside,
        part("public.nowhere"),
        outside(),
    )
    .await;
    assert!(matches!(missing, Err(RestoreError::Table { .. })), "{missing:?}");
    let full = Part {
        table: "public.parted",
        free: Some(1 << 20),
    };
    let full = restore(
        &repository,
        &journal,
        &server,
        &manifest,
        &Target::Beside,
        Some(full),
        outside(),
    )
    .await;
    assert!(matches!(full, Err(RestoreError::Room { .. })), "{full:?}");

    // In a server that has none of the roles.
    let scratch = cluster::scratch(version).postgres(directory.path());
    let result = drill(&repository, &scratch, &manifest, outside())
        .await
        .expect("drilled");
    assert_eq!(
        (result.rows, result.tables),
        (counts.rows(), counts.tables.len() as u64)
    );
    assert!(result.indexes.is_some_and(|indexes| indexes > 0));
    let catalogue = repository
        .catalogue(&manifest.subject.prefix())
        .await
        .expect("listed");
    assert_eq!(catalogue.backups[0].drill.as_ref(), Some(&result));
    assert!(journal.interrupted().expect("read").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn other_encodings_and_several_databases_each_have_their_own_backup() {
    let directory = tempfile::tempdir().expect("directory");
    let cluster = Cluster::of(cluster::VERSIONS[0]);
    let server = cluster.postgres(directory.path());
    server
        .run(
            "postgres",
            "CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'",
        )
        .await
        .expect("made");
    server
        .run(
            "latin",
            "CREATE TABLE public.t AS SELECT U&'\\00E9t\\00E9' AS word",
        )
        .await
        .expect("filled");
    let repository = rig::in_directory(directory.path().join("backups")).await;
    let names = server.databases().await.expect("listed");
    assert!(
        names.contains(&"latin".to_owned()) && !names.contains(&"template1".to_owned()),
        "{names:?}"
    );
    let manifest = back_up(&repository, directory.path(), &server, "latin").await;
    let journal = rig::journal(directory.path());
    let restored = restore(
        &repository,
        &journal,
        &server,
        &manifest,
        &Target::Beside,
        None,
        outside(),
    )
    .await
    .expect("restored");
    assert_eq!(cluster.plain(&restored.database), cluster.plain("latin"));
    let missing = backup(
        &repository,
        &journal,
        &rig::order(subject("no such database")),
        Source::Postgres(&server),
        outside(),
    )
    .await;
    assert!(
        missing
            .expect_err("refused")
            .to_string()
            .contains("no such database")
    );
    assert_eq!(repository.catalogue("").await.expect("listed").backups.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn common_tools_alone_restore_it_as_the_page_in_the_bucket_says() {
    let directory = tempfile::tempdir().expect("directory");
    let cluster = Cluster::of(cluster::VERSIONS[0]);
    let server = cluster.postgres(directory.path());
    server
        .run("postgres", "CREATE DATABASE by_hand")
        .await
        .expect("made");
    // Incompressible and more than two parts, so that the object is a multipart one.
    server
        .run(
            "by_hand",
            "CREATE EXTENSION pgcrypto SCHEMA public; CREATE TABLE public.t AS SELECT n, public.gen_random_bytes(1024) AS b \
             FROM generate_series(1, 18000) AS n",
        )
        .await
        .expect("filled");
    let s3 = S3::start(&directory.path().join("s3")).await;
    let repository = rig::repository(s3.store("by/hand")).await;
    let manifest = back_up(&repository, directory.path(), &server, "by_hand").await;
    assert!(
        manifest.stored_bytes() > 2 * PART as u64,
        "{}",
        manifest.stored_bytes()
    );
    std::fs::write(directory.path().join("recovery.key"), rig::HOST_KEY).expect("key");

    // The page's own lines, with the place filled in, run by somebody who has no more than it names.
    let options = s3.options("by/hand");
    let endpoint = options.endpoint.as_deref().expect("a test server");
    let in_shell = |script: String| {
        let mut shell = cluster.shell();
        let aws = format!("aws() {{ command aws --endpoint-url {endpoint} \"$@\"; }}");
        shell
            .args(["-euo", "pipefail", "-c", &format!("{aws}\n{script}")])
            .current_dir(directory.path())
            .env("AWS_ACCESS_KEY_ID", &options.access_key_id)
            .env("AWS_SECRET_ACCESS_KEY", &options.secret_access_key)
            .env("AWS_DEFAULT_REGION", &options.region)
            .stderr(Stdio::inherit());
        let ran = shell.output().expect("bash");
        assert!(ran.status.success(), "{script}");
        String::from_utf8(ran.stdout).expect("text")
    };
    let page = in_shell("aws s3 cp s3://bkt/by/hand/README.txt -".to_owned());
    let (_, lines) = page
        .split_once("Restore a PostgreSQL database\n")
        .expect("it says how");
    let (lines, _) = lines.split_once("From a directory").expect("until there");
    let key = manifest.subject.key(&manifest.id, "");
    let place = format!("PREFIX=s3://bkt/by/hand/{}", key.trim_end_matches('/'));
    let script: Vec<&str> = lines
        .lines()
        .filter_map(|line| line.strip_prefix("  "))
        .map(|line| {
            if line.starts_with("PREFIX=") {
                place.as_str()
            } else {
                line
            }
        })
        .collect();
    assert!(script.contains(&place.as_str()), "{lines}");
    in_shell(script.join("\n"));
    assert_eq!(cluster.plain("restored"), cluster.plain("by_hand"));
}

#[tokio::test(flavor = "multi_thread")]
async fn content_without_a_server_has_the_same_protocol() {
    let directory = tempfile::tempdir().expect("directory");
    let s3 = S3::start(&directory.path().join("s3")).await;
    let repository = rig::repository(s3.store("")).await;
    let content: Vec<u8> = (0..(PART as u32 * 3))
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let volume = Subject {
        kind: Kind::Volume,
        unit: "data".to_owned(),
        ..subject("")
    };
    let source = Source::Stream(Feed::Reader(Box::new(std::io::Cursor::new(content.clone()))));
    let manifest = backup(
        &repository,
        &rig::journal(directory.path()),
        &rig::order(volume),
        source,
        outside(),
    )
    .await
    .expect("a backup");
    assert_eq!(manifest.plain_bytes, content.len() as u64);
    stream::read(&repository, &manifest, None, Box::new(std::io::sink()))
        .await
        .expect("the same");

    // On the wire: equal parts, signed and of known length, with the digest that was declared; the manifest last.
    let seen = s3.seen();
    let parts: Vec<_> = seen.iter().filter(|seen| seen.part()).collect();
    assert!(parts.len() >= 4);
    // They go up beside one another, so the smaller last one is not always the last to come.
    let smaller = parts.iter().filter(|part| part.body != PART).count();
    assert!(smaller <= 1, "{parts:?}");
    for part in parts {
        assert!(
            !part.headers.contains_key("x-amz-trailer") && !part.headers.contains_key("content-encoding")
        );
        assert!(
            part.headers.contains_key("x-amz-checksum-crc32"),
            "{:?}",
            part.headers
        );
        let payload = part.headers["x-amz-content-sha256"].to_str().expect("text");
        assert!(!payload.starts_with("STREAMING"), "{payload}");
    }
    let begun = seen
        .iter()
        .find(|seen| seen.method == "POST" && seen.query.contains("uploads"))
        .expect("begun");
    assert_eq!(begun.headers["x-amz-checksum-algorithm"], "CRC32");
    let last = seen
        .iter()
        .rev()
        .find(|seen| seen.method != "HEAD" && seen.method != "GET")
        .expect("a write");
    assert!(last.manifest(), "{last:?}");
    assert_eq!(last.headers["if-none-match"], "*");
}
