//! The connections of one worker that must hear of a stop or a cut at once, without each having to listen for it.

use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Waker};

use slab::Slab;

/// The wakers of a worker's connections.
#[derive(Debug, Default)]
pub(crate) struct Wakers(Rc<RefCell<Slab<Option<Waker>>>>);

impl Wakers {
    /// A place for one connection.
    pub(crate) fn register(&self) -> Place {
        Place {
            all: Rc::clone(&self.0),
            key: self.0.borrow_mut().insert(None),
            known: false,
        }
    }

    /// Wakes every connection, so that it looks at what changed.
    pub(crate) fn wake_all(&self) {
        for (_, waker) in self.0.borrow().iter() {
            if let Some(waker) = waker {
                waker.wake_by_ref();
            }
        }
    }
}

/// One connection's place.
#[derive(Debug)]
pub(crate) struct Place {
    all: Rc<RefCell<Slab<Option<Waker>>>>,
    key: usize,
    known: bool,
}

impl Place {
    /// Remembers who is to be woken; a connection's task never changes.
    pub(crate) fn remember(&mut self, cx: &Context<'_>) {
        if !self.known {
            self.known = true;
            self.all.borrow_mut()[self.key] = Some(cx.waker().clone());
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.borrow_mut().remove(self.key);
    }
}
