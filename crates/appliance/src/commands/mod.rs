//! One file per verb: its arguments (the doc comments are the help text) and what it does.

pub mod app;
pub mod audit;
pub mod bootstrap;
pub mod cloud_init;
pub mod config;
pub mod host;
pub mod init;
pub mod keys;
pub mod proxy;
pub mod push;
pub mod rollback;
pub mod sandbox;
pub mod secrets;
pub mod status;
