//! What follows a changed file: reloads and restarts.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::host::{Command, Host, HostError, must};

/// How often dockerd is asked whether it keeps containers running, with so much time in between; a swarm never does.
const LOOKS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(100);

/// New visitors wait: whoever connects tries again after a second. It ends by itself, should we be killed.
const HOLD: &str = "table inet appliance_hold
delete table inet appliance_hold
table inet appliance_hold {
  set held { type inet_service; flags timeout; elements = { 80 timeout 30s, 443 timeout 30s }; }
  chain hold {
    type filter hook prerouting priority dstnat - 20; policy accept;
    fib daddr type local tcp dport @held tcp flags & (syn | ack) == syn drop
  }
}
";
const RELEASE: &str = "table inet appliance_hold\ndelete table inet appliance_hold\n";

/// A reload or restart; each is harmless to repeat, and does nothing to what does not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Handler {
    /// systemd reads its units again.
    DaemonReload,
    /// systemd-tmpfiles makes what its snippets describe.
    Tmpfiles,
    /// journald takes its limits over.
    Journald,
    /// sshd reads its configuration again; open sessions stay.
    Ssh,
    /// dockerd reads `daemon.json` again.
    DockerReload,
    /// dockerd is restarted, with live-restore on, so that containers keep running.
    DockerRestart,
    /// A unit of ours is restarted if it runs.
    Restart(String),
    /// A unit of ours starts a successor from its new binary, which takes over its listeners; no connection is refused.
    Succeed(String),
}

impl Handler {
    /// For a person.
    pub fn title(&self) -> String {
        match self {
            Handler::DaemonReload => "reload systemd".to_owned(),
            Handler::Tmpfiles => "create runtime directories".to_owned(),
            Handler::Journald => "restart systemd-journald".to_owned(),
            Handler::Ssh => "reload sshd".to_owned(),
            Handler::DockerReload => "reload dockerd".to_owned(),
            Handler::DockerRestart => "restart dockerd, containers keep running".to_owned(),
            Handler::Restart(unit) => format!("restart {unit}"),
            Handler::Succeed(unit) => format!("let a successor take over {unit}"),
        }
    }

    /// Whether it concerns a service that a first run only starts later.
    pub(crate) fn is_for_running(&self) -> bool {
        matches!(self, Handler::Restart(_) | Handler::Succeed(_))
    }

    /// The unit it concerns; one that does not run reads its files when it starts.
    fn unit(&self) -> Option<&str> {
        match self {
            // sshd may be a socket's, see there.
            Handler::DaemonReload | Handler::Tmpfiles | Handler::Ssh => None,
            Handler::Journald => Some("systemd-journald.service"),
            Handler::DockerReload | Handler::DockerRestart => Some("docker.service"),
            Handler::Restart(unit) | Handler::Succeed(unit) => Some(unit),
        }
    }

    pub(crate) fn run(&self, host: &dyn Host) -> Result<(), HostError> {
        let systemctl = |argv: &[&str]| {
            let command = Command::new(["systemctl"].iter().chain(argv).copied());
            must(host, &command.timeout(Duration::from_secs(120)))
        };
        if let Some(unit) = self.unit() {
            let state = host.run(&Command::new(["systemctl", "is-active", unit]))?;
            if state.stdout.trim() != "active" {
                return Ok(());
            }
        }
        match self {
            Handler::DaemonReload => systemctl(&["daemon-reload"]),
            Handler::Tmpfiles => must(
                host,
                &Command::new(["systemd-tmpfiles", "--create", "/etc/tmpfiles.d/appliance.conf"]),
            ),
            Handler::Journald => systemctl(&["try-restart", "systemd-journald.service"]),
            Handler::Ssh => return crate::sshd::reload(host),
            Handler::DockerReload => systemctl(&["try-reload-or-restart", "docker.service"]),
            Handler::DockerRestart => {
                // The reload switches live-restore on first, or the restart would stop containers.
                systemctl(&["try-reload-or-restart", "docker.service"])?;
                // A reload is a signal: dockerd has to be seen to have taken it, or it would stop what runs when it ends.
                let ask = Command::new(["docker", "info", "--format", "{{.LiveRestoreEnabled}}"]);
                for _ in 0..LOOKS {
                    if host.run(&ask)?.stdout.trim() == "true" {
                        break;
                    }
                    host.pause(PAUSE);
                }
                // For a moment Docker has taken its rules away and not put them back. Where there is no nft there is nobody to hold.
                let nft = |text: &'static str| host.run(&Command::new(["nft", "--file", "-"]).stdin(text));
                let _without = nft(HOLD)?;
                let restarted = systemctl(&["try-restart", "docker.service"]);
                let _without = nft(RELEASE)?;
                restarted
            }
            Handler::Restart(unit) => systemctl(&["try-restart", unit]),
            Handler::Succeed(unit) => systemctl(&["kill", "--kill-who=main", "--signal=SIGUSR2", unit]),
        }
        .map(drop)
    }
}
