//! The server side of the control socket.
pub(crate) async fn serve() {}
