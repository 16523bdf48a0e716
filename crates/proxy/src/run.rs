//! The start-up story.
//!
//! ```text
//! control thread: listeners ─► accept ─► worker with the fewest connections
//!                 control socket, health checks, snapshot file, signals
//! worker threads: TLS ─► HTTP ─► route ─► upstream
//! ```

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::access_log::AccessLog;
use crate::control;
use crate::heir::Heir;
use crate::manager::Manager;
use crate::options::{Handover, ListenerSocket, Notice, Options, Scheme, Successor};
use crate::shared::Shared;
use crate::spool::Spools;
use crate::store::Disk;
use crate::worker::{self, Accepted, Handle};

/// The proxy could not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A listener could not be opened.
    #[error("cannot listen on {address}")]
    Listen {
        /// Which address or path.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The system refused something a process needs: threads, signals, its control socket's directory.
    #[error("cannot {what}")]
    System {
        /// What was wanted.
        what: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The TLS library refused its settings.
    #[error("cannot set TLS up")]
    Tls(#[source] rustls::Error),
    /// The snapshot file cannot be used.
    #[error("cannot use the snapshot {}: {reason}", path.display())]
    Snapshot {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
}

fn system(what: &str) -> impl FnOnce(std::io::Error) -> RunError {
    let what = what.to_owned();
    move |source| RunError::System { what, source }
}

/// A running proxy, in threads of this process.
#[derive(Debug)]
pub struct Proxy {
    addresses: Vec<SocketAddr>,
    shared: Arc<Shared>,
    hangup: Arc<tokio::sync::Notify>,
    control: JoinHandle<()>,
    metrics_address: Option<SocketAddr>,
    /// Copies of the listeners, for a successor.
    copies: Vec<(Scheme, TcpListener)>,
    quiet: Arc<AtomicBool>,
    /// Ends the long wait of a process that handed over: somebody stops the service as a whole.
    hurry: Arc<tokio::sync::Notify>,
}

/// What is listening, before anything is accepted.
struct Listening {
    sockets: Vec<(Scheme, u16, bool, TcpListener)>,
    control: Option<PathBuf>,
    metrics: Option<TcpListener>,
}

impl Proxy {
    /// Opens the listeners and starts to serve; returns once connections are accepted.
    ///
    /// # Errors
    /// When a listener or the control socket cannot be opened, or a snapshot file given by a person is wrong.
    pub fn start(options: Options) -> Result<Self, RunError> {
        let workers = options
            .workers
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
        let mut sockets = Vec::new();
        let mut addresses = Vec::new();
        let mut copies = Vec::new();
        let quiet = Arc::new(AtomicBool::new(false));
        for listener in options.listeners {
            let (socket, address) = open(listener.socket)?;
            addresses.push(address);
            copies.push((
                listener.scheme,
                socket.try_clone().map_err(system("copy a listener"))?,
            ));
            sockets.push((listener.scheme, address.port(), listener.proxy_protocol, socket));
        }
        let metrics = options.metrics.map(|address| open(ListenerSocket::Bind(address)));
        let (metrics, metrics_address) = metrics.transpose()?.unzip();
        let access_log =
            AccessLog::start(options.access_log).map_err(system("start the access log's thread"))?;
        let https = sockets.iter().find(|(scheme, ..)| *scheme == Scheme::Https);
        let https_port = https.map(|(_, port, ..)| *port);
        let spool = options.spool;
        let spools = Spools::new(spool.unwrap_or_else(|| options.store.directory().join("spool")));
        let mut shared = Shared::new(workers, https_port, access_log, spools, Instant::now());
        shared.predecessor = options.predecessor;
        let shared = Arc::new(shared);
        let tls = Arc::new(crate::tls::server_config(&shared).map_err(RunError::Tls)?);
        let handles = (0..workers)
            .map(|index| worker::spawn(index, Arc::clone(&shared), Arc::clone(&tls)))
            .collect::<Result<Vec<_>, _>>()
            .map_err(system("start a worker thread"))?;
        let listening = Listening {
            sockets,
            control: options.control,
            metrics,
        };
        let hangup = Arc::new(tokio::sync::Notify::new());
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let disk = Disk::new(&options.store);
        let hurry = Arc::new(tokio::sync::Notify::new());
        let patience = Patience {
            usual: options.drain,
            handed_over: Arc::clone(&quiet),
            hurry: Arc::clone(&hurry),
        };
        let control = std::thread::Builder::new()
            .name("proxy-control".into())
            .spawn({
                let (shared, hangup) = (Arc::clone(&shared), Arc::clone(&hangup));
                let (notify, quiet) = (options.notify, Arc::clone(&quiet));
                let notify = Box::new(move |notice| {
                    if !(quiet.load(Ordering::SeqCst) && notice == Notice::Stopping) {
                        notify(notice);
                    }
                });
                move || {
                    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                        Ok(runtime) => runtime,
                        Err(error) => {
                            let _caller_waits = ready.send(Err(system("start the control thread")(error)));
                            return;
                        }
                    };
                    runtime.block_on(oversee(
                        shared, disk, listening, handles, hangup, patience, notify, ready,
                    ));
                    // A blocked file operation must not hold up the end.
                    runtime.shutdown_timeout(Duration::from_secs(1));
                }
            })
            .map_err(system("start the control thread"))?;
        let dead = || std::io::Error::other("it ended at its start");
        started
            .recv()
            .map_err(|_| system("start the control thread")(dead()))??;
        Ok(Self {
            addresses,
            shared,
            hangup,
            control,
            metrics_address,
            copies,
            quiet,
            hurry,
        })
    }

    /// The addresses it listens on, in the order of [`Options::listeners`].
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The address of the metrics page, if there is one.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics_address
    }

    /// Reads the snapshot file and certificate files again, as SIGHUP does.
    pub fn reload(&self) {
        self.hangup.notify_one();
    }

    /// Starts a successor with copies of the listeners; changes wait until it lives or has failed.
    ///
    /// # Errors
    /// When the copies cannot be made or the process cannot be started; then nothing has changed.
    fn hand_over(&self, successor: &Successor) -> std::io::Result<std::process::Child> {
        use nix::fcntl::{FcntlArg, fcntl};
        const FIRST: i32 = 200;
        self.shared.frozen.send_replace(true);
        let mut copies = Vec::new();
        let outcome = (|| {
            for (_, listener) in &self.copies {
                // Without close-on-exec: the child inherits exactly these.
                copies.push(fcntl(listener, FcntlArg::F_DUPFD(FIRST))?);
            }
            let consecutive = copies.windows(2).all(|pair| pair[1] == pair[0] + 1);
            let Some(first) = copies.first().copied().filter(|_| consecutive) else {
                return Err(std::io::Error::other("the listeners' copies are not consecutive"));
            };
            successor(&Handover {
                first,
                schemes: self.copies.iter().map(|(scheme, _)| *scheme).collect(),
            })
        })();
        for copy in copies {
            // Ours alone; nothing depends on how closing it ends.
            let _closed = nix::unistd::close(copy);
        }
        if outcome.is_err() {
            self.shared.frozen.send_replace(false);
        }
        outcome
    }

    /// Stops accepting, lets requests in flight finish within [`Options::drain`], and ends.
    pub fn shutdown(self) {
        // While a copy is open, the kernel would take connections that nobody accepts.
        drop(self.copies);
        self.shared.closing.store(true, Ordering::SeqCst);
        self.shared.stopping.cancel();
        if self.control.join().is_err() {
            tracing::error!("the control thread panicked");
        }
    }
}

fn open(socket: ListenerSocket) -> Result<(TcpListener, SocketAddr), RunError> {
    let (listener, wanted) = match socket {
        ListenerSocket::Bind(address) => {
            let failed = |source| RunError::Listen {
                address: address.to_string(),
                source,
            };
            (bind(address).map_err(failed)?, address.to_string())
        }
        ListenerSocket::Inherited(listener) => (listener, "a socket handed over".to_owned()),
    };
    let failed = |source| RunError::Listen {
        address: wanted.clone(),
        source,
    };
    listener.set_nonblocking(true).map_err(failed)?;
    inherited_by_connections(&listener).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// Options that Linux copies to every accepted connection: small writes go out at once, and a peer that is gone is
/// noticed behind an idle tunnel too.
fn inherited_by_connections(listener: &TcpListener) -> std::io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    setsockopt(listener, sockopt::TcpNoDelay, &true)?;
    setsockopt(listener, sockopt::KeepAlive, &true)?;
    setsockopt(listener, sockopt::TcpKeepIdle, &120)?;
    setsockopt(listener, sockopt::TcpKeepInterval, &30)?;
    Ok(())
}

/// Binds with a queue that outlasts a burst; the standard library's holds 128.
fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, sockopt};
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let socket = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    if address.is_ipv6() {
        socket::setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    use std::os::fd::AsRawFd;
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    socket::listen(&socket, Backlog::new(4096)?)?;
    Ok(TcpListener::from(socket))
}

/// How long what is under way may go on once the process ends.
struct Patience {
    usual: Duration,
    handed_over: Arc<AtomicBool>,
    hurry: Arc<tokio::sync::Notify>,
}

/// How long tunnels of a process that handed over may stay: everybody new is with its successor, so nobody waits for them.
const HANDED_OVER: Duration = Duration::from_secs(24 * 3_600);

impl Patience {
    async fn over(self) {
        if self.handed_over.load(Ordering::SeqCst) {
            let _either = tokio::time::timeout(HANDED_OVER, self.hurry.notified()).await;
        }
        tokio::time::sleep(self.usual).await;
    }
}

/// The control thread from start to end.
#[allow(clippy::too_many_arguments)]
async fn oversee(
    shared: Arc<Shared>,
    disk: Disk,
    listening: Listening,
    workers: Vec<Handle>,
    hangup: Arc<tokio::sync::Notify>,
    patience: Patience,
    notify: Box<dyn Fn(Notice) + Send + Sync>,
    ready: std::sync::mpsc::SyncSender<Result<(), RunError>>,
) {
    let path = disk.snapshot_path().to_owned();
    let boot = listening
        .control
        .as_deref()
        .and_then(|socket| this_boot(socket, &disk));
    let manager = match Manager::start(Arc::clone(&shared), disk, boot).await {
        Ok(manager) => Arc::new(manager),
        Err(reason) => {
            let _caller_waits = ready.send(Err(RunError::Snapshot { path, reason }));
            return;
        }
    };
    let tracker = tokio_util::task::TaskTracker::new();
    let control_stop = CancellationToken::new();
    if let Some(path) = listening.control {
        match control::bind(&path) {
            Ok(listener) => drop(tracker.spawn(control::serve(
                listener,
                Arc::clone(&manager),
                control_stop.clone(),
            ))),
            Err(source) => {
                let address = path.display().to_string();
                let _caller_waits = ready.send(Err(RunError::Listen { address, source }));
                return;
            }
        }
    }
    if let Some(socket) = listening.metrics {
        match tokio::net::TcpListener::from_std(socket) {
            Ok(listener) => drop(tracker.spawn(crate::metrics::serve(
                listener,
                Arc::clone(&shared),
                control_stop.clone(),
            ))),
            Err(error) => {
                let _caller_waits = ready.send(Err(system("watch the metrics' listener")(error)));
                return;
            }
        }
    }
    let workers = Arc::new(workers);
    let acceptors = tokio_util::task::TaskTracker::new();
    for (scheme, port, header, socket) in listening.sockets {
        match watched(socket) {
            Ok(socket) => {
                acceptors.spawn(accept(
                    socket,
                    scheme,
                    port,
                    header,
                    Arc::clone(&workers),
                    Arc::clone(&shared),
                ));
            }
            Err(error) => {
                let _caller_waits = ready.send(Err(system("watch a listener")(error)));
                return;
            }
        }
    }
    acceptors.close();
    let reloader = tokio::spawn(reload(Arc::clone(&manager), hangup));
    notify(Notice::Ready {
        services: shared.table.load().routes.len(),
    });
    let _caller_waits = ready.send(Ok(()));

    shared.stopping.cancelled().await;
    notify(Notice::Stopping);
    reloader.abort();
    acceptors.wait().await;
    let idle = async {
        loop {
            let freed = shared.freed.notified();
            if shared.connections.load(Ordering::Relaxed) == 0 {
                return;
            }
            freed.await;
        }
    };
    let cut = tokio::select! {
        () = idle => false,
        () = patience.over() => true,
    };
    if cut {
        tracing::warn!(
            connections = shared.connections.load(Ordering::Relaxed),
            "connections are cut, the time to drain is over"
        );
    }
    shared.abort.cancel();
    control_stop.cancel();
    tracker.close();
    let _cut_at = tokio::time::timeout(Duration::from_secs(5), tracker.wait()).await;
    if let Some(workers) = Arc::into_inner(workers) {
        workers.into_iter().for_each(Handle::join);
    }
}

/// The id of this boot, if a control socket is there to confirm routes of an earlier one.
fn this_boot(socket: &Path, disk: &Disk) -> Option<String> {
    let directory = socket.parent().filter(|_| !disk.watched)?;
    let fresh = crate::request_id::Ids::new().next();
    match crate::hold::boot(directory, &String::from_utf8_lossy(&fresh)) {
        Ok(boot) => Some(boot),
        Err(error) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "cannot tell this boot from others: routes of an earlier one are not held"
            );
            None
        }
    }
}

/// Watches a listener without being tokio's, which would watch every connection it accepts as well, until it is handed
/// to a worker, which watches it with a poller of its own.
// Deprecated for types whose descriptor may change while it is watched; a listener's does not.
#[allow(deprecated)]
fn watched(socket: TcpListener) -> std::io::Result<AsyncFd<TcpListener>> {
    AsyncFd::with_interest(socket, Interest::READABLE)
}

/// Accepts until the proxy stops; the kernel keeps what comes later for a successor.
async fn accept(
    socket: AsyncFd<TcpListener>,
    scheme: Scheme,
    local_port: u16,
    header: bool,
    workers: Arc<Vec<Handle>>,
    shared: Arc<Shared>,
) {
    loop {
        let freed = shared.freed.notified();
        if shared.connections.load(Ordering::Relaxed) >= shared.table.load().settings.max_connections {
            tokio::select! {
                () = freed => continue,
                () = shared.stopping.cancelled() => return,
            }
        }
        let accepted = tokio::select! {
            accepted = socket.async_io(Interest::READABLE, TcpListener::accept) => accepted,
            () = shared.stopping.cancelled() => return,
        };
        let accepted =
            accepted.and_then(|(stream, peer)| stream.set_nonblocking(true).map(|()| (stream, peer)));
        match accepted {
            Ok((stream, peer)) => {
                let ports = &shared.table.load().settings.proxy_protocol_ports;
                let expects_header = header || ports.contains(&local_port);
                // Behind a balancer its header tells who the visitor is: counted once it was read.
                let counted = if expects_header {
                    Ok(None)
                } else {
                    shared.admit(peer.ip())
                };
                // Closed without a word: an answer would cost more than the connection.
                let Ok(counted) = counted else { continue };
                let worker = workers
                    .iter()
                    .min_by_key(|worker| worker.load())
                    .expect("there is at least one worker");
                let mut slot = worker.slot(&shared);
                slot.counted = counted;
                let accepted = Accepted {
                    stream,
                    peer,
                    scheme,
                    local_port,
                    expects_header,
                    slot,
                };
                worker.give(accepted).await;
            }
            Err(error) if is_passing(&error) => {}
            Err(error) => {
                // Out of file descriptors or memory: trying at once again would only burn the processor.
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot accept a connection"
                );
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Errors that concern the connection that was to be accepted, not the listener (accept(2)).
fn is_passing(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted
    )
}

/// What tells one state of a file from another.
type Stamp = Option<(u64, u64, SystemTime)>;

fn stamp(path: &Path) -> Stamp {
    use std::os::unix::fs::MetadataExt;
    let meta = fs_err::metadata(path).ok()?;
    Some((meta.ino(), meta.len(), meta.modified().ok()?))
}

/// Looks at all files in one go: a call for each would keep several threads awake, a few times a second for ever.
async fn stamps(files: Vec<PathBuf>) -> Vec<(PathBuf, Stamp)> {
    if files.is_empty() {
        return Vec::new();
    }
    let look = move || {
        let stamped = files.into_iter().map(|path| {
            let stamp = stamp(&path);
            (path, stamp)
        });
        stamped.collect()
    };
    // It fails only while the runtime ends, and nobody asks then.
    tokio::task::spawn_blocking(look).await.unwrap_or_default()
}

/// Reads the snapshot again on request, and when the watched file was replaced.
async fn reload(manager: Arc<Manager>, hangup: Arc<tokio::sync::Notify>) {
    let watched = manager.watched().map(Path::to_owned);
    // Nothing yet: a file replaced between the first reading and now would else never be noticed.
    let mut seen: Stamp = None;
    let mut ticks = tokio::time::interval(Duration::from_millis(300));
    let mut leaves = tokio::time::interval(Duration::from_secs(3_600));
    leaves.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut certificates: Vec<(PathBuf, Stamp)> = Vec::new();
    loop {
        tokio::select! {
            () = hangup.notified() => {}
            _ = leaves.tick() => {
                manager.renew_leaves(SystemTime::now()).await;
                continue;
            }
            _ = ticks.tick() => {
                let files = watched.iter().cloned().chain(manager.certificate_files());
                let mut found = stamps(files.collect()).await.into_iter();
                let now = watched.as_ref().and_then(|_| found.next()?.1);
                // A file that is away for a moment is being replaced.
                if now == seen || now.is_none() {
                    let files: Vec<_> = found.collect();
                    if files != certificates && files.iter().all(|(_, stamp)| stamp.is_some()) {
                        certificates = files;
                        manager.reread_certificates().await;
                    }
                    continue;
                }
                seen = now;
            }
        }
        match manager.reload().await {
            Ok(()) => tracing::info!(
                generation = manager.shared.table.load().generation,
                "read the snapshot again"
            ),
            Err(error) => tracing::error!(error, "the new snapshot is not used, the live one stays"),
        }
    }
}

/// Runs a proxy until SIGTERM or SIGINT; SIGHUP reads the snapshot file again, SIGUSR2 starts a successor.
///
/// A successor is this program anew, from the file it is now: it takes the same listeners, and once it accepts it
/// sends us SIGTERM.
/// So no connection is refused when the binary is replaced, and requests in flight finish in the old process.
///
/// Blocks, and builds its own runtimes: call it from a plain thread.
///
/// # Errors
/// See [`Proxy::start`].
pub fn run(mut options: Options) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("start the signal thread"))?;
    let entered = runtime.enter();
    let watch = |kind| signal(kind).map_err(system("watch for signals"));
    let (mut terminate, mut interrupt, mut hangup, mut replace) = (
        watch(SignalKind::terminate())?,
        watch(SignalKind::interrupt())?,
        watch(SignalKind::hangup())?,
        watch(SignalKind::user_defined2())?,
    );
    drop(entered);
    let successor = options.successor.take();
    let predecessor = options.predecessor;
    let notify: Arc<dyn Fn(Notice) + Send + Sync> = Arc::from(options.notify);
    options.notify = Box::new({
        let notify = Arc::clone(&notify);
        move |notice| notify(notice)
    });
    let proxy = Proxy::start(options)?;
    if let Some(predecessor) = predecessor {
        relieve(predecessor);
    }
    runtime.block_on(async {
        let mut heir: Option<Heir> = None;
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => proxy.reload(),
                _ = replace.recv() => {
                    let Some(successor) = &successor else { continue };
                    if heir.is_some() {
                        continue;
                    }
                    match proxy.hand_over(successor) {
                        Ok(started) => heir = Some(Heir::new(started, crate::heir::PATIENCE)),
                        Err(error) => tracing::error!(
                            error = &error as &dyn std::error::Error,
                            "cannot start a successor, this process goes on"
                        ),
                    }
                }
                why = async { heir.as_mut().expect("checked by the condition").ended().await }, if heir.is_some() => {
                    tracing::error!("the successor is no more, this process goes on: {why}");
                    heir = None;
                    proxy.shared.frozen.send_replace(false);
                }
            }
        }
        if let Some(heir) = heir {
            proxy.quiet.store(true, Ordering::SeqCst);
            notify(Notice::HandedOver { successor: heir.pid() });
        }
    });
    let hurry = Arc::clone(&proxy.hurry);
    let (ended, end) = tokio::sync::oneshot::channel();
    let ending = std::thread::spawn(move || {
        proxy.shutdown();
        let _nobody_waits = ended.send(());
    });
    runtime.block_on(async {
        tokio::select! {
            _ = end => {}
            _ = terminate.recv() => hurry.notify_one(),
        }
    });
    if ending.join().is_err() {
        tracing::error!("the thread that ended the proxy panicked");
    }
    // A successor outlives us; the thread that waits for it must not.
    runtime.shutdown_background();
    Ok(())
}

/// Tells the process before us to finish, if it is our parent and no stranger with the same number.
fn relieve(predecessor: u32) {
    let parent = nix::unistd::getppid();
    if u32::try_from(parent.as_raw()) != Ok(predecessor) {
        tracing::warn!(predecessor, "the process before us is gone");
        return;
    }
    if let Err(error) = nix::sys::signal::kill(parent, nix::sys::signal::Signal::SIGTERM) {
        tracing::error!(
            error = &error as &dyn std::error::Error,
            predecessor,
            "cannot tell the process before us to finish"
        );
    }
}
