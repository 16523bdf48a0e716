//! The developer's side of a push: configuration, image, secrets, signature, connection.

pub mod git;
