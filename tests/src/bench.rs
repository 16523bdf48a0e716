//! The local Docker, the binary under test, and names for what a test makes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, bail};
use appliance_sandbox::{Name, Outside, Sandbox};

/// The label on every container of a test; its value is the process that made it.
pub const LABEL: &str = "appliance.test.process";

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// The connection of one test to Docker. Made anew for each test, since each has its own runtime.
#[derive(Clone, Debug)]
pub struct Bench {
    /// The daemon.
    pub sandbox: Arc<Sandbox>,
}

impl Bench {
    /// Connects to Docker.
    ///
    /// # Errors
    /// If no daemon answers; `cargo xtask test` starts one.
    pub async fn connect() -> anyhow::Result<Self> {
        let docker_host = std::env::var("DOCKER_HOST").ok();
        let sandbox = Sandbox::connect(docker_host.as_deref(), &std::env::temp_dir())
            .await
            .context("tests need Docker; `cargo xtask test` starts it")?;
        Ok(Self {
            sandbox: Arc::new(sandbox),
        })
    }

    /// A name no other test or process uses.
    ///
    /// # Errors
    /// If `hint` has characters that host names cannot have.
    pub fn name(hint: &str) -> anyhow::Result<Name> {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let short: String = hint.chars().take(20).collect();
        Ok(Name::parse(&format!(
            "t{}-{number}-{}",
            std::process::id(),
            short.trim_end_matches('-')
        ))?)
    }

    /// The labels by which leavings are found.
    #[must_use]
    pub fn labels() -> BTreeMap<String, String> {
        BTreeMap::from([(LABEL.to_owned(), std::process::id().to_string())])
    }

    /// An outsider on a host's network; removed when the guard is dropped.
    ///
    /// # Errors
    /// What building or Docker failed with.
    pub async fn outside(&self, network: &str) -> anyhow::Result<(Outside, Removal)> {
        let name = Self::name("outside")?;
        let outside = self
            .sandbox
            .outside(&name, Some(network), &Self::labels(), &|_| ())
            .await?;
        Ok((outside, Removal::of(&name)))
    }

    /// Removes what earlier test processes left, because they were killed.
    ///
    /// # Errors
    /// What Docker failed with.
    pub async fn sweep(&self) -> anyhow::Result<()> {
        for host in self.sandbox.list(LABEL, None).await? {
            let process = host.labels.get(LABEL).cloned().unwrap_or_default();
            if !PathBuf::from(format!("/proc/{process}")).exists() {
                self.sandbox.remove_container(&host.name).await?;
            }
        }
        Ok(())
    }
}

/// The binary under test.
///
/// # Errors
/// If `APPLIANCE_BIN` is not set or names no file.
pub fn binary() -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("APPLIANCE_BIN").map(PathBuf::from).context(
        "APPLIANCE_BIN is not set; run `cargo xtask test [FILTER]`, which builds the binary and sets it",
    )?;
    if !path.is_file() {
        bail!("APPLIANCE_BIN names {}, which is not a file", path.display());
    }
    Ok(path)
}

/// Removes a container when dropped, whatever state the test's runtime is in.
#[derive(Debug)]
pub struct Removal {
    name: Name,
}

impl Removal {
    /// Guards the container of that name.
    #[must_use]
    pub fn of(name: &Name) -> Self {
        Self { name: name.clone() }
    }
}

impl Drop for Removal {
    #[allow(clippy::print_stderr)]
    fn drop(&mut self) {
        if std::env::var_os("APPLIANCE_TEST_KEEP").is_some() && std::thread::panicking() {
            eprintln!("kept for a look: docker exec -it {} bash", self.name);
            return;
        }
        let name = self.name.clone();
        // The test's runtime may be ending: a thread of its own does the work and is waited for.
        let thread = std::thread::spawn(move || -> anyhow::Result<()> {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?
                .block_on(async {
                    Ok(Bench::connect()
                        .await?
                        .sandbox
                        .remove_container(name.as_str())
                        .await?)
                })
        });
        match thread.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => eprintln!("cannot remove {}: {error:#}", self.name),
            Err(_) => eprintln!("cannot remove {}: the removing thread panicked", self.name),
        }
    }
}
