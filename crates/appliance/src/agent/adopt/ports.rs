//! The ports 80 and 443 change hands while visitors keep coming.
//!
//! ```text
//!  to us:    hold ─► docker-proxy ends ─► our sockets listen ─► redirect ─► drain ─► kamal-proxy stops ─► release
//!  to Kamal: hold ─► our sockets stop ───────────────────────────────────────────► kamal-proxy runs ─► release
//! ```
//!
//! Docker leads visitors over IPv4 into the container before any socket is looked at, so its helper `docker-proxy`, which
//! only keeps the port taken (and serves IPv6 and the host itself), can go while they are served on.
//! *Hold* drops the first packet of connections to the host's own sockets: whoever connects tries again after a second.
//! *Redirect* sends new connections to our sockets, before Docker's rules; those that are open stay with kamal-proxy.
//! All rules are in a table of their own, whose removal leaves nothing.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;

/// Our units, in the order in which they start.
const SOCKETS: [&str; 2] = ["appliance-proxy-http.socket", "appliance-proxy-https.socket"];
const SERVICE: &str = "appliance-proxy.service";
/// Between two looks at something that tells nobody when it changes.
const PAUSE: Duration = Duration::from_millis(50);
/// How long docker-proxy has to end, and the new listener to answer.
const SHORTLY: Duration = Duration::from_secs(5);
/// `ESTABLISHED` in `/proc/net/tcp`.
const ESTABLISHED: &str = "01";

/// Why the ports did not change hands.
#[derive(Debug, thiserror::Error)]
pub enum PortsError {
    /// A program could not be run at all.
    #[error("cannot run {program}")]
    Run {
        /// Which.
        program: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A program failed.
    #[error("{program} {arguments} failed: {said}")]
    Failed {
        /// Which.
        program: &'static str,
        /// How it was called.
        arguments: String,
        /// What it said.
        said: String,
    },
    /// Nobody answers where somebody should.
    #[error("nothing answers at {0}")]
    Silent(SocketAddr),
}

/// What happens to new connections to 80 and 443 in the meantime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Those that reach the host's own sockets wait.
    HoldLocal,
    /// All wait, those to containers too.
    HoldAll,
    /// They go to the host's own sockets.
    Redirect,
}

/// The text for `nft -f -` that puts the rule into force in the place of any other of ours.
pub fn rules(rule: Rule) -> String {
    let body = match rule {
        Rule::HoldLocal => hold("input priority filter - 20", ""),
        // Before Docker rewrites destinations, so that the ports are still those that visitors named.
        Rule::HoldAll => hold("prerouting priority dstnat - 20", "fib daddr type local "),
        Rule::Redirect => {
            "  chain take {\n    type nat hook prerouting priority dstnat - 20; policy accept;\n    \
             fib daddr type local tcp dport { 80, 443 } redirect\n  }\n"
                .to_owned()
        }
    };
    format!("{}table inet appliance_adopt {{\n{body}}}\n", RELEASE)
}

/// Drops what begins a connection; it ends by itself after two minutes, should the agent be killed and not come back.
fn hold(hook: &str, only: &str) -> String {
    format!(
        "  set held {{ type inet_service; flags timeout; elements = {{ 80 timeout 120s, 443 timeout 120s }}; }}\n  \
         chain hold {{\n    type filter hook {hook}; policy accept;\n    \
         {only}tcp dport @held tcp flags & (syn | ack) == syn drop\n  }}\n"
    )
}

/// Works whether the table is there or not.
const RELEASE: &str = "table inet appliance_adopt\ndelete table inet appliance_adopt\n";

/// Puts a rule into force.
///
/// # Errors
/// When nft refuses.
pub async fn put(rule: Rule) -> Result<(), PortsError> {
    nft(&rules(rule)).await
}

/// Takes our rules away; nothing happens if there are none.
///
/// # Errors
/// When nft refuses.
pub async fn release() -> Result<(), PortsError> {
    nft(RELEASE).await
}

async fn nft(text: &str) -> Result<(), PortsError> {
    let failed = |source| PortsError::Run {
        program: "nft",
        source,
    };
    let mut child = tokio::process::Command::new("nft")
        .args(["--file", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(text.as_bytes()).await.map_err(failed)?;
    }
    let output = child.wait_with_output().await.map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    Err(PortsError::Failed {
        program: "nft",
        arguments: "--file -".to_owned(),
        said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

async fn systemctl(arguments: &[&str]) -> Result<(), PortsError> {
    let output = tokio::process::Command::new("systemctl")
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|source| PortsError::Run {
            program: "systemctl",
            source,
        })?;
    if output.status.success() {
        return Ok(());
    }
    Err(PortsError::Failed {
        program: "systemctl",
        arguments: arguments.join(" "),
        said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Whether our sockets listen.
pub async fn ours() -> bool {
    systemctl(&[&["is-active", "--quiet"][..], &SOCKETS].concat())
        .await
        .is_ok()
}

/// Makes our sockets listen and our proxy answer, now and after a reboot.
///
/// # Errors
/// When somebody still has the ports.
pub async fn listen() -> Result<(), PortsError> {
    let all = [&SOCKETS[..], &[SERVICE]].concat();
    systemctl(&[&["reset-failed"][..], &all].concat()).await.ok();
    systemctl(&[&["start"][..], &all].concat()).await?;
    systemctl(&[&["enable", "--quiet"][..], &all].concat()).await
}

/// Stops our sockets and our proxy, whose requests in flight may finish, now and after a reboot.
///
/// # Errors
/// When systemd refuses.
pub async fn leave() -> Result<(), PortsError> {
    let all = [&[SERVICE][..], &SOCKETS].concat();
    systemctl(&[&["stop"][..], &all].concat()).await?;
    systemctl(&[&["disable", "--quiet"][..], &all].concat()).await
}

/// Ends Docker's helpers on 80 and 443, when those that they carry have ended or after `patience`.
///
/// Without helpers (`userland-proxy: false`) nothing happens.
pub async fn end_helpers(patience: Duration) {
    let helpers = helpers();
    if helpers.is_empty() {
        return;
    }
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline && open_here("self") > 0 {
        tokio::time::sleep(PAUSE).await;
    }
    for pid in &helpers {
        // Root's own process: no capability is needed for it.
        if let Err(error) = kill(Pid::from_raw(*pid), Signal::SIGTERM) {
            tracing::warn!("docker-proxy {pid} cannot be ended: {error}");
        }
    }
    let deadline = Instant::now() + SHORTLY;
    while Instant::now() < deadline && helpers.iter().any(|pid| is_helper(*pid)) {
        tokio::time::sleep(PAUSE).await;
    }
}

/// Processes `docker-proxy` that hold port 80 or 443.
fn helpers() -> Vec<i32> {
    let Ok(entries) = fs_err::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| is_helper(*pid))
        .collect()
}

fn is_helper(pid: i32) -> bool {
    let Ok(line) = fs_err::read(format!("/proc/{pid}/cmdline")) else {
        return false;
    };
    is_helper_line(&line)
}

/// `docker-proxy -proto tcp -host-ip … -host-port 80 …`, each word ended by a zero byte.
fn is_helper_line(line: &[u8]) -> bool {
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    let named = words
        .first()
        .is_some_and(|word| word.rsplit(|byte| *byte == b'/').next() == Some(b"docker-proxy"));
    let value = |flag: &[u8]| {
        let at = words.iter().position(|word| *word == flag)?;
        words.get(at + 1).copied()
    };
    named && value(b"-proto") == Some(b"tcp") && matches!(value(b"-host-port"), Some(b"80" | b"443"))
}

/// Waits until nobody is connected to 80 and 443 in the network of the process `pid`, at most `patience`; who is left.
pub async fn drain(pid: i64, patience: Duration) -> usize {
    let deadline = Instant::now() + patience;
    loop {
        let open = open_here(&pid.to_string());
        if open == 0 || Instant::now() >= deadline {
            return open;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Connections to 80 and 443 in the network of a process.
fn open_here(process: &str) -> usize {
    ["tcp", "tcp6"]
        .iter()
        .filter_map(|file| fs_err::read_to_string(format!("/proc/{process}/net/{file}")).ok())
        .map(|text| open(&text))
        .sum()
}

/// Established connections to local ports 80 and 443 in the text of `/proc/net/tcp` (proc_net_tcp.rst).
fn open(text: &str) -> usize {
    let ours: BTreeSet<u16> = [80, 443].into();
    text.lines()
        .skip(1)
        .filter(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (Some(local), Some(state)) = (words.get(1), words.get(3)) else {
                return false;
            };
            let port = local
                .rsplit_once(':')
                .and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
            *state == ESTABLISHED && port.is_some_and(|port| ours.contains(&port))
        })
        .count()
}

/// Waits until something listens on 80 and 443 of an address.
///
/// # Errors
/// When it does not within five seconds.
pub async fn answers(address: IpAddr, patience: Duration) -> Result<(), PortsError> {
    let deadline = Instant::now() + patience;
    for port in [80, 443] {
        let at = SocketAddr::new(address, port);
        while tokio::net::TcpStream::connect(at).await.is_err() {
            if Instant::now() >= deadline {
                return Err(PortsError::Silent(at));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dockers_helpers_on_our_ports_are_ended() {
        let line = |words: &[&str]| words.join("\0").into_bytes();
        let proxy = |port| {
            line(&[
                "/usr/bin/docker-proxy",
                "-proto",
                "tcp",
                "-host-ip",
                "0.0.0.0",
                "-host-port",
                port,
                "-container-ip",
                "172.18.0.2",
                "-container-port",
                "80",
            ])
        };
        assert!(is_helper_line(&proxy("80")) && is_helper_line(&proxy("443")));
        assert!(!is_helper_line(&proxy("8080")));
        assert!(!is_helper_line(&line(&[
            "nginx",
            "-proto",
            "tcp",
            "-host-port",
            "80"
        ])));
        assert!(!is_helper_line(b""));
    }

    #[test]
    fn connections_are_counted_from_the_kernels_own_table() {
        let table = "  sl  local_address rem_address   st tx_queue\n   \
                     0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000\n   \
                     1: 0200A8C0:0050 0300A8C0:D2F0 01 00000000:00000000 00:00000000\n   \
                     2: 0200A8C0:01BB 0300A8C0:D2F1 01 00000000:00000000 00:00000000\n   \
                     3: 0200A8C0:01BB 0300A8C0:D2F2 06 00000000:00000000 00:00000000\n   \
                     4: 0200A8C0:9C40 0300A8C0:01BB 01 00000000:00000000 00:00000000\n";
        assert_eq!(
            open(table),
            2,
            "listeners, closed ones and outgoing ones do not count"
        );
        assert_eq!(open(""), 0);
    }

    #[test]
    fn each_rule_replaces_the_one_before() {
        for rule in [Rule::HoldLocal, Rule::HoldAll, Rule::Redirect] {
            assert!(rules(rule).starts_with(RELEASE), "{rule:?}");
        }
    }
}
