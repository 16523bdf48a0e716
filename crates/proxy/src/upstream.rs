//! One upstream while it is known: health, what is in flight, counts.
//!
//! ```text
//!  joined ──► healthy ◄──► unhealthy        (continuous health checks)
//!    │            │             │
//!    └────────────┴──────┬──────┘
//!                        ▼  a switch no longer names it
//!                    draining ──► empty      (nothing in flight: forgotten)
//!                        │
//!                        ▼  drain timeout
//!                       cut ──► empty
//! ```
//!
//! The counters are split by worker thread, so that no cache line travels between cores.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::control::{Counts, Drained, ProbeFailure, UpstreamStats, UpstreamStatus};
use crate::names::UpstreamAddress;
use crate::stats::{Counters, merge};

/// An upstream of one service; shared by all workers.
#[derive(Debug)]
pub(crate) struct Upstream {
    /// Unique in this process, so that a pool never mistakes a new upstream for an old one at the same address.
    pub(crate) id: u64,
    pub(crate) address: UpstreamAddress,
    healthy: AtomicBool,
    /// False until the first successful health check, if it was joined after a reboot.
    proven: AtomicBool,
    draining: AtomicBool,
    /// Cancelled at the drain timeout: whatever is still in flight ends.
    pub(crate) cut: CancellationToken,
    /// The same, cheap to look at.
    is_cut: AtomicBool,
    shards: Box<[Shard]>,
    released: Notify,
    failure: Mutex<Option<ProbeFailure>>,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    requests: AtomicU64,
    tunnels: AtomicU64,
    counters: Counters,
}

impl Upstream {
    /// A new, healthy upstream; `workers` is how many threads will count.
    pub(crate) fn new(address: UpstreamAddress, workers: usize) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            address,
            healthy: AtomicBool::new(true),
            proven: AtomicBool::new(true),
            draining: AtomicBool::new(false),
            cut: CancellationToken::new(),
            is_cut: AtomicBool::new(false),
            shards: (0..workers).map(|_| Shard::default()).collect(),
            released: Notify::new(),
            failure: Mutex::new(None),
        }
    }

    /// Whether requests may be sent here.
    pub(crate) fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    /// An upstream that has to show first that it is one.
    pub(crate) fn unproven(address: UpstreamAddress, workers: usize) -> Self {
        let upstream = Self::new(address, workers);
        upstream.proven.store(false, Ordering::Relaxed);
        upstream
    }

    /// Whether it may be believed to be what the snapshot says.
    pub(crate) fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
    }

    /// Records that it passed a health check.
    pub(crate) fn prove(&self) {
        self.proven.store(true, Ordering::Relaxed);
    }

    /// Records the outcome of a health check.
    pub(crate) fn set_health(&self, healthy: bool, failure: Option<ProbeFailure>) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
        self.healthy.store(healthy, Ordering::Relaxed);
    }

    /// Whether a switch left this upstream behind.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Whether the time to drain is over.
    pub(crate) fn is_cut(&self) -> bool {
        self.is_cut.load(Ordering::Relaxed)
    }

    /// Marks it as left behind; later [`Upstream::enter`] calls fail.
    pub(crate) fn begin_drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    /// Counts a request in, unless the upstream is draining.
    ///
    /// Sequential consistency on both sides: either we see the drain, or the drain sees us.
    pub(crate) fn enter(self: &Arc<Self>, worker: usize) -> Option<InFlight> {
        self.shards[worker].requests.fetch_add(1, Ordering::SeqCst);
        let guard = InFlight {
            upstream: Arc::clone(self),
            worker,
            tunnel: false,
        };
        (!self.is_draining()).then_some(guard)
    }

    /// The counters of one worker.
    pub(crate) fn counters(&self, worker: usize) -> &Counters {
        &self.shards[worker].counters
    }

    /// Requests in flight, tunnels not counted.
    pub(crate) fn in_flight(&self) -> u64 {
        self.shards
            .iter()
            .map(|shard| shard.requests.load(Ordering::SeqCst))
            .sum()
    }

    /// Open tunnels.
    pub(crate) fn tunnels(&self) -> u64 {
        self.shards
            .iter()
            .map(|shard| shard.tunnels.load(Ordering::SeqCst))
            .sum()
    }

    /// Waits until nothing is in flight; what is left when `timeout` resolves is cut.
    pub(crate) async fn drain(&self, timeout: impl Future<Output = ()>) -> Drained {
        self.begin_drain();
        let (requests, tunnels) = (self.in_flight(), self.tunnels());
        tokio::pin!(timeout);
        loop {
            let released = self.released.notified();
            tokio::pin!(released);
            released.as_mut().enable();
            if self.in_flight() + self.tunnels() == 0 {
                return Drained {
                    finished: requests,
                    cut: 0,
                    tunnels_finished: tunnels,
                    tunnels_cut: 0,
                };
            }
            tokio::select! {
                () = &mut released => {}
                () = &mut timeout => break,
            }
        }
        let (cut, tunnels_cut) = (self.in_flight(), self.tunnels());
        self.is_cut.store(true, Ordering::SeqCst);
        self.cut.cancel();
        Drained {
            finished: requests.saturating_sub(cut),
            cut,
            tunnels_finished: tunnels.saturating_sub(tunnels_cut),
            tunnels_cut,
        }
    }

    /// Counts since it joined.
    pub(crate) fn counts(&self) -> Counts {
        let mut counts = merge(self.shards.iter().map(|shard| &shard.counters));
        counts.in_flight = self.in_flight();
        counts
    }

    pub(crate) fn stats(&self) -> UpstreamStats {
        UpstreamStats {
            upstream: self.address.clone(),
            counts: self.counts(),
        }
    }

    pub(crate) fn status(&self) -> UpstreamStatus {
        UpstreamStatus {
            upstream: self.address.clone(),
            healthy: self.is_healthy(),
            in_flight: self.in_flight(),
            tunnels: self.tunnels(),
            failure: self
                .failure
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        }
    }
}

/// A request or tunnel that is in flight for as long as this lives.
#[derive(Debug)]
pub(crate) struct InFlight {
    upstream: Arc<Upstream>,
    worker: usize,
    tunnel: bool,
}

impl InFlight {
    /// The upstream it counts for.
    pub(crate) fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    /// Turns a request into a tunnel.
    pub(crate) fn into_tunnel(mut self) -> Self {
        if !self.tunnel {
            let shard = &self.upstream.shards[self.worker];
            shard.tunnels.fetch_add(1, Ordering::SeqCst);
            shard.requests.fetch_sub(1, Ordering::SeqCst);
            self.tunnel = true;
        }
        self
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let shard = &self.upstream.shards[self.worker];
        let counter = if self.tunnel {
            &shard.tunnels
        } else {
            &shard.requests
        };
        counter.fetch_sub(1, Ordering::SeqCst);
        if self.upstream.is_draining() {
            self.upstream.released.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream() -> Arc<Upstream> {
        Arc::new(Upstream::new(UpstreamAddress::parse("127.0.0.1:1").unwrap(), 2))
    }

    #[tokio::test]
    async fn drain_ends_with_the_last_request() {
        let upstream = upstream();
        let request = upstream.enter(0).unwrap();
        let tunnel = upstream.enter(1).unwrap().into_tunnel();
        let waiting = tokio::spawn({
            let upstream = Arc::clone(&upstream);
            async move { upstream.drain(std::future::pending()).await }
        });
        tokio::task::yield_now().await;
        drop(request);
        drop(tunnel);
        let drained = waiting.await.unwrap();
        assert_eq!((drained.finished, drained.tunnels_finished), (1, 1));
        assert!(
            upstream.enter(0).is_none(),
            "a draining upstream takes nothing new"
        );
    }

    #[tokio::test]
    async fn what_outlives_the_timeout_is_cut_and_counted() {
        let upstream = upstream();
        let _request = upstream.enter(0).unwrap();
        let _tunnel = upstream.enter(0).unwrap().into_tunnel();
        let drained = upstream.drain(std::future::ready(())).await;
        assert_eq!((drained.cut, drained.tunnels_cut), (1, 1));
        assert!(upstream.cut.is_cancelled());
    }
}
