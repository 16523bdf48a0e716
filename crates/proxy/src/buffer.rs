//! Buffers that a connection holds only while it has bytes in them.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

/// Size of an ordinary buffer.
pub(crate) const ROOM: usize = 16 << 10;
/// Size of a buffer for a large body.
const LARGE: usize = 128 << 10;
/// How many a worker keeps for later.
const KEPT: usize = 64;

/// Free buffers of one worker.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    read: RefCell<Vec<Vec<u8>>>,
    write: RefCell<Vec<Vec<u8>>>,
}

impl Buffers {
    /// An empty vector to write into, with room.
    pub(crate) fn vec(&self) -> Vec<u8> {
        self.write
            .borrow_mut()
            .pop()
            .unwrap_or_else(|| Vec::with_capacity(ROOM))
    }

    /// Takes a vector back.
    pub(crate) fn give(&self, mut vec: Vec<u8>) {
        let mut kept = self.write.borrow_mut();
        if (ROOM..=2 * LARGE).contains(&vec.capacity()) && kept.len() < KEPT {
            vec.clear();
            if vec.capacity() > 2 * ROOM {
                vec.shrink_to(ROOM);
            }
            kept.push(vec);
        }
    }

    fn room(&self) -> Vec<u8> {
        self.read.borrow_mut().pop().unwrap_or_else(|| vec![0; ROOM])
    }

    fn take_back(&self, data: Vec<u8>) {
        let mut kept = self.read.borrow_mut();
        if data.len() == ROOM && kept.len() < KEPT {
            kept.push(data);
        }
    }
}

/// Bytes that were read and not used yet.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    /// Initialised throughout; empty when no room is held.
    data: Vec<u8>,
    start: usize,
    end: usize,
    /// How often in a row a read filled all room.
    full: u8,
}

impl Buffer {
    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.data[self.start..self.end]
    }

    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Takes `count` bytes off the front.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.end, "more was consumed than there was");
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Gives the room back when there are no bytes in it.
    pub(crate) fn release(&mut self, buffers: &Buffers) {
        if self.is_empty() && !self.data.is_empty() {
            buffers.take_back(std::mem::take(&mut self.data));
            (self.start, self.end) = (0, 0);
        }
    }

    /// Reads more; 0 means that the stream has ended. While nothing comes, no room is held.
    pub(crate) fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        buffers: &Buffers,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        if self.data.is_empty() {
            self.data = buffers.room();
            self.full = 0;
        }
        if self.end == self.data.len() {
            if self.start > 0 {
                self.data.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            } else {
                self.data.resize(self.data.len() * 2, 0);
            }
        }
        let mut room = ReadBuf::new(&mut self.data[self.end..]);
        match Pin::new(stream).poll_read(cx, &mut room) {
            Poll::Pending => {
                self.release(buffers);
                Poll::Pending
            }
            outcome => {
                ready!(outcome)?;
                let (count, filled) = (room.filled().len(), room.remaining() == 0);
                self.end += count;
                self.full = if filled { self.full.saturating_add(1) } else { 0 };
                Poll::Ready(Ok(count))
            }
        }
    }

    /// Makes room for a large body, once reads keep filling all there is.
    pub(crate) fn widen(&mut self, buffers: &Buffers) {
        if self.full >= 2 && self.is_empty() && self.data.len() == ROOM {
            buffers.take_back(std::mem::replace(&mut self.data, vec![0; LARGE]));
            self.full = 0;
        }
    }
}
