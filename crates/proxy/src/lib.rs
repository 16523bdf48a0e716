//! The data plane: listeners, TLS, routes, health checks, switch and drain.
