//! A client connection inside TLS.
//!
//! What tokio-rustls has, but for one thing: session tickets, which TLS 1.3 sends after the handshake, wait for the first
//! bytes of an answer and go out with them, in one segment instead of two.
//! A client that never asks anything needs none.

use std::io::{self, BufRead, Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::server::{Accepted, AcceptedAlert, Acceptor};
use rustls::{ProtocolVersion, ServerConfig, ServerConnection};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A connection whose handshake is done.
#[derive(Debug)]
pub(crate) struct Secured {
    socket: TcpStream,
    session: ServerConnection,
    /// Whether our `close_notify` was said.
    closed: bool,
}

impl Secured {
    /// Makes a handshake.
    ///
    /// # Errors
    /// When the connection breaks, or the client and we find no common ground; it is told so.
    pub(crate) async fn accept(socket: TcpStream, config: Arc<ServerConfig>) -> io::Result<Self> {
        let session = ServerConnection::new(config).map_err(io::Error::other)?;
        Self::shake_hands(socket, session).await
    }

    /// Makes the rest of a handshake, whose first message was read by [`hello`].
    ///
    /// # Errors
    /// As with [`Self::accept`].
    pub(crate) async fn finish(
        mut socket: TcpStream,
        hello: Accepted,
        config: Arc<ServerConfig>,
    ) -> io::Result<Self> {
        match hello.into_connection(config) {
            Ok(session) => Self::shake_hands(socket, session).await,
            Err((error, alert)) => Err(refuse(&mut socket, error, alert).await),
        }
    }

    async fn shake_hands(socket: TcpStream, session: ServerConnection) -> io::Result<Self> {
        let mut secured = Self {
            socket,
            session,
            closed: false,
        };
        std::future::poll_fn(|cx| secured.poll_handshake(cx)).await?;
        Ok(secured)
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            // All that is left then are tickets; before TLS 1.3 the client waits for our last message.
            let over = !self.session.is_handshaking();
            if over && self.session.protocol_version() == Some(ProtocolVersion::TLSv1_3) {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_send(cx))?;
            if over {
                return Poll::Ready(Ok(()));
            }
            if ready!(self.poll_receive(cx))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// What was agreed on.
    pub(crate) fn session(&self) -> &ServerConnection {
        &self.session
    }

    /// Reads records once; 0 at the end of the stream.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut socket = Blocking(&mut self.socket, cx);
        let count = match self.session.read_tls(&mut socket) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
            read => read?,
        };
        if let Err(error) = self.session.process_new_packets() {
            // The alert that says why, as far as it can be sent; the error counts.
            let _told = self.poll_send(cx);
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
        }
        Poll::Ready(Ok(count))
    }

    /// Sends the records that are there.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut Blocking(&mut self.socket, cx)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Reads a client's first message, and nothing else yet.
///
/// # Errors
/// When the connection breaks, or what comes is no such message; the client is told so.
pub(crate) async fn hello(socket: &mut TcpStream) -> io::Result<Accepted> {
    let mut acceptor = Acceptor::default();
    loop {
        let read = std::future::poll_fn(|cx| match acceptor.read_tls(&mut Blocking(socket, cx)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            read => Poll::Ready(read),
        });
        if read.await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match acceptor.accept() {
            Ok(Some(hello)) => return Ok(hello),
            Ok(None) => {}
            Err((error, alert)) => return Err(refuse(socket, error, alert).await),
        }
    }
}

/// Sends an alert, as far as the client takes it.
async fn refuse(socket: &mut TcpStream, error: rustls::Error, mut alert: AcceptedAlert) -> io::Error {
    std::future::poll_fn(|cx| {
        loop {
            match alert.write(&mut Blocking(socket, cx)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(_) | Ok(0) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
    })
    .await;
    io::Error::new(io::ErrorKind::InvalidData, error)
}

impl AsyncRead for Secured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut reader = self.session.reader();
            match reader.fill_buf() {
                Ok(there) => {
                    let count = there.len().min(to.remaining());
                    to.put_slice(&there[..count]);
                    reader.consume(count);
                    return Poll::Ready(Ok(()));
                }
                // Here also: the stream ended without `close_notify`.
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Poll::Ready(Err(error)),
                Err(_) => {}
            }
            ready!(self.poll_receive(cx))?;
        }
    }
}

impl AsyncWrite for Secured {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(from)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if from.iter().all(|piece| piece.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        loop {
            let count = self.session.writer().write_vectored(from)?;
            match self.poll_send(cx) {
                Poll::Ready(sent) => sent?,
                Poll::Pending if count == 0 => return Poll::Pending,
                Poll::Pending => {}
            }
            if count > 0 {
                return Poll::Ready(Ok(count));
            }
        }
    }

    /// The head of a frame and what it carries become one record.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closed {
            self.closed = true;
            self.session.send_close_notify();
        }
        ready!(self.poll_send(cx))?;
        match ready!(Pin::new(&mut self.socket).poll_shutdown(cx)) {
            Err(error) if error.kind() != io::ErrorKind::NotConnected => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }
}

/// A socket as the TLS library wants it: what would wait is an error, and wakes the task.
struct Blocking<'a, 'b>(&'a mut TcpStream, &'a mut Context<'b>);

impl Blocking<'_, '_> {
    fn now<T>(outcome: Poll<io::Result<T>>) -> io::Result<T> {
        match outcome {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl Read for Blocking<'_, '_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let mut room = ReadBuf::new(to);
        Self::now(Pin::new(&mut *self.0).poll_read(self.1, &mut room))?;
        Ok(room.filled().len())
    }
}

impl Write for Blocking<'_, '_> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        Self::now(Pin::new(&mut *self.0).poll_write(self.1, from))
    }

    fn write_vectored(&mut self, from: &[io::IoSlice<'_>]) -> io::Result<usize> {
        Self::now(Pin::new(&mut *self.0).poll_write_vectored(self.1, from))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rustls::{ClientConfig, RootCertStore};
    use rustls_pki_types::ServerName;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// A server's and a client's settings that fit each other.
    fn settings() -> (Arc<ServerConfig>, Arc<ClientConfig>) {
        let own = rcgen::generate_simple_self_signed(vec!["app.test".to_owned()]).expect("a certificate");
        let mut roots = RootCertStore::empty();
        roots.add(own.cert.der().clone()).expect("a root");
        let builder = ServerConfig::builder_with_provider(crate::tls::provider());
        let mut server = builder
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![own.cert.der().clone()],
                own.signing_key.serialize_der().try_into().expect("a key"),
            )
            .expect("a pair");
        server.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().expect("a ticketer");
        server.send_tls13_tickets = 1;
        let client = ClientConfig::builder_with_provider(crate::tls::provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        (Arc::new(server), Arc::new(client))
    }

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let client = TcpStream::connect(listener.local_addr().expect("its address"));
        let (accepted, client) = tokio::join!(listener.accept(), client);
        (accepted.expect("a connection").0, client.expect("a connection"))
    }

    #[tokio::test]
    async fn tickets_travel_with_the_first_bytes_of_the_answer() {
        let (config, trusting) = settings();
        let (ours, theirs) = pair().await;
        let name = ServerName::try_from("app.test").expect("a name");
        let connector = tokio_rustls::TlsConnector::from(trusting);
        let (secured, client) = tokio::join!(Secured::accept(ours, config), connector.connect(name, theirs));
        let (mut secured, mut client) = (secured.expect("a handshake"), client.expect("a handshake"));
        // What was sent is in the client's socket before the call returns, on the loopback.
        let sent = client.get_ref().0.try_read(&mut [0; 1]);
        assert_eq!(
            sent.expect_err("nothing was sent").kind(),
            io::ErrorKind::WouldBlock
        );

        secured.write_all(b"answer").await.expect("an answer");
        let mut answer = [0; 6];
        client.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(&answer, b"answer");
        assert_eq!(client.get_ref().1.tls13_tickets_received(), 1);
    }

    /// Frames of HTTP/2 are written as head and body; two records and two calls for each would cost a fifth of the speed.
    #[tokio::test]
    async fn pieces_of_one_write_are_sent_at_once() {
        let (config, trusting) = settings();
        let (ours, theirs) = pair().await;
        let name = ServerName::try_from("app.test").expect("a name");
        let connector = tokio_rustls::TlsConnector::from(trusting);
        let (secured, client) = tokio::join!(Secured::accept(ours, config), connector.connect(name, theirs));
        let (mut secured, mut client) = (secured.expect("a handshake"), client.expect("a handshake"));
        assert!(secured.is_write_vectored());
        let pieces = [io::IoSlice::new(b"head "), io::IoSlice::new(b"body")];
        assert_eq!(secured.write_vectored(&pieces).await.expect("sent"), 9);
        let mut both = [0; 9];
        client.read_exact(&mut both).await.expect("received");
        assert_eq!(&both, b"head body");
    }

    #[tokio::test]
    async fn both_ends_are_told_apart_from_a_cut() {
        let (config, trusting) = settings();
        for said in [true, false] {
            let (ours, theirs) = pair().await;
            let connector = tokio_rustls::TlsConnector::from(Arc::clone(&trusting));
            let name = ServerName::try_from("app.test").expect("a name");
            let (secured, client) = tokio::join!(
                Secured::accept(ours, Arc::clone(&config)),
                connector.connect(name, theirs)
            );
            let (mut secured, mut client) = (secured.expect("a handshake"), client.expect("a handshake"));
            if said {
                client.shutdown().await.expect("an end");
            } else {
                client.get_mut().0.shutdown().await.expect("a cut");
            }
            let read = secured.read(&mut [0; 1]).await;
            match said {
                true => assert_eq!(read.expect("an orderly end"), 0),
                false => assert_eq!(
                    read.expect_err("a cut is no end").kind(),
                    io::ErrorKind::UnexpectedEof
                ),
            }
        }
    }

    #[tokio::test]
    async fn more_than_the_socket_takes_at_once_arrives_whole() {
        let (config, trusting) = settings();
        let (ours, theirs) = pair().await;
        let name = ServerName::try_from("app.test").expect("a name");
        let connector = tokio_rustls::TlsConnector::from(trusting);
        let (secured, client) = tokio::join!(Secured::accept(ours, config), connector.connect(name, theirs));
        let (mut secured, mut client) = (secured.expect("a handshake"), client.expect("a handshake"));
        let body: Vec<u8> = (0..8 << 20)
            .map(|index: u32| index.to_le_bytes()[0] ^ index.to_le_bytes()[2])
            .collect();
        let write = async {
            secured.write_all(&body).await.expect("all of it");
            secured.shutdown().await.expect("an end");
        };
        let mut got = Vec::new();
        let ((), read) = tokio::join!(write, client.read_to_end(&mut got));
        read.expect("an orderly end");
        assert!(
            got == body,
            "{} of {} bytes came, or others",
            got.len(),
            body.len()
        );
    }

    #[tokio::test]
    async fn a_stranger_is_told_why_he_is_refused() {
        for hello_first in [false, true] {
            let (config, _) = settings();
            let (mut ours, mut theirs) = pair().await;
            theirs
                .write_all(b"GET / HTTP/1.1\r\n\r\n")
                .await
                .expect("a request");
            let refused = if hello_first {
                hello(&mut ours).await.map(drop)
            } else {
                Secured::accept(ours, config).await.map(drop)
            };
            assert_eq!(
                refused.expect_err("this is no TLS").kind(),
                io::ErrorKind::InvalidData
            );
            let mut alert = [0; 7];
            theirs.read_exact(&mut alert).await.expect("an alert");
            assert_eq!((alert[0], alert[5]), (21, 2), "a fatal alert: {alert:?}");
        }
    }
}
