//! `appliance config`.
