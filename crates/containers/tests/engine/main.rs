//! The engine adapter against a real Docker daemon.

mod images;
mod life;
mod support;
mod volumes;
mod waiting;
