//! The harness: what a real-host test needs.
