//! Everything the tasks print.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::time::Instant;

/// A line of the result.
pub(crate) fn line(text: &str) {
    println!("{text}");
}

/// A line of progress.
pub(crate) fn note(text: &str) {
    eprintln!("  {text}");
}

/// A line that matters only if something hangs; shown with `XTASK_VERBOSE=1`.
pub(crate) fn detail(text: &str) {
    if std::env::var_os("XTASK_VERBOSE").is_some() {
        note(text);
    }
}

/// A step whose time is told when it ends.
#[derive(Debug)]
pub(crate) struct Step {
    name: String,
    begun: Instant,
}

/// Begins a step.
pub(crate) fn step(name: impl Into<String>) -> Step {
    let name = name.into();
    eprintln!("▸ {name}");
    Step {
        name,
        begun: Instant::now(),
    }
}

impl Step {
    /// Ends it well; `what` may be empty.
    pub(crate) fn done(self, what: &str) {
        let gap = if what.is_empty() { "" } else { ": " };
        eprintln!(
            "✓ {}{gap}{what} ({:.1} s)",
            self.name,
            self.begun.elapsed().as_secs_f64()
        );
    }
}
