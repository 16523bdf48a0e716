//! Worker threads: each has its own runtime and serves its connections alone.
//!
//! The control thread accepts and hands every connection to the worker with the fewest, so that all stay equally busy
//! whatever the kernel's hash says, and a listening socket can be shared with a successor process.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;

use crate::access_log::Lines;
use crate::buffer::Buffers;
use crate::clock::Clock;
use crate::connection;
use crate::http2::upstream::Connections;
use crate::limits::Counted;
use crate::link::Links;
use crate::options::Scheme;
use crate::shared::Shared;
use crate::wakers::Wakers;

/// A connection that was just accepted.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) scheme: Scheme,
    pub(crate) local_port: u16,
    /// Whether it begins with a PROXY header.
    pub(crate) expects_header: bool,
    pub(crate) slot: Slot,
}

/// Counts a connection for as long as it lives.
#[derive(Debug)]
pub(crate) struct Slot {
    /// While the settings limit connections by visitor.
    pub(crate) counted: Option<Counted>,
    shared: Arc<Shared>,
    load: Arc<AtomicUsize>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.load.fetch_sub(1, Ordering::Relaxed);
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
        self.shared.freed.notify_waiters();
    }
}

/// What a worker's connections share.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) index: usize,
    pub(crate) shared: Arc<Shared>,
    pub(crate) tls: Arc<ServerConfig>,
    /// Connections to upstreams that speak HTTP/2.
    pub(crate) streams: Connections,
    /// Connections to upstreams that speak HTTP/1.1.
    pub(crate) links: Links,
    pub(crate) buffers: Buffers,
    pub(crate) wakers: Wakers,
    pub(crate) lines: Lines,
    pub(crate) clock: Clock,
    pub(crate) ids: crate::request_id::Ids,
}

/// The control thread's end of a worker.
#[derive(Debug)]
pub(crate) struct Handle {
    sender: mpsc::Sender<Accepted>,
    load: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Handle {
    /// Connections it serves now.
    pub(crate) fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    /// A slot for one more connection.
    pub(crate) fn slot(&self, shared: &Arc<Shared>) -> Slot {
        self.load.fetch_add(1, Ordering::Relaxed);
        shared.connections.fetch_add(1, Ordering::Relaxed);
        Slot {
            counted: None,
            shared: Arc::clone(shared),
            load: Arc::clone(&self.load),
        }
    }

    /// Hands a connection over; waits while the worker is behind.
    pub(crate) async fn give(&self, accepted: Accepted) {
        // A worker ends only after the acceptors; should one have died, the connection is closed by the drop.
        let _dead_worker = self.sender.send(accepted).await;
    }

    /// Waits for the thread, after every sender is gone.
    pub(crate) fn join(self) {
        drop(self.sender);
        if self.thread.join().is_err() {
            tracing::error!("a worker thread panicked");
        }
    }
}

/// Starts a worker thread.
///
/// # Errors
/// When the thread or its runtime cannot be created.
pub(crate) fn spawn(index: usize, shared: Arc<Shared>, tls: Arc<ServerConfig>) -> io::Result<Handle> {
    let (sender, accepted) = mpsc::channel(1024);
    let load = Arc::new(AtomicUsize::new(0));
    let (ready, started) = std::sync::mpsc::sync_channel(1);
    let served = Arc::clone(&load);
    let thread = std::thread::Builder::new()
        .name(format!("proxy-{index}"))
        .spawn(move || {
            // A local runtime cannot leave its thread, so it is built here.
            match Builder::new_current_thread()
                .enable_all()
                .build_local(LocalOptions::default())
            {
                Ok(runtime) => {
                    let _caller_waits = ready.send(Ok(()));
                    let worker = Rc::new(Worker {
                        index,
                        ids: crate::request_id::Ids::new(),
                        shared,
                        tls,
                        streams: Connections::default(),
                        links: Links::default(),
                        buffers: Buffers::default(),
                        wakers: Wakers::default(),
                        lines: Lines::default(),
                        clock: Clock::default(),
                    });
                    runtime.block_on(work(worker, accepted, served));
                }
                Err(error) => {
                    let _caller_waits = ready.send(Err(error));
                }
            }
        })?;
    started
        .recv()
        .map_err(|_| io::Error::other("the worker thread died at its start"))??;
    Ok(Handle { sender, load, thread })
}

/// Serves what is accepted, and then what is left; what is still there at its end is dropped with the runtime.
async fn work(worker: Rc<Worker>, mut accepted: mpsc::Receiver<Accepted>, served: Arc<AtomicUsize>) {
    let mut sweep = tokio::time::interval(Duration::from_secs(1));
    let mut stopping = false;
    let mut cut = worker.shared.cut.subscribe();
    let mut alarm = std::pin::pin!(worker.wakers.alarm());
    loop {
        tokio::select! {
            next = accepted.recv() => match next {
                Some(accepted) => connection::start(&worker, accepted),
                None => break,
            },
            never = &mut alarm => match never {},
            _ = sweep.tick() => {
                worker.streams.sweep();
                worker.links.sweep();
                worker.lines.flush(&worker.shared.access_log);
            }
            Ok(()) = cut.changed() => worker.wakers.wake_all(),
            () = worker.shared.stopping.cancelled(), if !stopping => {
                stopping = true;
                worker.wakers.wake_all();
            }
        }
    }
    worker.wakers.wake_all();
    loop {
        let freed = worker.shared.freed.notified();
        if served.load(Ordering::Relaxed) == 0 {
            break;
        }
        tokio::select! {
            () = freed => {}
            never = &mut alarm => match never {},
            Ok(()) = cut.changed() => worker.wakers.wake_all(),
            () = worker.shared.abort.cancelled() => break,
        }
    }
    worker.lines.flush(&worker.shared.access_log);
}
