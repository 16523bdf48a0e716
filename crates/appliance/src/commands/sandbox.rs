//! `appliance sandbox`: a throw-away server in a local container, bootstrapped by this very binary.
//!
//! What it knows of a host lies in `$XDG_STATE_HOME/appliance/sandbox/NAME`:
//! an SSH key of its own, the host's keys, and an SSH configuration by which the host can be called by its name.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use appliance_sandbox::{Command, Distro, Host, HostOptions, Name, Publish, Sandbox, SandboxError};

use crate::ui;

/// The name of the host unless another is given.
const NAME: &str = "sandbox";

/// The label that tells this host from those of tests.
const LABEL: &str = "appliance.sandbox.by";

/// Where the binary lies before bootstrap installs it, as the one-line installer leaves it.
const DOWNLOADED: &str = "/root/appliance";

/// Where the proxy keeps the certificate of its local CA.
const CA: &str = "/var/lib/appliance-proxy/local-ca/ca.pem";

/// Binaries above this size are stripped before they are copied in. In bytes.
const LARGE: u64 = 40 << 20;

/// What to do with the sandbox.
#[derive(Debug, clap::Subcommand)]
pub enum SandboxCommand {
    /// Start the sandbox server and bootstrap it
    Up(UpArgs),
    /// Remove the sandbox server and everything on it
    Down {
        #[command(flatten)]
        which: Which,
    },
    /// Show whether the sandbox server runs, and how to reach it
    Status {
        #[command(flatten)]
        which: Which,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Open a root shell on the sandbox server, or run a command there
    Ssh {
        #[command(flatten)]
        which: Which,
        /// The command and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

/// Which sandbox
#[derive(Debug, clap::Args)]
pub struct Which {
    /// The sandbox's name: its container, its host name, and what `servers:` may call it
    #[arg(long, default_value = NAME, value_parser = |text: &str| Name::parse(text))]
    name: Name,
}

/// Start the sandbox server and bootstrap it
#[derive(Debug, clap::Args)]
pub struct UpArgs {
    #[command(flatten)]
    which: Which,
    /// Its distribution: debian12 or debian13
    // The newer one by default: a binary built on this machine may want a newer C library than Debian 12 has.
    #[arg(long, default_value = "debian13", value_parser = distro)]
    distro: Distro,
    /// A further SSH public key that may deploy and administer; may be repeated
    #[arg(long = "key", value_name = "PUBLIC KEY")]
    keys: Vec<String>,
    /// Loopback port that leads to the server's port 80 (0: any free one)
    #[arg(long, default_value_t = 0)]
    http_port: u16,
    /// Loopback port that leads to the server's port 443 (0: any free one)
    #[arg(long, default_value_t = 0)]
    https_port: u16,
}

fn distro(text: &str) -> Result<Distro, String> {
    Distro::parse(text).ok_or_else(|| format!("`{text}` is not one of debian12, debian13"))
}

/// Runs one of the sandbox commands.
///
/// # Errors
/// When Docker cannot be reached, an image cannot be built, or bootstrap fails on the new host.
pub async fn run(command: &SandboxCommand) -> anyhow::Result<()> {
    if let SandboxCommand::Ssh { which, command } = command {
        return ssh(&Place::of(&which.name)?, command);
    }
    let docker_host = std::env::var("DOCKER_HOST").ok();
    let sandbox = Arc::new(Sandbox::connect(docker_host.as_deref(), &std::env::temp_dir()).await?);
    match command {
        SandboxCommand::Up(args) => up(&sandbox, args, &Place::of(&args.which.name)?).await,
        SandboxCommand::Down { which } => down(&sandbox, &Place::of(&which.name)?).await,
        SandboxCommand::Status { which, json } => status(&sandbox, &Place::of(&which.name)?, *json).await,
        SandboxCommand::Ssh { .. } => Ok(()),
    }
}

/// The SSH configurations of all sandboxes of this user, for commands that reach hosts by name.
pub fn ssh_configs() -> Vec<PathBuf> {
    let Ok(root) = root() else { return Vec::new() };
    let Ok(entries) = fs_err::read_dir(root) else {
        return Vec::new();
    };
    let mut found: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path().join("ssh_config")))
        .filter(|path| path.is_file())
        .collect();
    found.sort();
    found
}

/// `$XDG_STATE_HOME/appliance/sandbox`, or below `~/.local/state` (XDG Base Directory Specification 0.8).
fn root() -> anyhow::Result<PathBuf> {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let state = absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .context("neither XDG_STATE_HOME nor HOME is set to an absolute path; set HOME")?;
    Ok(state.join("appliance/sandbox"))
}

/// The files of one sandbox.
#[derive(Debug)]
struct Place {
    name: Name,
    directory: PathBuf,
}

impl Place {
    fn of(name: &Name) -> anyhow::Result<Self> {
        Ok(Self {
            name: name.clone(),
            directory: root()?.join(name.as_str()),
        })
    }

    fn key(&self) -> PathBuf {
        self.directory.join("id_ed25519")
    }

    fn known_hosts(&self) -> PathBuf {
        self.directory.join("known_hosts")
    }

    fn ssh_config(&self) -> PathBuf {
        self.directory.join("ssh_config")
    }

    fn ca(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// The sandbox's public key; the pair is made once.
    fn public_key(&self) -> anyhow::Result<String> {
        use std::os::unix::fs::DirBuilderExt as _;

        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .with_context(|| format!("cannot create {}", self.directory.display()))?;
        let key = self.key();
        if !key.exists() {
            let output = std::process::Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-C", "appliance-sandbox", "-f"])
                .arg(&key)
                .stdin(Stdio::null())
                .output()
                .context(
                    "cannot run ssh-keygen; install the OpenSSH client (`apt install openssh-client`)",
                )?;
            if !output.status.success() {
                bail!(
                    "ssh-keygen cannot make {}: {}",
                    key.display(),
                    String::from_utf8_lossy(&output.stderr).trim()
                );
            }
        }
        let public = key.with_extension("pub");
        Ok(fs_err::read_to_string(&public)?.trim().to_owned())
    }

    fn write(&self, path: &Path, content: &[u8]) -> anyhow::Result<()> {
        use std::io::Write as _;

        let mut file = tempfile::NamedTempFile::new_in(&self.directory)
            .with_context(|| format!("cannot write in {}", self.directory.display()))?;
        file.write_all(content)
            .and_then(|()| file.as_file().sync_all())
            .with_context(|| format!("cannot write {}", path.display()))?;
        file.persist(path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(())
    }
}

async fn up(sandbox: &Arc<Sandbox>, args: &UpArgs, place: &Place) -> anyhow::Result<()> {
    let public = place.public_key()?;
    match sandbox.host(&place.name).await {
        Ok(host) => {
            if !host.running().await? {
                let step = ui::step("start the sandbox again");
                host.power_on().await?;
                step.done("");
            }
            record(&host, place).await?;
            return tell(&host, place).await;
        }
        Err(SandboxError::Unknown { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let mut options = HostOptions::new(place.name.clone(), args.distro);
    options.authorized_keys = vec![public.clone()];
    options.labels.insert(LABEL.to_owned(), "sandbox".to_owned());
    options.publish = [(22, 0), (80, args.http_port), (443, args.https_port)]
        .map(|(host, machine)| Publish { host, machine })
        .into();
    let step = ui::step(&format!("start a bare {} server", args.distro));
    let host = sandbox.start(&options, &ui::detail).await?;
    host.wait_booted().await?;
    step.done(&host.ip().await?.to_string());

    let result = bootstrap(&host, args, &public).await;
    if let Err(error) = result {
        // A half-made server would answer the next `up` as if it were whole.
        host.remove().await?;
        return Err(error);
    }
    record(&host, place).await?;
    tell(&host, place).await
}

async fn bootstrap(host: &Host, args: &UpArgs, public: &str) -> anyhow::Result<()> {
    let step = ui::step("copy this binary in");
    let binary = this_binary().await?;
    let size = binary.len() as u64;
    host.copy_in(DOWNLOADED, binary, 0o755).await?;
    step.done(&ui::bytes(size));

    // No certificate authority can reach a sandbox, whatever its apps are called.
    let prepare = Command::new(["mkdir", "-p", "/etc/appliance"].map(str::to_owned));
    host.exec(&prepare).await?;
    let settings = b"acme:\n  enabled: false\n".to_vec();
    host.copy_in("/etc/appliance/host.yml", settings, 0o644).await?;

    let step = ui::step("bootstrap");
    let mut argv = vec![
        DOWNLOADED.to_owned(),
        "bootstrap".to_owned(),
        "--allow-container".to_owned(),
    ];
    for key in std::iter::once(public).chain(args.keys.iter().map(String::as_str)) {
        argv.extend(["--admin-key", key, "--deploy-key", key].map(str::to_owned));
    }
    let output = host
        .exec_with(&Command::new(argv), &|line| ui::note(&format!("  {line}")))
        .await?;
    if !output.success() {
        step.failed();
        bail!("bootstrap ended with status {} on the sandbox", output.status);
    }
    step.done("");
    Ok(())
}

/// This very binary; a large one (a debug build) without its symbols, if `strip` is there.
async fn this_binary() -> anyhow::Result<Vec<u8>> {
    let path = std::env::current_exe().context("cannot tell where this binary lies")?;
    let size = fs_err::metadata(&path)?.len();
    if size > LARGE {
        let stripped = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
        let status = tokio::process::Command::new("strip")
            .arg("-o")
            .arg(stripped.path())
            .arg(&path)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .await;
        if status.is_ok_and(|status| status.success()) {
            return Ok(fs_err::read(stripped.path())?);
        }
    }
    Ok(fs_err::read(&path)?)
}

/// Writes down how the host is reached: its keys, its ports, its CA.
async fn record(host: &Host, place: &Place) -> anyhow::Result<()> {
    let name = &place.name;
    let port = host.published(22).await?;
    let mut known = String::new();
    for kind in ["ed25519", "ecdsa"] {
        let key = host.read(&format!("/etc/ssh/ssh_host_{kind}_key.pub")).await?;
        let key = String::from_utf8_lossy(&key);
        let mut words = key.split_whitespace();
        if let (Some(algorithm), Some(blob)) = (words.next(), words.next()) {
            known.push_str(&format!(
                "{name} {algorithm} {blob}\n[127.0.0.1]:{port} {algorithm} {blob}\n"
            ));
        }
    }
    place.write(&place.known_hosts(), known.as_bytes())?;
    let config = format!(
        "# Written by `appliance sandbox up`; `appliance push` reads it by itself.\n\
         # For ssh, add `Include {}` to ~/.ssh/config.\n\
         Host {name}\n\
         \x20   HostName 127.0.0.1\n\
         \x20   Port {port}\n\
         \x20   HostKeyAlias {name}\n\
         \x20   IdentityFile {}\n\
         \x20   UserKnownHostsFile {}\n",
        place.ssh_config().display(),
        place.key().display(),
        place.known_hosts().display(),
    );
    place.write(&place.ssh_config(), config.as_bytes())?;
    // The proxy makes its CA when it first needs it; before that there is nothing to copy.
    if let Ok(ca) = host.read(CA).await {
        place.write(&place.ca(), &ca)?;
    }
    Ok(())
}

async fn tell(host: &Host, place: &Place) -> anyhow::Result<()> {
    ui::line(&format!(
        "the sandbox is up: http://localhost:{}, https://localhost:{}",
        host.published(80).await?,
        host.published(443).await?
    ));
    ui::line("");
    ui::line("push to it from a directory with config/deploy.yml that says:");
    ui::line("  servers:");
    ui::line(&format!("    - {}", place.name));
    ui::line("  ssh:");
    ui::line("    user: deploy");
    ui::line(&format!("    keys: [{}]", place.key().display()));
    ui::line("");
    ui::line("then: appliance push");
    let which = if place.name.as_str() == NAME {
        String::new()
    } else {
        format!(" --name {}", place.name)
    };
    ui::line(&format!(
        "root shell: appliance sandbox ssh{which}; remove it: appliance sandbox down{which}"
    ));
    Ok(())
}

async fn down(sandbox: &Arc<Sandbox>, place: &Place) -> anyhow::Result<()> {
    match sandbox.host(&place.name).await {
        Ok(host) => {
            let step = ui::step("remove the sandbox");
            host.remove().await?;
            step.done("");
        }
        Err(SandboxError::Unknown { .. }) => ui::line("there is no sandbox"),
        Err(error) => return Err(error.into()),
    }
    // The key stays: it is the user's, and the next sandbox takes it again.
    for path in [place.known_hosts(), place.ssh_config(), place.ca()] {
        match fs_err::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

async fn status(sandbox: &Arc<Sandbox>, place: &Place, json: bool) -> anyhow::Result<()> {
    let host = match sandbox.host(&place.name).await {
        Ok(host) => host,
        Err(SandboxError::Unknown { .. }) => {
            if json {
                ui::json(&serde_json::json!({ "state": "absent" }));
            } else {
                ui::line("there is no sandbox; start one with `appliance sandbox up`");
            }
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let running = host.running().await?;
    if !running {
        if json {
            ui::json(&serde_json::json!({ "state": "stopped", "distro": host.distro() }));
        } else {
            ui::line("the sandbox is stopped; start it again with `appliance sandbox up`");
        }
        return Ok(());
    }
    if json {
        let (v4, v6) = host.addresses().await?;
        ui::json(&serde_json::json!({
            "state": "running",
            "name": place.name.as_str(),
            "distro": host.distro(),
            "ipv4": v4,
            "ipv6": v6,
            "ssh_port": host.published(22).await?,
            "http_port": host.published(80).await?,
            "https_port": host.published(443).await?,
            "key": place.key(),
            "ssh_config": place.ssh_config(),
            "known_hosts": place.known_hosts(),
            "ca": place.ca(),
        }));
        return Ok(());
    }
    tell(&host, place).await
}

/// Becomes `ssh`, so that the terminal, signals and the exit status are its own.
fn ssh(place: &Place, command: &[String]) -> anyhow::Result<()> {
    use std::os::unix::process::CommandExt as _;

    let config = place.ssh_config();
    if !config.exists() {
        bail!("there is no sandbox; start one with `appliance sandbox up`");
    }
    let error = std::process::Command::new("ssh")
        .arg("-F")
        .arg(&config)
        .args(["-l", "root", place.name.as_str(), "--"])
        .args(command)
        .exec();
    Err(error).context("cannot run ssh; install the OpenSSH client (`apt install openssh-client`)")
}
