//! Connecting, jumping, checking the host's key, and running one command.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use russh::client::{self, Handle, Handler};
use russh::keys::{Algorithm, EcdsaCurve, HashAlg, PublicKeyOrCertificate};
use russh::{ChannelMsg, Disconnect, Preferred};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::config::{self, HostConfig, Surroundings};
use super::known_hosts::{self, KnownKey, Verdict};
use super::{HostKeyPolicy, Options, SshError, Target, auth};
use crate::transport::Duplex;

/// Bytes between us and the SSH session; one large window keeps long links busy.
const WINDOW: u32 = 16 << 20;
/// How much of the command's standard error is kept for messages.
const STDERR_LIMIT: usize = 8 << 10;
/// Longest chain of jump hosts.
const MAX_JUMPS: usize = 8;

/// An open, logged-in connection.
pub struct Session {
    handle: Handle<Checker>,
    host: String,
    /// Sessions this one runs through; they end with it.
    _through: Vec<Handle<Checker>>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

/// How a command on the far side ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exit {
    /// Its status, if it ended and the host said so.
    pub status: Option<u32>,
    /// The first of what it wrote to standard error.
    pub stderr: String,
}

/// Connects to a host and logs in, through jump hosts if there are any.
///
/// # Errors
/// When the host cannot be reached, is not the one we know, or takes none of our keys.
pub async fn connect(target: &Target) -> Result<Session, SshError> {
    let mut waiting = vec![target.clone()];
    // From the target back to the first hop: each may itself name jump hosts in the configuration.
    let mut path = Vec::new();
    while let Some(next) = waiting.pop() {
        let entry = resolve(&next)?;
        if path.len() > MAX_JUMPS {
            return Err(SshError::BadTarget {
                text: format!("{} (more than {MAX_JUMPS} jump hosts)", target.host),
            });
        }
        // The nearest jump host carries us; those before it are its own way.
        if let Some((last, before)) = entry.jump.split_last() {
            let options = Options {
                jump: (!before.is_empty()).then(|| before.to_vec()),
                ..target.options.clone()
            };
            waiting.push(Target::parse(last, options)?);
        }
        path.push(entry);
    }
    let mut through: Vec<Handle<Checker>> = Vec::new();
    let mut previous = String::new();
    while let Some(entry) = path.pop() {
        let stream: Box<dyn Duplex> = match through.last() {
            None => Box::new(dial(&entry).await?),
            Some(jump) => Box::new(tunnel(jump, &previous, &entry).await?),
        };
        let handle = enter(stream, &entry).await?;
        previous.clone_from(&entry.host);
        through.push(handle);
    }
    let handle = through.pop().expect("the path has at least the target itself");
    Ok(Session {
        handle,
        host: previous,
        _through: through,
    })
}

/// A target with everything that the configuration adds.
struct Resolved {
    /// Name or address to dial.
    host: String,
    port: u16,
    user: String,
    /// Name in known_hosts.
    known_as: String,
    /// Its name without a port, where `known_as` has one.
    also_known_as: Option<String>,
    jump: Vec<String>,
    options: Options,
    policy: HostKeyPolicy,
}

fn resolve(target: &Target) -> Result<Resolved, SshError> {
    let mut options = target.options.clone();
    let around = Surroundings {
        home: options.home.as_deref(),
        local_user: options.local_user.as_deref(),
    };
    let HostConfig {
        host_name,
        user,
        port,
        identities,
        identities_only,
        identity_agent,
        proxy_jump,
        proxy_command,
        known_hosts,
        strict,
        host_key_alias,
        connect_timeout,
    } = config::lookup(&options.config_files, &target.host, around)?;
    if let Some(command) = proxy_command.filter(|command| !command.eq_ignore_ascii_case("none")) {
        return Err(SshError::ProxyCommand {
            host: target.host.clone(),
            command,
        });
    }
    let host = host_name.unwrap_or_else(|| target.host.clone());
    let port = target.port.or(port).unwrap_or(22);
    let user = target
        .user
        .clone()
        .or(user)
        .or_else(|| options.local_user.clone())
        .ok_or_else(|| SshError::NoUser {
            host: target.host.clone(),
        })?;
    options.identities.extend(identities);
    options.identities_only |= identities_only.unwrap_or(false);
    if let Some(agent) = identity_agent {
        options.agent = agent;
    }
    if let Some(files) = known_hosts {
        options.known_hosts = files;
    }
    if let Some(seconds) = connect_timeout.filter(|seconds| *seconds > 0) {
        options.connect_timeout = Duration::from_secs(seconds);
    }
    let policy = options.policy.unwrap_or(match strict.as_deref() {
        Some("accept-new") => HostKeyPolicy::AcceptNew,
        // `no` and `off` would accept changed keys as well, which nobody deploying should.
        _ => HostKeyPolicy::Strict,
    });
    Ok(Resolved {
        also_known_as: (host_key_alias.is_none() && port != 22).then(|| known_hosts::name(&host, 22)),
        known_as: match host_key_alias {
            Some(alias) => alias.to_ascii_lowercase(),
            None => known_hosts::name(&host, port),
        },
        jump: options.jump.clone().or(proxy_jump).unwrap_or_default(),
        host,
        port,
        user,
        options,
        policy,
    })
}

async fn dial(entry: &Resolved) -> Result<TcpStream, SshError> {
    let limit = entry.options.connect_timeout;
    let dialled = tokio::time::timeout(limit, TcpStream::connect((entry.host.as_str(), entry.port))).await;
    let unreachable = |source| SshError::Unreachable {
        host: entry.host.clone(),
        port: entry.port,
        source,
    };
    let stream = dialled.map_err(|_| timed_out(entry))?.map_err(unreachable)?;
    // HTTP/2 frames are small and must not wait for one another.
    stream.set_nodelay(true).map_err(unreachable)?;
    Ok(stream)
}

fn timed_out(entry: &Resolved) -> SshError {
    SshError::TimedOut {
        host: entry.host.clone(),
        port: entry.port,
        seconds: entry.options.connect_timeout.as_secs(),
    }
}

async fn tunnel(
    jump: &Handle<Checker>,
    jump_name: &str,
    entry: &Resolved,
) -> Result<impl Duplex + use<>, SshError> {
    let opened = jump.channel_open_direct_tcpip(entry.host.as_str(), u32::from(entry.port), "127.0.0.1", 0);
    let channel = opened.await.map_err(|source| SshError::Jump {
        jump: jump_name.to_owned(),
        host: entry.host.clone(),
        port: entry.port,
        source: Box::new(source),
    })?;
    Ok(channel.into_stream())
}

async fn enter(stream: Box<dyn Duplex>, entry: &Resolved) -> Result<Handle<Checker>, SshError> {
    let supported = [
        Algorithm::Ed25519,
        Algorithm::Ecdsa {
            curve: EcdsaCurve::NistP256,
        },
        Algorithm::Ecdsa {
            curve: EcdsaCurve::NistP384,
        },
        Algorithm::Ecdsa {
            curve: EcdsaCurve::NistP521,
        },
    ];
    let known = known_hosts::lookup(&entry.options.known_hosts, &entry.known_as)?;
    let by_name = match &entry.also_known_as {
        Some(name) if known.is_empty() => known_hosts::lookup(&entry.options.known_hosts, name)?,
        _ => Vec::new(),
    };
    let config = client::Config {
        preferred: Preferred {
            key: known_hosts::preferred(if known.is_empty() { &by_name } else { &known }, &supported).into(),
            ..Preferred::DEFAULT
        },
        window_size: WINDOW,
        keepalive_interval: Some(entry.options.keepalive),
        keepalive_max: 3,
        nodelay: true,
        ..client::Config::default()
    };
    let checker = Checker {
        name: entry.known_as.clone(),
        known,
        by_name,
        policy: entry.policy,
        learn: entry.options.known_hosts.first().cloned(),
    };
    let handshake = client::connect_stream(Arc::new(config), stream, checker);
    let limit = entry.options.connect_timeout;
    let mut handle = match tokio::time::timeout(limit, handshake).await {
        Err(_) => return Err(timed_out(entry)),
        Ok(Err(SshError::Protocol(source))) => {
            return Err(SshError::Handshake {
                host: entry.host.clone(),
                port: entry.port,
                source,
            });
        }
        Ok(other) => other?,
    };
    auth::login(&mut handle, &entry.user, &entry.host, &entry.options).await?;
    Ok(handle)
}

/// Decides about the host's key.
pub(super) struct Checker {
    name: String,
    known: Vec<KnownKey>,
    /// Keys of the same host on port 22, where none is known for its port.
    by_name: Vec<KnownKey>,
    policy: HostKeyPolicy,
    learn: Option<PathBuf>,
}

impl Handler for Checker {
    type Error = SshError;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, SshError> {
        let key = match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } => key,
            // We never ask for one.
            PublicKeyOrCertificate::Certificate(_) => return Ok(false),
        };
        let host = self.name.clone();
        let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
        let verdict = match known_hosts::judge(&self.known, key) {
            // As OpenSSH does: a host whose sshd has moved to another port is known by its key; one that shows
            // another key there may be another daemon, and is as unknown as before.
            Verdict::Unknown => match known_hosts::judge(&self.by_name, key) {
                Verdict::Changed { .. } => Verdict::Unknown,
                other => other,
            },
            other => other,
        };
        match (verdict, self.policy) {
            (Verdict::Known, _) => Ok(true),
            (Verdict::Unknown, HostKeyPolicy::AcceptNew) => {
                if let Some(file) = &self.learn {
                    known_hosts::learn(file, &host, key)?;
                }
                Ok(true)
            }
            (Verdict::Unknown, HostKeyPolicy::Strict) => Err(SshError::HostKeyUnknown {
                host,
                algorithm: key.algorithm().to_string(),
                fingerprint,
            }),
            (Verdict::Changed { file, line, known }, _) => Err(SshError::HostKeyChanged {
                host,
                shown: format!("{} {fingerprint}", key.algorithm()),
                known,
                file,
                line,
            }),
            (Verdict::Revoked { file, line }, _) => Err(SshError::HostKeyRevoked { host, file, line }),
        }
    }
}

impl Session {
    /// Starts a command; the stream is its standard input and output, the receiver learns how it ends.
    ///
    /// The connection ends when the stream is dropped or the command has ended.
    ///
    /// # Errors
    /// When the host does not start it.
    pub async fn exec(self, command: &str) -> Result<(DuplexStream, watch::Receiver<Exit>), SshError> {
        let failed = |source| SshError::Exec {
            host: self.host.clone(),
            command: command.to_owned(),
            source: Box::new(source),
        };
        let mut channel = self.handle.channel_open_session().await.map_err(failed)?;
        channel.exec(true, command).await.map_err(failed)?;
        loop {
            match channel.wait().await {
                Some(ChannelMsg::Success) => break,
                Some(ChannelMsg::WindowAdjusted { .. }) => {}
                Some(ChannelMsg::Failure) => {
                    return Err(SshError::ExecRefused {
                        host: self.host.clone(),
                        command: command.to_owned(),
                    });
                }
                _ => return Err(failed(russh::Error::Disconnect)),
            }
        }
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let (exit, exited) = watch::channel(Exit::default());
        tokio::spawn(self.pump(channel, ours, exit));
        Ok((theirs, exited))
    }

    /// Carries bytes both ways until either side is done.
    async fn pump(self, channel: russh::Channel<client::Msg>, ours: DuplexStream, exit: watch::Sender<Exit>) {
        let (mut reader, writer) = channel.split();
        let (mut from_us, mut to_us) = tokio::io::split(ours);
        let stderr = Mutex::new(Vec::new());
        let send = async {
            let mut sink = writer.make_writer();
            let mut buffer = vec![0; 1 << 16];
            loop {
                match from_us.read(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(count) => {
                        if sink.write_all(&buffer[..count]).await.is_err() {
                            break;
                        }
                    }
                }
            }
            let _closed_already = writer.eof().await;
        };
        let receive = async {
            while let Some(message) = reader.wait().await {
                match message {
                    ChannelMsg::Data { data } if to_us.write_all(&data).await.is_err() => {
                        break;
                    }
                    ChannelMsg::ExtendedData { data, .. } => {
                        let mut kept = stderr.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                        let room = STDERR_LIMIT.saturating_sub(kept.len());
                        kept.extend_from_slice(&data[..data.len().min(room)]);
                    }
                    ChannelMsg::Eof => {
                        // The status follows the end of the output.
                        let _reader_gone = to_us.shutdown().await;
                    }
                    ChannelMsg::ExitStatus { exit_status } => {
                        exit.send_modify(|exit| exit.status = Some(exit_status));
                    }
                    ChannelMsg::Close => break,
                    _ => {}
                }
            }
        };
        // Our side closing first still waits for the answer; their side closing first ends both.
        {
            tokio::pin!(send, receive);
            tokio::select! {
                () = &mut receive => {}
                () = &mut send => receive.await,
            }
        }
        let text = stderr
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        exit.send_modify(|exit| exit.stderr = String::from_utf8_lossy(&text).trim_end().to_owned());
        let _gone = self
            .handle
            .disconnect(Disconnect::ByApplication, "done", "en")
            .await;
    }
}
