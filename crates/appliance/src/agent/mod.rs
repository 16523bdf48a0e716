//! `appliance agent`: the one privileged process of a host.
//!
//! ```text
//!   agent.sock ─► server ─► api ─┬─► status, audit, keys            (reads)
//!                                ├─► gate ─► change ─► drive ─► effects ─► Docker, proxy
//!                                └─► /v2: the OCI store
//!   nft, ip, sshd's journal ─► firewall: kept as confirmed, bans
//!   Docker events ─► keeper ─► routes kept true, dead containers reported to the drive
//! ```
//!
//! Long-lived tasks: the server (one per connection), one drive per app at most, the keeper, the firewall, the disk guard,
//! the renewal of certificates, the alerts.
//! The agent may be killed at any instant: what it was doing is on disk, and `recover` goes on with it.

pub mod accessories;
mod adopt;
mod alerts;
mod api;
mod apps;
mod assets;
pub mod backups;
mod certificates;
mod change;
mod container;
mod disk;
mod doctor;
mod door;
mod drive;
mod edge;
mod effects;
mod exec;
mod extras;
mod firewall;
mod forecast;
pub mod gate;
mod host_env;
pub mod identity;
mod images;
mod keeper;
mod lead;
pub mod lease;
pub mod lock;
mod logs;
mod maintenance;
mod manage;
mod on_demand;
mod parts;
mod permit;
mod proxy_log;
mod reads;
mod roll_out;
mod route;
mod schedule;
mod server;
mod status;
mod unowned;
mod watching;
mod world;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use appliance_containers::{Docker, Engine};
use appliance_push::change::HostId;
use appliance_state::Store;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

pub use server::preamble;

use self::accessories::Accessories;
use self::apps::Apps;
use self::certificates::Certificates;
use self::drive::Drives;
use self::gate::Gate;
use self::identity::Identity;
use self::images::Images;
use self::lease::Leases;

/// Where the agent listens, and nowhere else.
pub const SOCKET: &str = "/run/appliance/agent.sock";
/// Where the proxy takes the agent's orders.
pub const PROXY_SOCKET: &str = "/run/appliance-proxy/control.sock";
/// Where the proxy keeps its local CA.
const PROXY_CA: &str = "/var/lib/appliance-proxy/local-ca/ca.pem";

/// The agent: the one privileged process of a host
#[derive(Debug, clap::Args)]
pub struct AgentArgs {
    /// Where to listen
    #[arg(long, default_value = SOCKET, value_name = "PATH")]
    socket: PathBuf,
    /// Host configuration and identity
    #[arg(long, default_value = "/etc/appliance", value_name = "DIR")]
    config: PathBuf,
    /// What the host remembers
    #[arg(long, default_value = "/var/lib/appliance", value_name = "DIR")]
    state: PathBuf,
    /// Docker's socket
    #[arg(long, default_value = "/run/docker.sock", value_name = "PATH")]
    docker: PathBuf,
    /// The proxy's control socket
    #[arg(long, default_value = PROXY_SOCKET, value_name = "PATH")]
    proxy: PathBuf,
}

/// Everything the agent holds.
pub struct Agent {
    identity: Identity,
    host: HostId,
    gate: Gate,
    apps: Apps,
    accessories: Accessories,
    leases: Leases,
    drives: Drives,
    images: Images,
    sessions: exec::Sessions,
    docker: Arc<dyn Engine>,
    firewall: Arc<firewall::Keeper>,
    disk: disk::Guard,
    proxy: appliance_proxy::Client,
    certificates: Certificates,
    backups: backups::Backups,
    alerts: alerts::Alerts,
    state: PathBuf,
    started: Timestamp,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When the state, the identity or the socket cannot be used.
pub fn run(args: &AgentArgs) -> anyhow::Result<()> {
    crate::journal::log();
    // Two threads serve a whole host: the agent waits more than it works.
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(serve(args))
}

async fn serve(args: &AgentArgs) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let kept = Arc::new(firewall::Keeper::default());
    let firewall = tokio::spawn(firewall::keep(Arc::clone(&kept), stop.clone()));
    let agent = match Agent::open(args, Arc::clone(&kept)) {
        Ok(agent) => Arc::new(agent),
        Err(error) => {
            // systemd starts us again and again: the host stays closed meanwhile.
            firewall::look(&kept).await;
            return Err(error);
        }
    };
    kept.records_with(&agent);
    let listener = server::listen(&args.socket)
        .with_context(|| format!("cannot listen on {}", args.socket.display()))?;
    tracing::info!("the agent of {} listens on {}", agent.host, args.socket.display());
    adopt::tidy().await;
    let keeper = tokio::spawn(keeper::keep(Arc::clone(&agent), stop.clone()));
    let certificates = tokio::spawn(certificates::keep(Arc::clone(&agent), stop.clone()));
    let accessories = tokio::spawn(accessories::keep(Arc::clone(&agent), stop.clone()));
    let edge = tokio::spawn(edge::keep(Arc::clone(&agent), stop.clone()));
    let on_demand = tokio::spawn(on_demand::keep(Arc::clone(&agent), stop.clone()));
    let schedules = tokio::spawn(schedule::keep(Arc::clone(&agent), stop.clone()));
    let disk = tokio::spawn(disk::keep(Arc::clone(&agent), stop.clone()));
    let alerts = tokio::spawn(alerts::keep(Arc::clone(&agent), stop.clone()));
    let server = tokio::spawn(server::serve(listener, Arc::clone(&agent), stop.clone()));
    notify_ready();
    let watchdog = tokio::spawn(watchdog(stop.clone()));
    stop_signal().await?;
    tracing::info!("stopping; rollouts in progress go on at the next start");
    stop.cancel();
    let _ended = tokio::join!(
        server,
        keeper,
        certificates,
        accessories,
        edge,
        on_demand,
        schedules,
        firewall,
        disk,
        alerts,
        watchdog
    );
    Ok(())
}

impl Agent {
    fn open(args: &AgentArgs, keeper: Arc<firewall::Keeper>) -> anyhow::Result<Self> {
        let identity = Identity::load(&args.config.join("host.key"))?;
        let host = HostId::parse(identity.recipient()).context("the host's identity")?;
        let store = Store::open(&args.state)?;
        let started = Timestamp::now();
        let gate = Gate::open(&store, &args.config.join("keys.d"), host.clone(), started)?;
        let docker: Arc<dyn Engine> = Arc::new(Docker::at(&args.docker));
        let disk = disk::Guard::open(&store);
        Ok(Self {
            images: Images::open(&args.state.join("images"), Arc::clone(&docker))?,
            identity,
            host,
            gate,
            accessories: Accessories::new(store.clone(), &args.state, &args.config),
            backups: backups::Backups::open(&store, &args.state)?,
            alerts: alerts::Alerts::open(&store, &args.config),
            apps: Apps::new(store),
            leases: Leases::default(),
            drives: Drives::default(),
            sessions: exec::Sessions::default(),
            docker,
            firewall: keeper,
            disk,
            proxy: appliance_proxy::Client::new(&args.proxy),
            certificates: Certificates::open(
                &args.config,
                &args.state,
                appliance_proxy::Client::new(&args.proxy),
            ),
            state: args.state.clone(),
            started,
        })
    }

    /// Where the local CA's certificate is, for clients that want to trust it.
    fn ca(&self) -> &Path {
        Path::new(PROXY_CA)
    }
}

/// The whole chain of an error on one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Random bytes from the system.
pub fn random<const N: usize>() -> [u8; N] {
    use std::io::Read as _;
    let mut bytes = [0; N];
    // The kernel's generator never fails once seeded, which a booted system is.
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .expect("/dev/urandom is always readable");
    bytes
}

fn notify_ready() {
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::debug!(error = &error as &dyn std::error::Error, "not started by systemd");
    }
}

/// Tells systemd that the runtime still turns, at half the interval it asks for.
async fn watchdog(stop: CancellationToken) {
    let Some(interval) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut ticks = tokio::time::interval(interval / 2);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {
                let _not_heard = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
            }
        }
    }
}

async fn stop_signal() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
