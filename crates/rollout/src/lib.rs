//! The rollout as a state machine without I/O.
