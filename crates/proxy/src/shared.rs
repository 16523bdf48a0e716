//! What all threads see.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::access_log::AccessLog;
use crate::auth::Gatekeeper;
use crate::challenges::Challenges;
use crate::limits::{Connections, Counted, Rates};
use crate::on_demand::Demand;
use crate::spool::Spools;
use crate::table::Table;

/// Shared by the workers and by the control thread.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The live table; replaced whole.
    pub(crate) table: ArcSwap<Table>,
    /// Woken after each replacement, for requests that wait at a paused service.
    pub(crate) changed: Notify,
    /// How many worker threads there are.
    pub(crate) workers: usize,
    /// The port on which HTTPS is served, for redirects.
    pub(crate) https_port: Option<u16>,
    /// Set with `stopping`; cheap to look at.
    pub(crate) closing: AtomicBool,
    /// Woken when an upstream is cut: the workers look after what they have open to it.
    pub(crate) cut: watch::Sender<()>,
    /// True while a successor starts: what is changed now would be lost to it, so changes wait.
    pub(crate) frozen: watch::Sender<bool>,
    /// Process that is being succeeded, while it may still have requests in flight.
    pub(crate) predecessor: Option<u32>,
    /// Open client connections, all workers together.
    pub(crate) connections: AtomicUsize,
    /// Woken when a client connection ends.
    pub(crate) freed: Notify,
    /// Handshakes that ended in a TLS session.
    pub(crate) handshakes: AtomicU64,
    /// Handshakes that failed.
    pub(crate) handshake_failures: AtomicU64,
    /// Cancelled when the process is to end: connections finish what they have and close.
    pub(crate) stopping: CancellationToken,
    /// Cancelled when the time for that is over.
    pub(crate) abort: CancellationToken,
    /// Where requests are logged.
    pub(crate) access_log: AccessLog,
    /// Answers to certificate authorities.
    pub(crate) challenges: Arc<Challenges>,
    /// Connections by visitor, while the settings limit them.
    pub(crate) visitors: Arc<Connections>,
    /// Connections that were closed because their visitor had too many.
    pub(crate) turned_away: AtomicU64,
    /// Requests by visitor, for services that limit them.
    pub(crate) rates: Rates,
    /// Passwords that were checked.
    pub(crate) gatekeeper: Gatekeeper,
    /// Names that wait for a certificate.
    pub(crate) demand: Demand,
    /// Bodies that are held back.
    pub(crate) spools: Arc<Spools>,
    /// Start of the process.
    pub(crate) started: Instant,
}

impl Shared {
    /// Counts a connection where visitors may have only so many; `Err` when this visitor has them already.
    pub(crate) fn admit(&self, address: std::net::IpAddr) -> Result<Option<Counted>, ()> {
        let table = self.table.load();
        let Some(most) = table.settings.connections_per_ip else {
            return Ok(None);
        };
        // A proxy in front carries everybody's connections.
        if table.trusted.contain(address.to_canonical()) {
            return Ok(None);
        }
        let Some(counted) = self.visitors.enter(address, most) else {
            self.turned_away.fetch_add(1, Ordering::Relaxed);
            return Err(());
        };
        Ok(Some(counted))
    }

    pub(crate) fn new(
        workers: usize,
        https_port: Option<u16>,
        access_log: AccessLog,
        spools: Spools,
        started: Instant,
    ) -> Self {
        Self {
            table: ArcSwap::from_pointee(Table::default()),
            changed: Notify::new(),
            workers,
            https_port,
            closing: AtomicBool::new(false),
            cut: watch::Sender::new(()),
            frozen: watch::Sender::new(false),
            predecessor: None,
            connections: AtomicUsize::new(0),
            freed: Notify::new(),
            handshakes: AtomicU64::new(0),
            handshake_failures: AtomicU64::new(0),
            stopping: CancellationToken::new(),
            abort: CancellationToken::new(),
            access_log,
            challenges: Arc::default(),
            visitors: Arc::default(),
            turned_away: AtomicU64::new(0),
            rates: Rates::default(),
            gatekeeper: Gatekeeper::default(),
            demand: Demand::default(),
            spools: Arc::new(spools),
            started,
        }
    }
}
