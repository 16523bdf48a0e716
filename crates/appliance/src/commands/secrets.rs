//! `appliance secrets`.
