//! Who is refused, with which word, that it is recorded, and that nothing changed.

use anyhow::{Context as _, ensure};
use appliance_push::change::{Change, Envelope, Expectation, HostId, ReleaseNumber, Verb};
use appliance_push::trust::Permission;
use appliance_sandbox::{Command, Distro};
use appliance_tests::developer::demo_deploy_yml;
use appliance_tests::{Developer, World};
use hyper::{Method, StatusCode};
use jiff::{SignedDuration, Timestamp};

use crate::door::{self, Door};

/// A signed text in another shape than we would send it.
struct Forgery {
    what: &'static str,
    code: &'static str,
    /// Who the record must name.
    who: String,
    envelope: Envelope,
}

#[tokio::test]
async fn a_change_that_is_not_right_in_every_respect_is_refused_recorded_and_without_effect()
-> anyhow::Result<()> {
    let world = World::bootstrapped("trust", Distro::Debian13).await?;
    world.developer.demo_app("v1", &world, "").await?;
    world
        .developer
        .appliance(["push", "--version", "v1"])
        .run()
        .await?
        .expect_code(0)?;
    let site = world.https("demo.test", "/").await?;
    let door = Door::open(&world).await?;
    let limited = limited_key(&door).await?;

    // Accepted once, and harmless: the app is live already.
    let accepted = door
        .signer
        .seal(&door.change(Some("demo"), Verb::AppStart { roles: Vec::new() })?)
        .await?;
    let end = door.submit(&accepted).await?;
    ensure!(end["end"] == "done", "{end}");

    for forgery in forgeries(&door, &limited, accepted).await? {
        refused(&world, &door, forgery).await?;
        let answer = site.get().await?;
        ensure!(
            (answer.status, answer.version()) == (200, Some("v1")),
            "{answer:?}"
        );
    }

    // What is no envelope at all never comes to a decision that could be recorded.
    let records = door.records().await?.len();
    for body in [
        "",
        "{}",
        "{\"payload\":1}",
        "\0\0",
        r#"{"payload":"","signature":"","more":1}"#,
    ] {
        let answer = door.send(Method::POST, "/v1/changes", &[], body).await?;
        ensure!(answer.status == StatusCode::BAD_REQUEST, "{body}: {answer:?}");
    }
    ensure!(door.records().await?.len() == records);

    audit_log_proves_itself(&world).await
}

/// A key that may deploy the app `other`, and nothing else.
async fn limited_key(door: &Door) -> anyhow::Result<Developer> {
    let limited = Developer::new().await?;
    let verb = Verb::KeyAdd {
        key: limited.public_key().context("has a key")?.to_owned(),
        permissions: vec![Permission::Deploy {
            apps: vec!["other".parse()?],
        }],
        comment: "limited".to_owned(),
    };
    let end = door.ask(&door.change(None, verb)?).await?;
    ensure!(end["end"] == "done", "{end}");
    Ok(limited)
}

async fn forgeries(door: &Door, limited: &Developer, accepted: Envelope) -> anyhow::Result<Vec<Forgery>> {
    let stranger = Developer::new().await?;
    let (stranger, limited_signer) = (door::signer(&stranger.home())?, door::signer(&limited.home())?);
    let us = door.signer.public_key().fingerprint().to_string();
    let them = limited_signer.public_key().fingerprint().to_string();
    let stop = || {
        door.change(
            Some("demo"),
            Verb::AppStop {
                message: Some("forged".to_owned()),
                roles: Vec::new(),
            },
        )
    };
    let altered = |how: &dyn Fn(&mut Change)| -> anyhow::Result<Change> {
        let mut change = stop()?;
        how(&mut change);
        Ok(change)
    };
    let now = Timestamp::now();
    let window = |change: &mut Change, from: i64, to: i64| {
        change.issued_at = now + SignedDuration::from_mins(from);
        change.expires_at = now + SignedDuration::from_mins(to);
    };
    let mut rows = Vec::new();
    let mut row = |what, code, who: &str, envelope| {
        rows.push(Forgery {
            what,
            code,
            who: who.to_owned(),
            envelope,
        });
    };

    let honest = door.signer.seal(&stop()?).await?;
    let other_bytes = Envelope::new(&stop()?.to_payload()?, honest.signature.clone());
    row("a signature over other bytes", "bad-signature", &us, other_bytes);
    let git = signed_for_git(door, &stop()?.to_payload()?, &limited.home()).await?;
    row("a signature made for git", "bad-signature", &them, git);
    let mut no_signature = honest;
    no_signature.signature = "trust me".to_owned();
    row("no signature", "malformed-signature", "unknown", no_signature);
    let mut odd: serde_json::Value = serde_json::from_slice(&stop()?.to_payload()?)?;
    odd["sudo"] = true.into();
    let odd = serde_json::to_vec(&odd)?;
    let odd = Envelope::new(&odd, door.signer.sign(&odd).await?);
    row("a field nobody knows", "malformed-change", &us, odd);
    let by_stranger = stranger.seal(&stop()?).await?;
    let stranger = stranger.public_key().fingerprint().to_string();
    row("a key nobody enrolled", "unknown-key", &stranger, by_stranger);

    let enrol_myself = Verb::KeyAdd {
        key: limited.public_key().context("has a key")?.to_owned(),
        permissions: vec![Permission::Admin],
        comment: String::new(),
    };
    for (what, change) in [
        ("stopping another app", stop()?),
        (
            "rolling another app back",
            door.change(
                Some("demo"),
                Verb::Rollback {
                    to: None,
                    roles: Vec::new(),
                },
            )?,
        ),
        (
            "removing another app",
            door.change(Some("demo"), Verb::AppRemove)?,
        ),
        (
            "uploading for another app",
            door.change(Some("demo"), Verb::Upload { blobs: Vec::new() })?,
        ),
        ("making oneself admin", door.change(None, enrol_myself)?),
    ] {
        row(what, "not-permitted", &them, limited_signer.seal(&change).await?);
    }

    let elsewhere = HostId::parse(&format!("age1{}", "q".repeat(58)))?;
    let ring = |release| Expectation::Release(release);
    for (what, code, change) in [
        (
            "another host",
            "other-host",
            altered(&|change| change.host = elsewhere.clone())?,
        ),
        (
            "an hour ago",
            "expired",
            altered(&|change| window(change, -60, -50))?,
        ),
        (
            "in an hour",
            "not-yet-valid",
            altered(&|change| window(change, 60, 65))?,
        ),
        (
            "for a day",
            "window-too-long",
            altered(&|change| window(change, 0, 1440))?,
        ),
        (
            "expecting a release to come",
            "release-moved",
            altered(&|change| change.expects = ring(Some(ReleaseNumber(2))))?,
        ),
        (
            "expecting no release",
            "release-moved",
            altered(&|change| change.expects = ring(None))?,
        ),
    ] {
        row(what, code, &us, door.signer.seal(&change).await?);
    }
    row("a change seen before", "replayed", &us, accepted);
    Ok(rows)
}

/// The same bytes signed by OpenSSH with an enrolled key, but for another purpose.
async fn signed_for_git(_door: &Door, payload: &[u8], home: &std::path::Path) -> anyhow::Result<Envelope> {
    let file = home.join("payload");
    fs_err::write(&file, payload)?;
    let output = tokio::process::Command::new("ssh-keygen")
        .args(["-Y", "sign", "-n", "git", "-f"])
        .arg(home.join(".ssh/id_ed25519"))
        .arg(&file)
        .env_remove("SSH_AUTH_SOCK")
        .output()
        .await?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let signature = fs_err::read_to_string(home.join("payload.sig"))?;
    Ok(Envelope::new(payload, signature))
}

async fn refused(world: &World, door: &Door, forgery: Forgery) -> anyhow::Result<()> {
    let Forgery {
        what,
        code,
        who,
        envelope,
    } = forgery;
    let before = door::picture(world).await?;
    let records = door.records().await?.len();

    let end = door.submit(&envelope).await.context(what)?;
    ensure!(
        end["end"] == "refused" && end["code"] == code,
        "{what}: expected the refusal {code}, got {end}"
    );
    for field in ["message", "next"] {
        ensure!(
            end[field].as_str().is_some_and(|text| !text.is_empty()),
            "{what}: no {field} in {end}"
        );
    }

    let after = door.records().await?;
    ensure!(
        after.len() == records + 1,
        "{what}: {} records instead of one more than {records}",
        after.len()
    );
    let record = after.last().context("just counted")?;
    let digest = appliance_push::Digest::of(&envelope.payload_bytes()?);
    ensure!(
        record["who"] == who.as_str()
            && record["result"] == "refused"
            && record["payload_sha256"] == digest.hex()
            && record["detail"]["code"] == code
            && record["detail"]["why"]
                .as_str()
                .is_some_and(|why| !why.is_empty()),
        "{what}: the record does not say who, what and why: {record}"
    );
    door::unchanged(&before, &door::picture(world).await?).context(what)
}

/// Whole after all this; broken as soon as somebody edits it, takes a line out, or cuts its end off.
async fn audit_log_proves_itself(world: &World) -> anyhow::Result<()> {
    let verify = async || world.developer.appliance(["audit", "--verify"]).run().await;
    let whole = verify().await?.expect_code(0)?;
    ensure!(whole.stdout.contains("unaltered"), "{}", whole.stdout);

    let log = "/var/lib/appliance/audit.log";
    let original = world.host.read(log).await?;
    for (how, line) in [
        (
            "3s/\"refused\"/\"done\"/;3s/\"done\"/\"failed\"/;3s/\"begun\"/\"done\"/",
            "line 3",
        ),
        ("4d", "line 4"),
        ("$d", "line "),
    ] {
        let edit = Command::new(["sed", "--in-place", how, log]);
        ensure!(world.host.exec(&edit).await?.success());
        ensure!(world.host.read(log).await? != original, "{how} changes nothing");
        verify().await?.expect_code(1)?.expect_error(line).context(how)?;
        // Written into the same file, which the agent holds open.
        let restore = Command::new(["sh", "-c", "cat > \"$0\"", log]).stdin(original.clone());
        ensure!(world.host.exec(&restore).await?.success());
        verify().await?.expect_code(0)?;
    }
    Ok(())
}

#[tokio::test]
async fn a_key_can_do_what_it_was_enrolled_for_and_nothing_once_removed() -> anyhow::Result<()> {
    let world = World::bootstrapped("keys", Distro::Debian12).await?;
    world.developer.demo_app("v1", &world, "").await?;
    let developer = Developer::new().await?;
    developer.know(&world).await?;
    let fingerprint = door::signer(&developer.home())?
        .public_key()
        .fingerprint()
        .to_string();
    let configure = async |service: &str| -> anyhow::Result<()> {
        let yml = demo_deploy_yml(&world.ip().await?.to_string(), None, "")
            .replace("service: demo", &format!("service: {service}"))
            .replace("demo.test", &format!("{service}.test"));
        developer.write("config/deploy.yml", &yml)?;
        developer.write(".kamal/secrets", "")
    };
    let push = || developer.appliance(["push", "--version", "v1"]).run();

    configure("other").await?;
    // Not enrolled: the door does not open.
    push().await?.expect_code(4)?;

    let file = developer.home().join(".ssh/id_ed25519.pub");
    let file = file.to_str().context("temporary paths are text")?;
    world
        .developer
        .appliance(["keys", "add", file, "--deploy", "other"])
        .run()
        .await?
        .expect_code(0)?;
    push().await?.expect_code(0)?;
    let answer = world.https("other.test", "/").await?.get().await?;
    ensure!(
        (answer.status, answer.version()) == (200, Some("v1")),
        "{answer:?}"
    );

    configure("demo").await?;
    // Not even what runs there is shown, so nothing is sent.
    push()
        .await?
        .expect_code(3)?
        .expect_error("this key may not look at the app demo")?;
    developer
        .appliance(["keys", "add", file, "--admin"])
        .run()
        .await?
        .expect_code(3)?
        .expect_error("not-permitted")?;

    let open = Door::open_as(&world, &developer.home()).await?;
    open.get("/v1/status").await?;
    world
        .developer
        .appliance(["keys", "remove", &fingerprint])
        .run()
        .await?
        .expect_code(0)?;
    // What was open learns nothing more and changes nothing; what is closed stays closed.
    let answer = open.send(Method::GET, "/v1/status", &[], "").await?;
    ensure!(answer.status == StatusCode::FORBIDDEN, "{answer:?}");
    let change = open.change(
        Some("other"),
        Verb::AppStop {
            message: Some("still here".to_owned()),
            roles: Vec::new(),
        },
    )?;
    ensure!(open.ask(&change).await.is_err(), "a removed key stopped an app");
    configure("other").await?;
    push().await?.expect_code(4)?;
    let answer = world.https("other.test", "/").await?.get().await?;
    ensure!(answer.status == 200, "{answer:?}");

    let listed = world
        .developer
        .appliance(["keys", "list"])
        .run()
        .await?
        .expect_code(0)?;
    ensure!(!listed.stdout.contains(&fingerprint), "{}", listed.stdout);
    // The last administrator cannot lock everybody out.
    let own = door::signer(&world.developer.home())?
        .public_key()
        .fingerprint()
        .to_string();
    world
        .developer
        .appliance(["keys", "remove", &own])
        .run()
        .await?
        .expect_code(3)?;
    Door::open(&world).await?;
    Ok(())
}
