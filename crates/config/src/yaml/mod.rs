//! YAML as Psych reads it.

pub mod tree;
