//! Tests on real hosts: one binary, one module per topic.
//!
//! Run them with `cargo xtask test [FILTER]`.

mod accessories;
mod adopt;
mod alerts;
mod backup_trouble;
mod backups;
mod behaviours;
mod bootstrap;
mod certificates;
mod cloud_init;
mod conformance;
mod deploy;
mod docker_update;
mod doctor;
mod door;
mod firewall;
mod fleet;
mod hardening;
mod images;
mod kamal;
mod matrix;
mod outages;
mod parts;
mod postgres;
mod refusals;
mod relay;
mod retention;
mod rollouts;
mod sandbox;
mod silence;
mod sshd_door;
mod stages;
mod stores;
mod strict;
mod trust;
mod updates;
mod uploads;
mod vagrant;
mod verbs;
mod ways_back;
