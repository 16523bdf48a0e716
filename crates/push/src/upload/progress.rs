//! How far an upload is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::change::{BlobRef, Digest};
use crate::image::Place;

/// A moment of an upload.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Bytes of this image that are on the host or on their way, of those it lacked at first.
    pub bytes: u64,
    /// Bytes that it lacked at first.
    pub total: u64,
    /// Blobs that have arrived.
    pub blobs: usize,
    /// Blobs that it lacked at first.
    pub blobs_total: usize,
    /// Layers that needed no sending.
    pub layers_there: usize,
    /// Layers of the image.
    pub layers_total: usize,
    /// Bytes per second over the whole upload so far.
    pub rate: f64,
    /// Connections that had to be made again.
    pub reconnects: u32,
}

/// Counts what the workers send.
#[derive(Clone)]
pub struct Counter {
    state: Arc<Mutex<State>>,
    report: Arc<dyn Fn(Progress) + Send + Sync>,
}

struct State {
    /// How many bytes of each blob are there.
    there: HashMap<Digest, u64>,
    /// What each blob costs to send: less than its size, where it is a delta.
    costs: HashMap<Digest, u64>,
    total: u64,
    blobs: usize,
    blobs_total: usize,
    layers_there: usize,
    layers_total: usize,
    /// Bytes handed to the connection, sent twice after a cut counted twice.
    sent: u64,
    already_there: usize,
    reconnects: u32,
    start: Instant,
}

impl State {
    fn arrived(&mut self, blob: &BlobRef) {
        let cost = self.costs.get(&blob.digest).copied().unwrap_or(blob.size);
        self.there.insert(blob.digest.clone(), cost);
        self.blobs += 1;
    }
}

impl Counter {
    pub(super) fn new(
        blobs: &[(BlobRef, Place)],
        layers_there: usize,
        layers_total: usize,
        report: Arc<dyn Fn(Progress) + Send + Sync>,
    ) -> Self {
        let costs: HashMap<Digest, u64> = blobs
            .iter()
            .map(|(blob, place)| match place {
                Place::Delta(delta) => (blob.digest.clone(), delta.size),
                _ => (blob.digest.clone(), blob.size),
            })
            .collect();
        let state = State {
            there: HashMap::new(),
            total: costs.values().sum(),
            costs,
            blobs: 0,
            blobs_total: blobs.len(),
            layers_there,
            layers_total,
            sent: 0,
            already_there: 0,
            reconnects: 0,
            start: Instant::now(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            report,
        }
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        let progress = {
            let mut state = self
                .state
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            change(&mut state);
            let seconds = state.start.elapsed().as_secs_f64().max(1e-3);
            Progress {
                bytes: state.there.values().sum(),
                total: state.total,
                blobs: state.blobs,
                blobs_total: state.blobs_total,
                layers_there: state.layers_there,
                layers_total: state.layers_total,
                rate: state.sent as f64 / seconds,
                reconnects: state.reconnects,
            }
        };
        (self.report)(progress);
    }

    /// The host turned out to have the blob.
    pub(super) fn there(&self, blob: &BlobRef) {
        self.update(|state| {
            state.arrived(blob);
            state.already_there += 1;
        });
    }

    /// The host has the first `offset` bytes of the blob.
    pub(super) fn resumed(&self, blob: &BlobRef, offset: u64) {
        self.update(|state| {
            state.there.insert(blob.digest.clone(), offset);
        });
    }

    /// Bytes of a blob were handed to the connection.
    pub(super) fn sending(&self, digest: &Digest, bytes: u64) {
        self.update(|state| {
            state.sent += bytes;
            if let Some(there) = state.there.get_mut(digest) {
                *there += bytes;
            }
        });
    }

    /// The blob has arrived.
    pub(super) fn finished(&self, blob: &BlobRef) {
        self.update(|state| {
            state.arrived(blob);
        });
    }

    pub(super) fn reconnected(&self) {
        self.update(|state| state.reconnects += 1);
    }

    pub(super) fn sent(&self) -> u64 {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .sent
    }

    pub(super) fn already_there(&self) -> usize {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .already_there
    }
}
