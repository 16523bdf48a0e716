//! deploy.yml, secrets and host.yml become checked types, with line-accurate complaints.

pub mod erb;
pub mod runner;
pub mod secrets;
