//! `appliance host`.
