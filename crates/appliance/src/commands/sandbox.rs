//! `appliance sandbox`.
