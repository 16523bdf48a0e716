//! `appliance proxy`: the data plane as a process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use appliance_proxy::Options;
use appliance_proxy::options::{Listener, ListenerSocket, Notice, Scheme, Store, Successor};
use sd_notify::NotifyState;

/// Where systemd's `RuntimeDirectory=appliance-proxy` puts the control socket.
pub const CONTROL_SOCKET: &str = "/run/appliance-proxy/control.sock";

/// Where systemd's `StateDirectory=appliance-proxy` puts the last good snapshot and the certificates.
pub const STATE_DIRECTORY: &str = "/var/lib/appliance-proxy";

/// Serve requests: route them, terminate TLS, check health, drain
///
/// Under systemd it takes the sockets named `http` and `https` and the state in /var/lib/appliance-proxy.
/// With `--snapshot` it runs alone from that file, without root, agent or systemd, and reads it again when it is
/// replaced or on SIGHUP.
#[derive(Debug, clap::Args)]
pub struct ProxyArgs {
    #[command(flatten)]
    pub serve: ServeArgs,
    /// Kamal's verbs
    #[command(subcommand)]
    pub verb: Option<super::proxy_verbs::ProxyVerb>,
}

/// The proxy as a process
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// Address for plain HTTP, such as 0.0.0.0:80; repeat for several
    #[arg(long, value_name = "ADDR")]
    http: Vec<SocketAddr>,
    /// Address for HTTPS; repeat for several
    #[arg(long, value_name = "ADDR")]
    https: Vec<SocketAddr>,
    /// Connections to the --http addresses begin with a PROXY header (v1 or v2) of a load balancer
    #[arg(long)]
    http_proxy_protocol: bool,
    /// Connections to the --https addresses begin with a PROXY header (v1 or v2) of a load balancer
    #[arg(long)]
    https_proxy_protocol: bool,
    /// HTTP/3 is not served; refused with the reason
    #[arg(long, value_name = "ADDR", hide = true)]
    quic: Option<SocketAddr>,
    /// Address for Prometheus metrics; keep it private
    #[arg(long, value_name = "ADDR")]
    metrics: Option<SocketAddr>,
    /// Control socket; by default only without --snapshot, at /run/appliance-proxy/control.sock
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,
    /// Routing snapshot (JSON) to serve from and to watch
    #[arg(long, value_name = "FILE", conflicts_with = "state")]
    snapshot: Option<PathBuf>,
    /// State directory
    #[arg(long, value_name = "DIR", default_value = STATE_DIRECTORY)]
    state: PathBuf,
    /// Directory for bodies that are held back (`buffering`); by default `spool` in the state directory, or the
    /// system's directory for temporary files with --snapshot
    #[arg(long, value_name = "DIR")]
    spool: Option<PathBuf>,
    /// Threads that serve requests; one for each processor by default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: Option<u16>,
    /// Seconds that open requests may go on after a stop signal
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain: u64,
}

/// Runs the proxy until a stop signal.
///
/// # Errors
/// When a listener or the control socket cannot be opened, or the snapshot file is wrong.
pub fn run(args: &ServeArgs) -> anyhow::Result<()> {
    if args.quic.is_some() {
        anyhow::bail!(
            "--quic: HTTP/3 is not served, because memory with a slow reader is not known to stay bounded; \
             leave the option out, clients use HTTP/2 over --https"
        );
    }
    crate::journal::log();
    let mut listeners = inherited()?;
    // Sockets that were handed over stand for the addresses on the command line.
    let bound = !listeners.is_empty();
    for (scheme, addresses) in [(Scheme::Http, &args.http), (Scheme::Https, &args.https)] {
        if bound {
            break;
        }
        listeners.extend(addresses.iter().map(|address| Listener {
            scheme,
            socket: ListenerSocket::Bind(*address),
            proxy_protocol: false,
        }));
    }
    for listener in &mut listeners {
        listener.proxy_protocol = match listener.scheme {
            Scheme::Http => args.http_proxy_protocol,
            Scheme::Https => args.https_proxy_protocol,
        };
    }
    if listeners.is_empty() {
        anyhow::bail!(
            "nothing to listen on: give --http ADDR or --https ADDR, or start it by its systemd socket \
             (systemctl start appliance-proxy-http.socket appliance-proxy-https.socket)"
        );
    }
    let alone = args.snapshot.is_some();
    let options = Options {
        listeners,
        metrics: args.metrics,
        access_log: Some(Box::new(std::io::stdout())),
        control: args.control.clone().or((!alone).then(|| CONTROL_SOCKET.into())),
        store: match &args.snapshot {
            Some(file) => Store::File(file.clone()),
            None => Store::Directory(args.state.clone()),
        },
        spool: args.spool.clone().or_else(|| alone.then(std::env::temp_dir)),
        workers: args.workers.map(usize::from),
        drain: Duration::from_secs(args.drain),
        successor: Some(successor()?),
        predecessor: std::env::var(PREDECESSOR).ok().and_then(|pid| pid.parse().ok()),
        notify: Box::new(tell_systemd),
    };
    appliance_proxy::run(options).context("the proxy cannot start")
}

/// The sockets that systemd holds, by their `FileDescriptorName`, else by their port.
fn inherited() -> anyhow::Result<Vec<Listener>> {
    // Without names the ports decide.
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let names: Vec<&str> = names.split(':').collect();
    let mut fds = listenfd::ListenFd::from_env();
    let mut listeners = Vec::new();
    for index in 0..fds.len() {
        let Some(socket) = fds
            .take_tcp_listener(index)
            .with_context(|| format!("socket {index} handed over by systemd is not a TCP listener"))?
        else {
            continue;
        };
        let scheme = match names.get(index).copied() {
            Some("http") => Scheme::Http,
            Some("https") => Scheme::Https,
            _ if socket.local_addr().is_ok_and(|address| address.port() == 443) => Scheme::Https,
            _ => Scheme::Http,
        };
        listeners.push(Listener {
            scheme,
            socket: ListenerSocket::Inherited(socket),
            proxy_protocol: false,
        });
    }
    Ok(listeners)
}

/// Names the process that a successor relieves.
const PREDECESSOR: &str = "APPLIANCE_PROXY_PREDECESSOR";

/// Starts this program anew with the same arguments and the sockets; on SIGUSR2, after the binary was replaced.
fn successor() -> anyhow::Result<Successor> {
    // Asked now: once the file is replaced, the kernel calls the running one deleted.
    let program = std::env::current_exe().context("cannot tell which file this program is")?;
    Ok(Box::new(move |handover| {
        let names: Vec<&str> = handover.schemes.iter().map(|scheme| scheme.as_str()).collect();
        std::process::Command::new(&program)
            .args(std::env::args_os().skip(1))
            .env_remove("LISTEN_PID")
            .env("LISTEN_FDS", names.len().to_string())
            .env("LISTEN_FDS_FIRST_FD", handover.first.to_string())
            .env("LISTEN_FDNAMES", names.join(":"))
            .env(PREDECESSOR, std::process::id().to_string())
            .spawn()
    }))
}

/// Tells the service manager, if there is one.
fn tell_systemd(notice: Notice) {
    let told = match notice {
        Notice::Ready { services } => {
            let status = format!("serving {services} services");
            sd_notify::notify(&[NotifyState::Ready, NotifyState::Status(&status)])
        }
        Notice::HandedOver { successor } => sd_notify::notify(&[NotifyState::MainPid(successor)]),
        Notice::Stopping => sd_notify::notify(&[
            NotifyState::Stopping,
            NotifyState::Status("finishing open requests"),
        ]),
    };
    if let Err(error) = told {
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot notify systemd");
    }
}
