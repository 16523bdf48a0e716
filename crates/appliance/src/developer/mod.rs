//! The developer's side of a push: configuration, image, secrets, signature, connection.

pub mod change;
pub mod git;
pub mod image;
pub mod link;
pub mod project;
pub mod reach;
pub mod release;
pub mod session;
pub mod targets;
pub mod terminal;
