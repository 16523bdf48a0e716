//! Content on its way to a host: cut off, wrong, too large, unasked for. What is refused leaves nothing behind.

use anyhow::{Context as _, ensure};
use appliance_push::change::{BlobRef, Digest, Verb};
use appliance_sandbox::Distro;
use appliance_tests::World;
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use hyper::{Method, StatusCode};

use crate::door::{self, Door};
use crate::relay::Relay;

const MIB: u64 = 1 << 20;
/// The layer that is cut off: random, so that compression does not shrink it.
const LARGE: u64 = 24 * MIB;

/// Removes an image from the local Docker when dropped.
struct LocalImage(String);

impl LocalImage {
    /// The demo app's image with one more layer that holds `bytes` random bytes.
    async fn with_layer(base: &str, name: &str, bytes: u64) -> anyhow::Result<Self> {
        let scratch = tempfile::tempdir()?;
        let file = scratch.path().join("random");
        fs_err::write(&file, random(bytes)?)?;
        let container = docker(&["create", base]).await?;
        let copied = async {
            let file = file.to_str().context("temporary paths are text")?;
            docker(&["cp", file, &format!("{container}:/random")]).await?;
            docker(&["commit", &container, name]).await
        }
        .await;
        docker(&["rm", &container]).await?;
        copied?;
        Ok(Self(name.to_owned()))
    }
}

impl Drop for LocalImage {
    fn drop(&mut self) {
        // Best effort: an image that stays costs only room.
        let _removed = std::process::Command::new("docker")
            .args(["image", "rm", &self.0])
            .output();
    }
}

async fn docker(arguments: &[&str]) -> anyhow::Result<String> {
    let output = tokio::process::Command::new("docker")
        .args(arguments)
        .output()
        .await?;
    ensure!(
        output.status.success(),
        "docker {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn random(bytes: u64) -> anyhow::Result<Vec<u8>> {
    let mut content = vec![0; usize::try_from(bytes)?];
    SystemRandom::new()
        .fill(&mut content)
        .map_err(|_| anyhow::anyhow!("no random bytes"))?;
    Ok(content)
}

#[tokio::test]
async fn an_upload_cut_off_in_the_middle_goes_on_where_it_stopped() -> anyhow::Result<()> {
    let world = World::bootstrapped("cut", Distro::Debian13).await?;
    world.developer.demo_app("v1", &world, "").await?;
    let push = |version: &'static str| world.developer.appliance(["push", "--version", version]);
    push("v1").run().await?.expect_code(0)?;
    let relay = Relay::start(&world, &world.developer).await?;
    relay.lead(&world.developer)?;

    // The link breaks twice and comes back: one command, and nothing is sent twice but what was in flight.
    // Four connections: two that broke, the one that finished, and a new one for the release.
    let _twice = LocalImage::with_layer("demo:v1", "demo:twice", LARGE).await?;
    relay.cut(&[8 * MIB, 8 * MIB]);
    push("twice").run().await?.expect_code(0)?;
    let sent = relay.take_sent();
    ensure!(relay.connections() == 4, "{} connections", relay.connections());
    ensure!(
        (LARGE..LARGE + 6 * MIB).contains(&sent),
        "{sent} bytes were sent for a layer of {LARGE}"
    );

    // The link breaks and stays away: the command fails, and the next one goes on.
    let _later = LocalImage::with_layer("demo:v1", "demo:later", LARGE).await?;
    relay.cut(&[12 * MIB]);
    relay.dead_after_cuts(true);
    let cut = push("later").run().await?.expect_code(4)?;
    cut.expect_error("it continues where it stopped")?;
    let first = relay.take_sent();
    ensure!(first <= 12 * MIB);
    let site = world.https("demo.test", "/").await?;
    ensure!(site.get().await?.status == 200, "a cut upload took the app down");
    relay.dead_after_cuts(false);
    push("later").run().await?.expect_code(0)?;
    let second = relay.take_sent();
    ensure!(
        second + 8 * MIB < LARGE && first + second < LARGE + 6 * MIB,
        "{first} bytes were sent before the cut and {second} after it, for a layer of {LARGE}"
    );
    let left = world
        .run(&["find", "/var/lib/appliance/images/uploads", "-type", "f"])
        .await?;
    ensure!(
        left.is_empty(),
        "uploads that were completed are still there: {left}"
    );
    Ok(())
}

#[tokio::test]
async fn content_that_was_not_allowed_is_refused_and_leaves_nothing() -> anyhow::Result<()> {
    let world = World::bootstrapped("content", Distro::Debian12).await?;
    let door = Door::open(&world).await?;
    let blob = |bytes: &[u8]| BlobRef {
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
    };
    let (right, wrong) = (random(100_000)?, random(100_000)?);
    let (longer, other) = (random(100_001)?, random(100_000)?);
    let (allowed, not_allowed) = (blob(&right), blob(&other));
    let token = async |blobs: Vec<BlobRef>| -> anyhow::Result<String> {
        let end = door
            .ask(&door.change(Some("demo"), Verb::Upload { blobs })?)
            .await?;
        Ok(format!(
            "Bearer {}",
            end["token"]
                .as_str()
                .with_context(|| format!("no token: {end}"))?
        ))
    };
    let ours = token(vec![allowed.clone()]).await?;
    let foreign = token(vec![not_allowed.clone()]).await?;
    let made_up = format!("Bearer {}", "0".repeat(32));
    let before = door::picture(&world).await?;

    /// What, token, announced, sent, statuses.
    type Row<'a> = (
        &'static str,
        Option<&'a str>,
        &'a BlobRef,
        &'a [u8],
        &'static [u16],
    );
    let rows: [Row<'_>; 6] = [
        (
            "other bytes of the same length",
            Some(&ours),
            &allowed,
            &wrong,
            &[400],
        ),
        (
            "more bytes than announced",
            Some(&ours),
            &allowed,
            &longer,
            &[400, 413, 416],
        ),
        ("no token", None, &allowed, &right, &[401]),
        ("a token nobody gave", Some(&made_up), &allowed, &right, &[401]),
        (
            "a token for other content",
            Some(&foreign),
            &allowed,
            &right,
            &[401, 403],
        ),
        (
            "content no change named",
            Some(&ours),
            &not_allowed,
            &other,
            &[401, 403],
        ),
    ];
    for (what, token, announced, sent, statuses) in rows {
        let status = put(&door, token, announced, sent).await?;
        ensure!(
            statuses.contains(&status.as_u16()),
            "{what}: answered with {status}, not {statuses:?}"
        );
        let query = format!("/v2/demo/blobs/{}", announced.digest);
        let there = door.send(Method::HEAD, &query, &[], "").await?;
        ensure!(there.status == StatusCode::NOT_FOUND, "{what}: it is there");
        // An upload that was begun rightly may be continued rightly; of what was refused it holds no byte.
        let after = door::picture(&world).await?;
        let lines = after.lines().filter(|line| !line.contains("/images/uploads/"));
        door::unchanged(&before, &lines.collect::<Vec<_>>().join("\n")).context(what)?;
        let uploads = "/var/lib/appliance/images/uploads";
        let kept = world
            .run(&["find", uploads, "-name", "data", "-size", "+0"])
            .await?;
        ensure!(kept.is_empty(), "{what}: bytes are kept: {kept}");
    }

    // Nothing of all that stands in the way of the right bytes.
    ensure!(put(&door, Some(&ours), &allowed, &right).await? == StatusCode::CREATED);
    let path = format!("/v2/demo/blobs/{}", allowed.digest);
    let answer = door.send(Method::GET, &path, &[], "").await?;
    ensure!(answer.body == right, "other bytes came back");
    Ok(())
}

/// Begins an upload and sends it whole; the first status that is no success, else the last.
async fn put(door: &Door, token: Option<&str>, blob: &BlobRef, bytes: &[u8]) -> anyhow::Result<StatusCode> {
    let headers: Vec<_> = token.map(|token| ("authorization", token)).into_iter().collect();
    let path = format!(
        "/v2/demo/blobs/uploads/?expect={}&size={}",
        blob.digest, blob.size
    );
    let begun = door.send(Method::POST, &path, &headers, "").await?;
    if begun.status != StatusCode::ACCEPTED {
        return Ok(begun.status);
    }
    let location = begun.headers["location"].to_str()?;
    let path = format!("{location}?digest={}", blob.digest);
    Ok(door
        .send(Method::PUT, &path, &headers, bytes.to_vec())
        .await?
        .status)
}

#[tokio::test]
async fn an_image_that_does_not_fit_on_the_disk_is_refused_before_bytes_move() -> anyhow::Result<()> {
    let world = World::bootstrapped("full", Distro::Debian13).await?;
    world.developer.demo_app("v1", &world, "").await?;
    let relay = Relay::start(&world, &world.developer).await?;
    relay.lead(&world.developer)?;
    let _image = LocalImage::with_layer("demo:v1", "demo:large", LARGE).await?;

    // A disk of its own for the image store, with room for much less than the image and the reserve.
    let images = "/var/lib/appliance/images";
    world
        .run(&["systemctl", "stop", "appliance-agent.service"])
        .await?;
    world
        .run(&[
            "mount",
            "-t",
            "tmpfs",
            "-o",
            "size=64m,mode=0700",
            "tmpfs",
            images,
        ])
        .await?;
    world.ready().await?;
    let before = door::picture(&world).await?;

    let refused = world
        .developer
        .appliance(["push", "--version", "large"])
        .run()
        .await?
        .expect_code(3)?
        .expect_error("disk-full")?;
    ensure!(refused.stderr.contains("docker system df"), "{}", refused.stderr);
    let sent = relay.take_sent();
    ensure!(sent < MIB, "{sent} bytes went over the link");
    let spent = |picture: &str| -> String {
        let lines = picture.lines().filter(|line| !line.contains("nonces.json"));
        lines.collect::<Vec<_>>().join("\n")
    };
    // The refused change was well signed, so its nonce is spent; nothing else changed.
    door::unchanged(&spent(&before), &spent(&door::picture(&world).await?))?;

    // With room again, the same command goes through.
    world
        .run(&["systemctl", "stop", "appliance-agent.service"])
        .await?;
    world.run(&["umount", images]).await?;
    world.ready().await?;
    world
        .developer
        .appliance(["push", "--version", "large"])
        .run()
        .await?
        .expect_code(0)?;
    Ok(())
}
