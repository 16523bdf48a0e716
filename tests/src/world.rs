//! One host of a test's own.
//!
//! A bare host boots in about a second.
//! A bootstrapped one is started from a snapshot of a host that the binary under test really bootstrapped:
//! that is done once for each binary and distribution, so tests of bootstrap itself must begin bare.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, bail};
use appliance_sandbox::{Command, Distro, Host, HostOptions, ImageRef, Output};
use aws_lc_rs::digest;

use crate::bench::{self, Bench, Removal};
use crate::developer::Developer;
use crate::http::Target;

/// Where the binary lies on a bare host, as the one-line installer leaves it.
pub const DOWNLOADED: &str = "/root/appliance";

/// Where a snapshot keeps the developer key it was bootstrapped with.
const SNAPSHOT_KEY: &str = "/root/.developer";

/// Where the proxy keeps the certificate of its local CA.
pub const CA: &str = "/var/lib/appliance-proxy/local-ca/ca.pem";

/// A host, somebody who may deploy to it, and the duty to remove it.
#[derive(Debug)]
pub struct World {
    /// The connection to Docker.
    pub bench: Bench,
    /// The host.
    pub host: Host,
    /// Root on the host by SSH; on a bootstrapped host also its first admin and deployer.
    pub developer: Developer,
    _removal: Removal,
}

impl World {
    /// A bare host with the binary under test at [`DOWNLOADED`], and a new developer whose key root accepts.
    ///
    /// # Errors
    /// What building, booting or copying failed with.
    pub async fn bare(hint: &str, distro: Distro) -> anyhow::Result<Self> {
        let world = Self::empty(hint, distro).await?;
        world
            .host
            .copy_file_in(&bench::binary()?, DOWNLOADED, 0o755)
            .await?;
        Ok(world)
    }

    /// A bare host without the binary.
    ///
    /// # Errors
    /// What building or booting failed with.
    pub async fn empty(hint: &str, distro: Distro) -> anyhow::Result<Self> {
        let developer = Developer::new().await?;
        Self::start(hint, distro, None, developer).await
    }

    /// A bootstrapped host; its developer is admin and may deploy every app.
    ///
    /// Hosts from one snapshot share SSH host keys and identity; for two different hosts, begin bare and call
    /// [`World::bootstrap`].
    ///
    /// # Errors
    /// What building, bootstrap or booting failed with.
    pub async fn bootstrapped(hint: &str, distro: Distro) -> anyhow::Result<Self> {
        let bench = Bench::connect().await?;
        let snapshot = snapshot(&bench, distro).await?;
        // The key is known only once the host runs.
        let mut world = Self::start(hint, distro, Some(snapshot), Developer::without_key().await?).await?;
        let private = world.host.read(&format!("{SNAPSHOT_KEY}/id_ed25519")).await?;
        let public = world.host.read(&format!("{SNAPSHOT_KEY}/id_ed25519.pub")).await?;
        world.developer.take_key(&private, &public)?;
        world.ready().await?;
        Ok(world)
    }

    async fn start(
        hint: &str,
        distro: Distro,
        snapshot: Option<ImageRef>,
        developer: Developer,
    ) -> anyhow::Result<Self> {
        let bench = Bench::connect().await?;
        let name = Bench::name(hint)?;
        let mut options = HostOptions::new(name.clone(), distro);
        options.labels = Bench::labels();
        options.snapshot = snapshot;
        options.authorized_keys = developer.public_key().map(str::to_owned).into_iter().collect();
        let removal = Removal::of(&name);
        let host = bench.sandbox.start(&options, &|_| ()).await?;
        host.wait_booted().await?;
        let world = Self {
            bench,
            host,
            developer,
            _removal: removal,
        };
        world.developer.know(&world).await?;
        Ok(world)
    }

    /// Runs the real bootstrap on a host from [`World::bare`], with the developer's key as admin and deployer.
    ///
    /// # Errors
    /// If it ends with a status other than 0, with all it wrote.
    pub async fn bootstrap(&self) -> anyhow::Result<Output> {
        let output = self.bootstrap_with(&[]).await?;
        if !output.success() {
            bail!(
                "bootstrap ended with status {}:\n{}\n{}",
                output.status,
                output.text(),
                output.error_text()
            );
        }
        Ok(output)
    }

    /// Like [`World::bootstrap`] with more arguments, whatever its status.
    ///
    /// # Errors
    /// If it cannot be run at all.
    pub async fn bootstrap_with(&self, more: &[&str]) -> anyhow::Result<Output> {
        let key = self.developer.public_key().context("this developer has no key")?;
        let mut argv = vec![
            DOWNLOADED,
            "bootstrap",
            "--allow-container",
            "--admin-key",
            key,
            "--deploy-key",
            key,
        ];
        argv.extend(more);
        Ok(self.host.exec(&Command::new(argv)).await?)
    }

    /// Waits until agent and proxy have told systemd that they are ready.
    ///
    /// # Errors
    /// If one does not within 30 seconds, with its journal.
    pub async fn ready(&self) -> anyhow::Result<()> {
        let units = ["appliance-agent.service", "appliance-proxy.service"];
        // `start` of a unit of type notify returns when it is ready, also if somebody else started it.
        let start =
            Command::new([&["systemctl", "start"][..], &units].concat()).timeout(Duration::from_secs(30));
        let output = self.host.exec(&start).await?;
        if output.success() {
            return Ok(());
        }
        let journal = self
            .host
            .run([
                "journalctl",
                "--no-pager",
                "--lines=40",
                "--unit",
                units[0],
                "--unit",
                units[1],
            ])
            .await?;
        bail!(
            "agent and proxy are not ready: {}\n{}",
            output.error_text(),
            journal.text()
        );
    }

    /// Runs a program on the host that must succeed; its standard output, trimmed.
    ///
    /// # Errors
    /// If its status is not 0.
    pub async fn run(&self, argv: &[&str]) -> anyhow::Result<String> {
        Ok(self.host.run(argv.iter().copied()).await?.text())
    }

    /// The host's IPv4 address.
    ///
    /// # Errors
    /// If it does not run.
    pub async fn ip(&self) -> anyhow::Result<IpAddr> {
        Ok(self.host.ip().await?)
    }

    /// Where a request for `name` goes: this host's port 443, trusting the host's local CA alone.
    ///
    /// # Errors
    /// If the proxy has made no CA yet.
    pub async fn https(&self, name: &str, path: &str) -> anyhow::Result<Target> {
        let ca = self
            .host
            .read(CA)
            .await
            .context("the proxy has no local CA yet; push an app with TLS first")?;
        Target::https(SocketAddr::new(self.ip().await?, 443), name, path, &ca)
    }

    /// Where a plain request for `name` goes: this host's port 80.
    ///
    /// # Errors
    /// If the host does not run.
    pub async fn http(&self, name: &str, path: &str) -> anyhow::Result<Target> {
        Ok(Target::http(SocketAddr::new(self.ip().await?, 80), name, path))
    }

    /// Waits until a unit's journal holds a text, from this boot's beginning on.
    ///
    /// # Errors
    /// If it does not within `limit`.
    pub async fn journal_says(&self, unit: &str, text: &str, limit: Duration) -> anyhow::Result<()> {
        let script = "grep --quiet --max-count=1 --fixed-strings -- \"$2\" \
                      < <(exec journalctl --follow --lines=all --boot --output=cat --unit \"$1\" 2>/dev/null)";
        let follow = Command::new(["bash", "-c", script, "bash", unit, text]).timeout(limit);
        if self.host.exec(&follow).await?.success() {
            return Ok(());
        }
        bail!("{unit} did not say {text:?} within {} s", limit.as_secs());
    }

    /// Kills a unit's processes at once, as a crash would.
    ///
    /// # Errors
    /// If the unit is not there.
    pub async fn crash(&self, unit: &str) -> anyhow::Result<()> {
        self.run(&["systemctl", "kill", "--signal=SIGKILL", unit])
            .await
            .map(drop)
    }
}

/// The snapshot of a host bootstrapped by the binary under test, made now if there is none.
async fn snapshot(bench: &Bench, distro: Distro) -> anyhow::Result<ImageRef> {
    let name = snapshot_name(distro)?;
    if let Some(found) = bench.sandbox.snapshot(&name).await? {
        return Ok(found);
    }
    // Tests of one process, and of others, wait here for the first.
    let path = std::env::temp_dir().join(format!("appliance-snapshot-{distro}.lock"));
    let _lock = tokio::task::spawn_blocking(move || -> std::io::Result<std::fs::File> {
        let file = std::fs::File::options().create(true).append(true).open(path)?;
        file.lock()?;
        Ok(file)
    })
    .await??;
    if let Some(found) = bench.sandbox.snapshot(&name).await? {
        return Ok(found);
    }
    let world = World::bare("snapshot", distro).await?;
    world
        .bootstrap()
        .await
        .context("cannot make a bootstrapped host for the tests to start from")?;
    world.ready().await?;
    let (private, public) = world.developer.key_pair()?;
    world
        .host
        .copy_in(&format!("{SNAPSHOT_KEY}/id_ed25519"), private, 0o600)
        .await?;
    world
        .host
        .copy_in(&format!("{SNAPSHOT_KEY}/id_ed25519.pub"), public, 0o644)
        .await?;
    world.host.run(["rm", "-f", DOWNLOADED]).await?;
    Ok(world.host.snapshot(&name).await?)
}

/// A snapshot is as good as the binary and the image it was made with.
fn snapshot_name(distro: Distro) -> anyhow::Result<String> {
    let hash = digest::digest(&digest::SHA256, &fs_err::read(bench::binary()?)?);
    Ok(format!("{distro}-{}", &hex::encode(hash)[..16]))
}
