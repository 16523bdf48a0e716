//! A developer's machine: a home with a key, an app's directory, and the command line run there.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use appliance_sandbox::Image;

use crate::bench;
use crate::world::World;

/// How long one command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(300);

/// A home directory and an app's directory, both empty at first but for an SSH key.
#[derive(Debug)]
pub struct Developer {
    directory: tempfile::TempDir,
    public_key: Option<String>,
}

impl Developer {
    /// A developer with a new ed25519 key at `~/.ssh/id_ed25519`.
    ///
    /// # Errors
    /// If `ssh-keygen` cannot be run.
    pub async fn new() -> anyhow::Result<Self> {
        let mut developer = Self::without_key().await?;
        let key = developer.home().join(".ssh/id_ed25519");
        let status = tokio::process::Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "developer@test", "-f"])
            .arg(&key)
            .stdin(Stdio::null())
            .status()
            .await
            .context("cannot run ssh-keygen")?;
        if !status.success() {
            bail!("ssh-keygen failed");
        }
        developer.public_key = Some(
            fs_err::read_to_string(key.with_extension("pub"))?
                .trim()
                .to_owned(),
        );
        Ok(developer)
    }

    pub(crate) async fn without_key() -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("appliance-test-").tempdir()?;
        for name in ["home/.ssh", "app"] {
            fs_err::create_dir_all(directory.path().join(name))?;
        }
        Ok(Self {
            directory,
            public_key: None,
        })
    }

    pub(crate) fn take_key(&mut self, private: &[u8], public: &[u8]) -> anyhow::Result<()> {
        let key = self.home().join(".ssh/id_ed25519");
        write(&key, private, 0o600)?;
        write(&key.with_extension("pub"), public, 0o644)?;
        self.public_key = Some(String::from_utf8_lossy(public).trim().to_owned());
        Ok(())
    }

    pub(crate) fn key_pair(&self) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
        let key = self.home().join(".ssh/id_ed25519");
        Ok((fs_err::read(&key)?, fs_err::read(key.with_extension("pub"))?))
    }

    /// The public key's line; none before it was given one.
    #[must_use]
    pub fn public_key(&self) -> Option<&str> {
        self.public_key.as_deref()
    }

    /// `$HOME`.
    #[must_use]
    pub fn home(&self) -> PathBuf {
        self.directory.path().join("home")
    }

    /// The app's directory, where commands run.
    #[must_use]
    pub fn app(&self) -> PathBuf {
        self.directory.path().join("app")
    }

    /// Writes a host's SSH keys into `~/.ssh/known_hosts`, so that nothing needs to be trusted on first use.
    ///
    /// # Errors
    /// If the host has none or the file cannot be written.
    pub async fn know(&self, world: &World) -> anyhow::Result<()> {
        let (v4, v6) = world.host.addresses().await?;
        let mut lines = String::new();
        for kind in ["ed25519", "ecdsa"] {
            let key = world
                .host
                .read(&format!("/etc/ssh/ssh_host_{kind}_key.pub"))
                .await?;
            let key = String::from_utf8_lossy(&key);
            let words: Vec<_> = key.split_whitespace().take(2).collect();
            for address in [v4.to_string(), v6.to_string()] {
                lines.push_str(&format!("{address} {}\n", words.join(" ")));
            }
        }
        let path = self.home().join(".ssh/known_hosts");
        let before = fs_err::read(&path).unwrap_or_default();
        write(&path, &[before, lines.into_bytes()].concat(), 0o600)
    }

    /// Writes a file below the app's directory.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, path: &str, text: &str) -> anyhow::Result<()> {
        write(&self.app().join(path), text.as_bytes(), 0o644)
    }

    /// Makes the app's directory hold the demo app: its image in the local Docker as `SERVICE:VERSION`, and a
    /// `config/deploy.yml` for the world's host with TLS by the local CA and the host name `demo.test`.
    ///
    /// `more` is YAML added at the end, such as an `env:` section.
    ///
    /// # Errors
    /// If the image cannot be built or a file cannot be written.
    pub async fn demo_app(&self, version: &str, world: &World, more: &str) -> anyhow::Result<()> {
        let image = Image::Demo {
            version: version.to_owned(),
        };
        let built = world.bench.sandbox.ensure(&image, &|_| ()).await?;
        world
            .bench
            .sandbox
            .tag(&built, &format!("demo:{version}"))
            .await?;
        self.write(
            "config/deploy.yml",
            &demo_deploy_yml(&world.ip().await?.to_string(), None, more),
        )?;
        self.write(".kamal/secrets", "")
    }

    /// The command line, run in the app's directory with this home and nothing else of our environment.
    pub fn appliance<I, S>(&self, arguments: I) -> Invocation
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        Invocation {
            arguments: arguments
                .into_iter()
                .map(|argument| argument.as_ref().to_owned())
                .collect(),
            home: self.home(),
            directory: self.app(),
            env: Vec::new(),
            limit: COMMAND_LIMIT,
        }
    }
}

/// A `config/deploy.yml` for the demo app on one server: host name `demo.test`, TLS.
///
/// `key` is a private key to use instead of those in `~/.ssh`; `more` is YAML added at the end.
/// A push is not watched for half a minute after its switch, unless `more` has an `x-appliance:` of its own.
#[must_use]
pub fn demo_deploy_yml(server: &str, key: Option<&Path>, more: &str) -> String {
    let keys = key
        .map(|key| format!("  keys: [{}]\n", key.display()))
        .unwrap_or_default();
    let arch = match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    };
    // The same lines either way: tests look for mistakes by their line.
    let builder = if more.contains("x-appliance:") {
        format!("builder:\n  arch: {arch}\n")
    } else {
        format!("builder: {{arch: {arch}}}\nx-appliance: {{watch: false}}\n")
    };
    format!(
        "service: demo\n\
         image: demo\n\
         servers:\n  - {server}\n\
         proxy:\n  host: demo.test\n  ssl: true\n  app_port: 80\n\
         ssh:\n  user: deploy\n{keys}\
         registry:\n  server: localhost:5555\n\
         {builder}\
         {more}"
    )
}

fn write(path: &Path, content: &[u8], mode: u32) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;

    if let Some(parent) = path.parent() {
        fs_err::create_dir_all(parent)?;
    }
    fs_err::write(path, content)?;
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// A command line about to be run.
#[derive(Debug)]
pub struct Invocation {
    arguments: Vec<std::ffi::OsString>,
    home: PathBuf,
    directory: PathBuf,
    env: Vec<(String, String)>,
    limit: Duration,
}

impl Invocation {
    /// One environment variable more.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// How long it may take, instead of five minutes.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The process about to be started, for what needs its streams; nothing is its input.
    ///
    /// # Errors
    /// If the binary under test is not known.
    pub fn command(&self) -> anyhow::Result<tokio::process::Command> {
        let mut command = self.command_of(bench::binary()?);
        command.args(&self.arguments);
        Ok(command)
    }

    /// Another program in the same surroundings, without arguments.
    pub fn command_of(&self, program: impl AsRef<std::ffi::OsStr>) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(program);
        command
            .current_dir(&self.directory)
            .env_clear()
            .env("HOME", &self.home)
            .env("USER", "developer")
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("NO_COLOR", "1")
            .envs(std::env::var_os("DOCKER_HOST").map(|host| ("DOCKER_HOST", host)))
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs it, whatever its status.
    ///
    /// # Errors
    /// If it cannot be started or runs out of time; it is then killed.
    pub async fn run(self) -> anyhow::Result<Ran> {
        let mut command = self.command()?;
        let shown = self
            .arguments
            .iter()
            .map(|word| word.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ");
        let output = tokio::time::timeout(self.limit, command.output())
            .await
            .with_context(|| format!("`appliance {shown}` took more than {} s", self.limit.as_secs()))?
            .with_context(|| format!("cannot run `appliance {shown}`"))?;
        Ok(Ran {
            shown,
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

/// What a command printed and how it ended.
#[derive(Clone, Debug)]
pub struct Ran {
    shown: String,
    /// Its exit code; -1 if a signal ended it.
    pub code: i32,
    /// Its result.
    pub stdout: String,
    /// Its progress, warnings and errors.
    pub stderr: String,
}

impl Ran {
    /// Itself, if it ended with that code.
    ///
    /// # Errors
    /// Otherwise, with everything it printed.
    pub fn expect_code(self, code: i32) -> anyhow::Result<Self> {
        if self.code == code {
            return Ok(self);
        }
        bail!(
            "`appliance {}` ended with {}, not {code}\nstdout:\n{}\nstderr:\n{}",
            self.shown,
            self.code,
            self.stdout,
            self.stderr
        );
    }

    /// Itself, if standard error holds a text.
    ///
    /// # Errors
    /// Otherwise, with everything it printed.
    pub fn expect_error(self, text: &str) -> anyhow::Result<Self> {
        if self.stderr.contains(text) {
            return Ok(self);
        }
        bail!(
            "`appliance {}` did not say {text:?} but:\n{}",
            self.shown,
            self.stderr
        );
    }

    /// Its result as JSON.
    ///
    /// # Errors
    /// If it is not JSON.
    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_str(&self.stdout)
            .with_context(|| format!("`appliance {}` did not print JSON: {}", self.shown, self.stdout))
    }
}
