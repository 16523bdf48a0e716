//! Which hosts a command concerns, how they are reached, and with which key its changes are signed.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use appliance_push::change::Fingerprint;
use appliance_push::sign::{self, Signer};
use appliance_push::ssh::{HostKeyPolicy, Options, Target};
use appliance_push::transport::Transport;

use super::link::Link;
use crate::agent::SOCKET;
use crate::failure::{Kind, failure};
use crate::{ui, wire};

/// How to reach hosts; for everything `ssh` of the configuration does not say
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ReachArgs {
    /// Act on this host instead of those of the configuration: [user@]host[:port]
    #[arg(long, value_name = "TARGET")]
    pub on: Vec<String>,
    /// Private key to log in and to sign with
    #[arg(long, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// Remember the key of a host that is not in known_hosts yet; a changed key is still refused
    #[arg(long)]
    pub accept_new_host_key: bool,
    /// File with known host keys
    #[arg(long, value_name = "FILE")]
    pub known_hosts: Option<PathBuf>,
}

/// `ssh:` of a configuration, as far as it concerns us.
#[derive(Debug, Clone, Default)]
pub struct SshSettings {
    /// Login name; absent when the configuration does not say.
    pub user: Option<String>,
    /// Port.
    pub port: Option<u16>,
    /// Key files.
    pub keys: Vec<PathBuf>,
    /// Whether only these keys are offered.
    pub keys_only: bool,
    /// Jump host.
    pub proxy: Option<String>,
}

/// The login name of hosts that bootstrap set up.
const DEPLOY_USER: &str = "deploy";

impl ReachArgs {
    fn options(&self, settings: &SshSettings) -> Options {
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let mut options = home.as_deref().map_or_else(Options::bare, Options::for_home);
        options
            .config_files
            .splice(0..0, crate::commands::sandbox::ssh_configs());
        options.local_user = std::env::var("USER").ok();
        options.agent = std::env::var_os("SSH_AUTH_SOCK").map(PathBuf::from);
        options.identities = self.identity.iter().chain(&settings.keys).cloned().collect();
        options.identities_only = self.identity.is_some() || settings.keys_only;
        if let Some(file) = &self.known_hosts {
            options.known_hosts.insert(0, file.clone());
        }
        if self.accept_new_host_key {
            options.policy = Some(HostKeyPolicy::AcceptNew);
        }
        if let Some(proxy) = &settings.proxy {
            options.jump = Some(vec![proxy.clone()]);
        }
        options.passphrase = Arc::new(|_| None);
        options
    }

    /// Connects to one host of a configuration.
    ///
    /// # Errors
    /// When it cannot be reached or entered.
    pub async fn connect(&self, host: &str, settings: &SshSettings) -> anyhow::Result<Link> {
        let mut target = Target::parse(host, self.options(settings))
            .map_err(|error| failure(Kind::Config, crate::agent::chain(&error)))?;
        target.port = target.port.or(settings.port);
        if target.user.is_none() {
            target.user = Some(settings.user.clone().unwrap_or_else(|| DEPLOY_USER.to_owned()));
        }
        ui::detail(&format!("connecting to {}", target.name()));
        Link::ssh(target).await
    }

    /// Connects to the hosts named by `--on`, or to this host's own agent.
    ///
    /// # Errors
    /// When a host cannot be reached, or there is neither `--on` nor an agent here.
    pub async fn hosts(&self) -> anyhow::Result<Vec<Link>> {
        if self.on.is_empty() {
            return Ok(vec![Link::local(SOCKET.as_ref()).await?]);
        }
        let mut links = Vec::new();
        for host in &self.on {
            links.push(self.connect(host, &SshSettings::default()).await?);
        }
        Ok(links)
    }

    /// Whether this machine is an appliance itself.
    pub fn is_local(&self) -> bool {
        self.on.is_empty() && std::path::Path::new(SOCKET).exists()
    }

    /// The public halves of all keys that we could sign with; those that cannot be read are left out.
    pub async fn offered(&self, link: &Link, settings: &SshSettings) -> Vec<sign::PublicKey> {
        let options = self.options(settings);
        let configured = match link.transport() {
            Transport::Ssh(target) => target.configured_identities().unwrap_or_default(),
            _ => Vec::new(),
        };
        let mut found: Vec<sign::PublicKey> = candidates(&options, &configured)
            .iter()
            .filter_map(|path| Signer::from_file(path, &mut |path| (options.passphrase)(path)).ok())
            .map(|signer| signer.public_key().clone())
            .collect();
        if let (Some(agent), None) = (&options.agent, &self.identity) {
            found.extend(sign::agent_keys(agent).await.unwrap_or_default());
        }
        found
    }

    /// Something to sign with that `link`'s host knows.
    ///
    /// # Errors
    /// When no key of ours is enrolled there.
    pub async fn signer(&self, link: &Link, settings: &SshSettings) -> anyhow::Result<Signer> {
        let enrolled: Vec<wire::Key> = link.get("/v1/keys").await?;
        let knows = |fingerprint: &Fingerprint| enrolled.iter().any(|key| key.fingerprint == *fingerprint);
        let mut tried = Vec::new();
        let options = self.options(settings);
        let configured = match link.transport() {
            Transport::Ssh(target) => target.configured_identities().unwrap_or_default(),
            _ => Vec::new(),
        };
        for path in candidates(&options, &configured) {
            match Signer::from_file(&path, &mut |path| (options.passphrase)(path)) {
                Ok(signer) => {
                    let fingerprint = signer.public_key().fingerprint();
                    // A key that was named is used whatever the host thinks of it: its refusal says why.
                    if self.identity.is_some() || knows(&fingerprint) {
                        return Ok(signer);
                    }
                    tried.push(format!("{fingerprint} ({})", path.display()));
                }
                Err(error) if self.identity.is_some() => {
                    return Err(error).with_context(|| format!("cannot sign with {}", path.display()));
                }
                Err(error) => tried.push(format!("{} ({error})", path.display())),
            }
        }
        if let Some(agent) = &options.agent {
            for key in sign::agent_keys(agent).await.unwrap_or_default() {
                let fingerprint = key.fingerprint();
                if knows(&fingerprint) {
                    return Ok(Signer::from_agent(agent, &fingerprint).await?);
                }
                tried.push(format!("{fingerprint} (ssh-agent)"));
            }
        }
        let tried = if tried.is_empty() {
            "none was found".to_owned()
        } else {
            tried.join(", ")
        };
        Err(failure(
            Kind::Refused,
            format!("{} knows none of our keys: {tried}", link.name()),
        )
        .hint("ask an administrator of the host to enrol one: appliance keys add FILE.pub")
        .into())
    }
}

/// Key files to sign with, in OpenSSH's order; only those that are there.
fn candidates(options: &Options, configured: &[PathBuf]) -> Vec<PathBuf> {
    let mut files = options.identities.clone();
    // The key that opens the door by `~/.ssh/config` signs as well, unless others were named.
    if files.is_empty() {
        files.extend(configured.iter().filter(|file| file.is_file()).cloned());
    }
    if files.is_empty()
        && let Some(home) = &options.home
    {
        for name in ["id_ed25519", "id_ecdsa"] {
            files.push(home.join(".ssh").join(name));
        }
        files.retain(|file| file.is_file());
    }
    files
}
