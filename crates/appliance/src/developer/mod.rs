//! The developer's side of a push: configuration, image, secrets, signature, connection.

pub mod accessories;
pub mod build;
pub mod canary;
pub mod change;
pub mod earlier;
pub mod fleet;
pub mod front;
pub mod git;
pub mod hooks;
pub mod image;
pub mod lead;
pub mod link;
pub mod project;
pub mod reach;
pub mod release;
pub mod remote;
pub mod session;
pub mod targets;
pub mod terminal;
pub mod turn;
pub mod wanted;
