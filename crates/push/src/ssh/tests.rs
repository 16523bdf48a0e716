//! The client against an SSH server in this process, with real key files and a real ssh-agent.

use std::net::SocketAddr;
use std::sync::Arc;

use russh::keys::{Algorithm, EcdsaCurve, PrivateKey};
use russh::server::{self, Auth, ChannelOpenHandle, Handler, Msg, VerifiedPublicKey};
use russh::{Channel, ChannelId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::sign::tests::{Agent, Keys, fs_write};
use crate::transport::{Transport, TransportError};

/// An SSH server that takes some keys and joins `appliance receive` to a TCP address.
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    pub(crate) host_key: String,
}

#[derive(Clone)]
struct Door {
    allowed: Vec<String>,
    backend: Option<SocketAddr>,
    channel: Option<Arc<tokio::sync::Mutex<Option<Channel<Msg>>>>>,
}

impl Handler for Door {
    type Error = russh::Error;

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, russh::Error> {
        let shown = key.public_key.fingerprint(Default::default()).to_string();
        Ok(if user == "deploy" && self.allowed.contains(&shown) {
            Auth::Accept
        } else {
            Auth::reject()
        })
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut server::Session,
    ) -> Result<(), russh::Error> {
        self.channel = Some(Arc::new(tokio::sync::Mutex::new(Some(channel))));
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        command: &[u8],
        session: &mut server::Session,
    ) -> Result<(), russh::Error> {
        if command != crate::transport::RECEIVE.as_bytes() {
            return session.channel_failure(id);
        }
        session.channel_success(id)?;
        let channel = self.channel.clone().expect("opened before");
        let handle = session.handle();
        let backend = self.backend;
        tokio::spawn(async move {
            let channel = channel.lock().await.take().expect("one command on a channel");
            let Some(backend) = backend else {
                let text = b"the agent does not answer\n";
                let _sent = handle.extended_data(id, 1, text.to_vec()).await;
                let _sent = handle.exit_status_request(id, 5).await;
                let _sent = handle.close(id).await;
                return;
            };
            let mut backend = TcpStream::connect(backend).await.expect("backend");
            let mut stream = channel.into_stream();
            let _cut = tokio::io::copy_bidirectional(&mut stream, &mut backend).await;
        });
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _originator: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut server::Session,
    ) -> Result<(), russh::Error> {
        let Ok(mut onward) = TcpStream::connect((host, port as u16)).await else {
            reply.reject(russh::ChannelOpenFailure::ConnectFailed).await;
            return Ok(());
        };
        reply.accept().await;
        tokio::spawn(async move {
            let mut stream = channel.into_stream();
            let _cut = tokio::io::copy_bidirectional(&mut stream, &mut onward).await;
        });
        Ok(())
    }
}

impl Peer {
    /// A server with a fresh host key that lets these public key lines in.
    pub(crate) async fn start(
        allowed: &[String],
        backend: Option<SocketAddr>,
        algorithm: &[&str],
        keys: &Keys,
    ) -> Self {
        let name = format!("host-{}", keys.directory.path().read_dir().expect("list").count());
        let path = keys.make(&name, algorithm, "");
        let key: PrivateKey = crate::sign::load_private_key(&path, &mut |_| None).expect("a key");
        let host_key = key.public_key().to_openssh().expect("line");
        let allowed = allowed
            .iter()
            .map(|line| {
                crate::sign::PublicKey::parse(line)
                    .expect("a key")
                    .fingerprint()
                    .to_string()
            })
            .collect();
        let door = Door {
            allowed,
            backend,
            channel: None,
        };
        let config = Arc::new(server::Config {
            keys: vec![key],
            auth_rejection_time: Duration::ZERO,
            auth_rejection_time_initial: Some(Duration::ZERO),
            ..server::Config::default()
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("address");
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (config, door) = (Arc::clone(&config), door.clone());
                tokio::spawn(async move {
                    if let Ok(session) = server::run_stream(config, stream, door).await {
                        let _cut = session.await;
                    }
                });
            }
        });
        Self { address, host_key }
    }

    /// Options that know this server and offer this key file.
    pub(crate) fn options(&self, keys: &Keys, identity: &Path) -> Options {
        let known = keys.path("known_hosts");
        let line = format!("[127.0.0.1]:{} {}\n", self.address.port(), self.host_key);
        let before = std::fs::read_to_string(&known).unwrap_or_default();
        fs_write(&known, format!("{before}{line}").as_bytes());
        Options {
            identities: vec![identity.to_owned()],
            known_hosts: vec![known],
            ..Options::bare()
        }
    }

    pub(crate) fn target(&self, options: Options) -> Target {
        Target::parse(&format!("deploy@{}", self.address), options).expect("target")
    }
}

const ED25519: &[&str] = &["-t", "ed25519"];

/// Answers what it gets, in capitals.
async fn shouting_backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut text = String::new();
                stream.read_to_string(&mut text).await.expect("text");
                stream
                    .write_all(text.to_uppercase().as_bytes())
                    .await
                    .expect("answer");
            });
        }
    });
    address
}

async fn round_trip(target: Target) -> Result<String, TransportError> {
    let mut link = Transport::Ssh(Box::new(target)).open().await?;
    link.stream.write_all(b"hello").await.expect("sent");
    link.stream.shutdown().await.expect("half closed");
    let mut answer = String::new();
    link.stream.read_to_string(&mut answer).await.expect("answer");
    Ok(answer)
}

fn cause(error: TransportError) -> SshError {
    match error {
        TransportError::Ssh { source, .. } => *source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn targets_are_parsed() {
    let target = |text: &str| Target::parse(text, Options::bare());
    for (text, user, host, port) in [
        ("host", None, "host", None),
        ("me@host:2222", Some("me"), "host", Some(2222)),
        ("me@2001:db8::1", Some("me"), "2001:db8::1", None),
        ("[2001:db8::1]:2222", None, "2001:db8::1", Some(2222)),
        ("odd@name@host", Some("odd@name"), "host", None),
    ] {
        let found = target(text).expect(text);
        assert_eq!(
            (found.user.as_deref(), found.host.as_str(), found.port),
            (user, host, port)
        );
    }
    for bad in [
        "",
        "@host",
        "host:",
        "host:99999",
        "-oProxyCommand=x",
        "me@-x",
        "a b",
        "[::1]2222",
    ] {
        assert!(matches!(target(bad), Err(SshError::BadTarget { .. })), "{bad}");
    }
}

#[tokio::test]
async fn bytes_go_both_ways_with_a_key_file_and_with_the_agent() {
    let keys = Keys::new();
    let identity = keys.make("dev", ED25519, "");
    let backend = shouting_backend().await;
    let peer = Peer::start(&[keys.public("dev")], Some(backend), ED25519, &keys).await;
    let options = peer.options(&keys, &identity);
    assert_eq!(
        round_trip(peer.target(options.clone())).await.expect("connects"),
        "HELLO"
    );

    let agent = Agent::start(&keys);
    agent.add(&identity);
    std::fs::remove_file(&identity).expect("removed: only the agent has it now");
    let options = Options {
        agent: Some(agent.socket.clone()),
        ..options
    };
    assert_eq!(
        round_trip(peer.target(options.clone())).await.expect("connects"),
        "HELLO"
    );

    let encrypted = keys.make("locked", ED25519, "sesame");
    let peer = Peer::start(
        &[keys.public("locked")],
        Some(backend),
        &["-t", "ecdsa", "-b", "384"],
        &keys,
    )
    .await;
    let options = peer.options(&keys, &encrypted);
    let error = cause(
        round_trip(peer.target(options.clone()))
            .await
            .expect_err("nobody to ask"),
    );
    assert!(
        matches!(&error, SshError::NoKeys { source: Some(source), .. } if matches!(**source, SignError::NeedsPassphrase { .. })),
        "{error:?}"
    );
    let options = Options {
        passphrase: Arc::new(|_| Some("sesame".to_owned())),
        ..options
    };
    assert_eq!(round_trip(peer.target(options)).await.expect("connects"), "HELLO");
}

#[tokio::test]
async fn unknown_and_changed_hosts_are_refused_and_accept_new_remembers() {
    let keys = Keys::new();
    let identity = keys.make("dev", ED25519, "");
    let backend = shouting_backend().await;
    let peer = Peer::start(&[keys.public("dev")], Some(backend), ED25519, &keys).await;
    let other = Peer::start(&[keys.public("dev")], Some(backend), ED25519, &keys).await;
    let known = keys.path("known");
    let strict = Options {
        identities: vec![identity],
        known_hosts: vec![known.clone()],
        ..Options::bare()
    };
    let error = cause(
        round_trip(peer.target(strict.clone()))
            .await
            .expect_err("unknown"),
    );
    assert!(matches!(error, SshError::HostKeyUnknown { .. }), "{error:?}");

    let accept = Options {
        policy: Some(HostKeyPolicy::AcceptNew),
        ..strict.clone()
    };
    assert_eq!(
        round_trip(peer.target(accept.clone())).await.expect("connects"),
        "HELLO"
    );
    assert_eq!(
        round_trip(peer.target(strict.clone()))
            .await
            .expect("known by now"),
        "HELLO"
    );

    // Known by its name alone, as before its sshd moved to another port; who shows another key there is unknown.
    let line = std::fs::read_to_string(&known).expect("text");
    let (ip, port) = (peer.address.ip(), peer.address.port());
    fs_write(
        &known,
        line.replace(&format!("[{ip}]:{port} "), &format!("{ip} "))
            .as_bytes(),
    );
    assert_eq!(
        round_trip(peer.target(strict.clone()))
            .await
            .expect("known by name"),
        "HELLO"
    );
    let error = cause(round_trip(other.target(strict)).await.expect_err("another key"));
    assert!(matches!(error, SshError::HostKeyUnknown { .. }), "{error:?}");
    fs_write(&known, line.as_bytes());

    // Another server answers at the known address: the name stands for the old key.
    let line = std::fs::read_to_string(&known).expect("text");
    let moved = line.replace(
        &format!(":{} ", peer.address.port()),
        &format!(":{} ", other.address.port()),
    );
    fs_write(&known, moved.as_bytes());
    let error = cause(round_trip(other.target(accept)).await.expect_err("changed"));
    assert!(
        matches!(error, SshError::HostKeyChanged { line: 1, .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains("ssh-keygen -R"), "{error}");
}

#[tokio::test]
async fn refused_keys_are_listed_and_dead_hosts_named() {
    let keys = Keys::new();
    let identity = keys.make("dev", ED25519, "");
    keys.make("somebody", ED25519, "");
    let peer = Peer::start(&[keys.public("somebody")], None, ED25519, &keys).await;
    let options = peer.options(&keys, &identity);
    let error = cause(
        round_trip(peer.target(options.clone()))
            .await
            .expect_err("not let in"),
    );
    let SshError::AuthRefused { tried, .. } = &error else {
        panic!("{error:?}")
    };
    let own = crate::sign::PublicKey::parse(&keys.public("dev"))
        .expect("a key")
        .fingerprint();
    assert!(tried.len() == 1 && tried[0].contains(own.as_str()), "{tried:?}");

    let nothing = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = nothing.local_addr().expect("address");
    drop(nothing);
    let dead = Target::parse(&format!("deploy@{address}"), options.clone()).expect("target");
    let error = cause(round_trip(dead).await.expect_err("nobody there"));
    assert!(matches!(error, SshError::Unreachable { .. }), "{error:?}");

    let silent = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = silent.local_addr().expect("address");
    let impatient = Options {
        connect_timeout: Duration::from_millis(200),
        ..options
    };
    let mute = Target::parse(&format!("deploy@{address}"), impatient).expect("target");
    let error = cause(round_trip(mute).await.expect_err("says nothing"));
    assert!(matches!(error, SshError::TimedOut { .. }), "{error:?}");
}

#[tokio::test]
async fn what_the_far_side_complains_about_is_passed_on() {
    let keys = Keys::new();
    let identity = keys.make("dev", ED25519, "");
    let peer = Peer::start(&[keys.public("dev")], None, ED25519, &keys).await;
    let target = peer.target(peer.options(&keys, &identity));
    let transport = Transport::Ssh(Box::new(target));
    let client = transport.client().await;
    let error = match client {
        Err(error) => error,
        Ok(client) => {
            let body = http_body_util::BodyExt::boxed(http_body_util::BodyExt::map_err(
                http_body_util::Empty::<bytes::Bytes>::new(),
                |never| match never {},
            ));
            let request = http::Request::builder()
                .uri("/v1/status")
                .body(body)
                .expect("request");
            client.send(request).await.expect_err("nobody answers")
        }
    };
    assert!(error.to_string().contains("the agent does not answer"), "{error}");
}

#[tokio::test]
async fn a_jump_host_from_the_configuration_carries_the_connection() {
    let keys = Keys::new();
    let identity = keys.make("dev", ED25519, "");
    let backend = shouting_backend().await;
    let jump = Peer::start(&[keys.public("dev")], None, ED25519, &keys).await;
    let peer = Peer::start(&[keys.public("dev")], Some(backend), ED25519, &keys).await;
    jump.options(&keys, &identity);
    let options = peer.options(&keys, &identity);
    let config = keys.path("config");
    let text = format!(
        "Host app\n  HostName 127.0.0.1\n  Port {}\n  User deploy\n  ProxyJump gate\nHost gate\n  HostName 127.0.0.1\n  Port {}\n  User deploy\n",
        peer.address.port(),
        jump.address.port()
    );
    fs_write(&config, text.as_bytes());
    let options = Options {
        config_files: vec![config],
        ..options
    };
    let target = Target::parse("app", options).expect("target");
    assert_eq!(round_trip(target).await.expect("connects"), "HELLO");
}

#[tokio::test]
async fn the_host_key_type_we_know_is_asked_for_first() {
    let keys = Keys::new();
    let known = vec![known_hosts::KnownKey {
        key: {
            keys.make("p256", &["-t", "ecdsa", "-b", "256"], "");
            russh::keys::PublicKey::from_openssh(&keys.public("p256")).expect("a key")
        },
        revoked: false,
        file: PathBuf::new(),
        line: 1,
    }];
    let p256 = Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP256,
    };
    assert_eq!(
        known_hosts::preferred(&known, &[Algorithm::Ed25519, p256.clone()]),
        [p256, Algorithm::Ed25519]
    );
}
