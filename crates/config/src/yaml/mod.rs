//! YAML as Psych reads it: Ruby's reader on libyaml, YAML 1.1 meanings taken from the raw scalar.

mod reader;
mod scalar;
pub mod tree;

pub use reader::{Document, YamlError, read, silence_caught_panics};

#[cfg(test)]
mod tests;
