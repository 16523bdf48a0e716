//! `appliance bootstrap`.
