//! `appliance proxy`.
