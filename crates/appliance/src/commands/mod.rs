//! One file per verb: its arguments (the doc comments are the help text) and what it does.

pub mod app;
pub mod audit;
pub mod boot;
pub mod bootstrap;
pub mod certificates;
pub mod cloud_init;
pub mod config;
pub mod details;
pub mod docs;
pub mod exec;
pub mod host;
pub mod init;
pub mod keys;
pub mod listing;
pub mod logs;
pub mod proxy;
pub mod proxy_verbs;
pub mod prune;
pub mod push;
pub mod registry;
pub mod rollback;
pub mod sandbox;
pub mod secrets;
pub mod server;
pub mod status;
pub mod upgrade;
