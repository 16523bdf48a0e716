//! `appliance cloud-init`.
