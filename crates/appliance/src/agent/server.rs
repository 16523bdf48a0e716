//! The agent's one door: HTTP/1.1 and HTTP/2 on a Unix socket.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use nix::unistd::{Gid, Group, Uid, chown};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Agent;
use super::api;

/// The group whose members may open the agent's socket: the deploy user, and admins who ask for it.
const GROUP: &str = "appliance";
/// A greeting is one short line; anything longer is not ours.
const GREETING_LIMIT: usize = 256;
const GREETING: &[u8] = b"appliance-receive ";

/// What `appliance receive` sends before the developer's first byte.
///
/// `key` is the SSH fingerprint that sshd's forced command carries.
pub fn preamble(key: &str) -> String {
    format!("appliance-receive {key}\n")
}

/// Who is on the other side of a connection, as far as the socket can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// A process of this host that may open the socket.
    Local {
        /// Its user id, from the kernel (SO_PEERCRED).
        uid: u32,
    },
    /// Somebody who came through sshd with this key.
    Remote {
        /// `SHA256:…`
        fingerprint: String,
    },
}

/// Listens on `path`, for root and the members of the group `appliance`.
///
/// # Errors
/// When the socket cannot be made or its rights cannot be set.
pub fn listen(path: &Path) -> std::io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        fs_err::create_dir_all(directory)?;
    }
    match fs_err::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    if Uid::effective().is_root() {
        let group = Group::from_name(GROUP)
            .map_err(std::io::Error::from)?
            .map_or(Gid::from_raw(0), |group| group.gid);
        chown(path, None, Some(group)).map_err(std::io::Error::from)?;
    }
    Ok(listener)
}

/// Serves until `stop`, then lets requests in flight finish for a while.
pub async fn serve(listener: UnixListener, agent: Arc<Agent>, stop: CancellationToken) {
    let connections = TaskTracker::new();
    loop {
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "accept on the agent's socket failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let agent = Arc::clone(&agent);
        let stop = stop.clone();
        connections.spawn(async move {
            if let Err(error) = connection(stream, agent, stop).await {
                tracing::debug!(error = &*error as &dyn std::error::Error, "connection ended");
            }
        });
    }
    connections.close();
    let _some_stay = tokio::time::timeout(Duration::from_secs(5), connections.wait()).await;
}

type Failed = Box<dyn std::error::Error + Send + Sync>;

async fn connection(stream: UnixStream, agent: Arc<Agent>, stop: CancellationToken) -> Result<(), Failed> {
    let uid = stream.peer_cred()?.uid();
    let (peer, stream) = greet(stream, uid).await?;
    let service = service_fn(move |request| {
        let agent = Arc::clone(&agent);
        let peer = peer.clone();
        async move { Ok::<_, std::convert::Infallible>(api::answer(agent, peer, request).await) }
    });
    let mut builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(30));
    builder
        .http2()
        .timer(TokioTimer::new())
        // Large enough that one upload over a slow link is not limited by its window.
        .initial_stream_window_size(Some(1 << 20))
        .initial_connection_window_size(Some(8 << 20))
        .max_concurrent_streams(Some(64))
        .keep_alive_interval(Some(Duration::from_secs(20)))
        .keep_alive_timeout(Duration::from_secs(40));
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        done = connection.as_mut() => done,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}

trait Duplex: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}

/// Reads the receiver's greeting if there is one; other clients speak HTTP from the first byte.
async fn greet(mut stream: UnixStream, uid: u32) -> Result<(Peer, Pin<Box<dyn Duplex>>), Failed> {
    let mut seen = Vec::with_capacity(64);
    while seen.len() < GREETING_LIMIT {
        let byte = match stream.read_u8().await {
            Ok(byte) => byte,
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error.into()),
        };
        seen.push(byte);
        if seen.len() <= GREETING.len() && !GREETING.starts_with(&seen) {
            break;
        }
        if byte == b'\n' {
            let fingerprint = std::str::from_utf8(&seen[GREETING.len()..])?.trim().to_owned();
            return Ok((Peer::Remote { fingerprint }, Box::pin(stream)));
        }
    }
    let (read, write) = stream.into_split();
    let read = std::io::Cursor::new(seen).chain(read);
    Ok((Peer::Local { uid }, Box::pin(tokio::io::join(read, write))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    async fn first_bytes(sent: &str) -> (Peer, String) {
        let (mut client, server) = UnixStream::pair().expect("socket pair");
        client.write_all(sent.as_bytes()).await.expect("write");
        client.shutdown().await.expect("shutdown");
        let (peer, mut stream) = greet(server, 7).await.expect("greeted");
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.expect("read");
        (peer, rest)
    }

    #[tokio::test]
    async fn a_receiver_is_known_by_its_key_and_http_clients_lose_no_byte() {
        let (peer, rest) = first_bytes(&format!("{}PRI * HTTP/2.0", preamble("SHA256:abc"))).await;
        assert_eq!(
            peer,
            Peer::Remote {
                fingerprint: "SHA256:abc".into()
            }
        );
        assert_eq!(rest, "PRI * HTTP/2.0");

        let (peer, rest) = first_bytes("GET /v1/status HTTP/1.1\r\n\r\n").await;
        assert_eq!(peer, Peer::Local { uid: 7 });
        assert_eq!(rest, "GET /v1/status HTTP/1.1\r\n\r\n");

        let (_, rest) = first_bytes("appl").await;
        assert_eq!(rest, "appl");
    }
}
