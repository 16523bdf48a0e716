//! Commands in containers and on the host, joined to somebody's terminal or pipes.
//!
//! ```text
//!  signed app-exec ─► gate ─► session name (60 s, once)
//!  POST /v1/sessions/{name} ─► container or exec ─┬─ request body ─► input, terminal size
//!                                                 └─ answer's body ◄─ output, exit code ─► audit record
//! ```
//!
//! When the developer's connection is lost, a one-off container and a command on the host are ended.
//! Docker cannot end a command in a running container: that one sees the end of its input, as with `docker exec`.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use appliance_containers::ContainerSpec;
use appliance_containers::engine::{ExecRequest, State, Stream};
use appliance_containers::session::{Session, SessionId, TerminalSize};
use appliance_containers::spec::Restart;
use appliance_push::change::{AccessoryAction, Exec, Verb};
use appliance_push::session::Frame;
use appliance_push::trust::Verified;
use appliance_rollout::{Deployment, ReleaseNumber};
use appliance_state::Outcome;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use jiff::{SignedDuration, Timestamp};
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::api::{Body, problem};
use super::change::{done, not_deployed};
use super::gate::app_id;
use super::{Agent, chain, container, random};
use crate::wire::End;

/// How long a session may wait to be begun.
const LIFE: SignedDuration = SignedDuration::from_secs(60);
/// Label on containers of one-off commands; what they are is told by the app's own labels.
pub const EXEC: &str = "appliance.exec";
/// Pieces of output that wait for a slow reader before the program itself has to.
const QUEUE: usize = 32;

/// Sessions that were bought and not begun yet.
#[derive(Debug, Default)]
pub struct Sessions {
    pending: Mutex<HashMap<String, (Verified, Timestamp)>>,
}

impl Sessions {
    fn add(&self, verified: &Verified, now: Timestamp) -> (String, Timestamp) {
        let name = hex::encode(random::<16>());
        let expires = now.saturating_add(LIFE).unwrap_or(Timestamp::MAX);
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.retain(|_, (_, until)| *until > now);
        pending.insert(name.clone(), (verified.clone(), expires));
        (name, expires)
    }

    fn take(&self, name: &str, now: Timestamp) -> Option<Verified> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let (verified, until) = pending.remove(name)?;
        (until > now).then_some(verified)
    }
}

/// The words of the command, for the audit record.
pub fn command(verb: &Verb) -> Option<&[String]> {
    match verb {
        Verb::AppExec(exec) => Some(&exec.command),
        Verb::HostExec { command } => Some(command),
        Verb::Accessory {
            action: AccessoryAction::Exec { command, .. },
            ..
        } => Some(command),
        _ => None,
    }
}

/// Answers an exec change: with a session, or at once if nobody stays to watch.
///
/// # Errors
/// When state or Docker fail.
pub async fn begin(agent: &Arc<Agent>, verified: &Verified) -> anyhow::Result<End> {
    let change = &verified.change;
    if let (Verb::AppExec(exec), Some(app)) = (&change.verb, &change.app) {
        let app = app_id(app, change.destination.as_ref());
        if agent.apps.read(&app)?.numbers.current.is_none() {
            return Ok(not_deployed(&app));
        }
        if exec.detach {
            let spec = one_off(agent, &app, exec).await?;
            let id = agent.docker.create(&spec).await?;
            agent.docker.start(&id.0).await?;
            return Ok(done(format!("started {} ({id})", spec.name)));
        }
    }
    let (session, expires_at) = agent.sessions.add(verified, Timestamp::now());
    Ok(End::Session { session, expires_at })
}

/// Begins a session: the answer's body is what the program writes, the request's body is its input.
pub async fn answer(
    agent: Arc<Agent>,
    name: &str,
    size: Option<TerminalSize>,
    request: Request<Incoming>,
) -> Response<Body> {
    let Some(verified) = agent.sessions.take(name, Timestamp::now()) else {
        return problem(
            StatusCode::NOT_FOUND,
            "no-session",
            "there is no such session, or it waited for more than a minute; run the command again",
        );
    };
    let running = match start(&agent, &verified, size).await {
        Ok(running) => running,
        Err(error) => {
            let why = chain(&*error);
            let detail = serde_json::json!({ "why": why });
            record(&agent, &verified, Outcome::Failed, detail);
            return problem(StatusCode::CONFLICT, "exec", &why);
        }
    };
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(carry(agent, verified, running, request.into_body(), sender));
    frames(receiver)
}

/// An answer whose body is these frames.
pub fn frames(receiver: mpsc::Receiver<Frame>) -> Response<Body> {
    let frames = futures_util::stream::unfold(receiver, |mut receiver| async move {
        let frame = receiver.recv().await?;
        Some((Ok(hyper::body::Frame::data(frame.encode())), receiver))
    });
    let mut answer = Response::new(http_body_util::BodyExt::boxed(StreamBody::new(frames)));
    answer.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/octet-stream"),
    );
    answer
}

/// A program that was started for a session.
enum Running {
    /// In a container; `one_off` is to be removed afterwards.
    Container {
        session: Session,
        one_off: Option<String>,
    },
    /// On the host, under a unit of its own.
    Host {
        child: Box<tokio::process::Child>,
        unit: String,
    },
}

async fn start(
    agent: &Arc<Agent>,
    verified: &Verified,
    size: Option<TerminalSize>,
) -> anyhow::Result<Running> {
    let change = &verified.change;
    match (&change.verb, &change.app) {
        (Verb::HostExec { command }, _) => on_host(command),
        (
            Verb::Accessory {
                name,
                action:
                    AccessoryAction::Exec {
                        command,
                        reuse,
                        terminal,
                    },
            },
            Some(app),
        ) => {
            let app = app_id(app, change.destination.as_ref());
            let size = terminal.then_some(size.unwrap_or(TerminalSize {
                rows: 24,
                columns: 80,
            }));
            let (session, one_off) = agent
                .accessory_session(&app, name.as_str(), command, *reuse, size)
                .await?;
            Ok(Running::Container { session, one_off })
        }
        (Verb::AppExec(exec), Some(app)) => {
            let app = app_id(app, change.destination.as_ref());
            let size = exec.terminal.then_some(size.unwrap_or(TerminalSize {
                rows: 24,
                columns: 80,
            }));
            if exec.reuse {
                let id = running_container(agent, &app, exec).await?;
                let request = ExecRequest {
                    command: exec.command.clone(),
                    env: exec
                        .env
                        .iter()
                        .map(|(name, value)| format!("{name}={value}"))
                        .collect(),
                    ..ExecRequest::default()
                };
                let session = agent.docker.exec_session(&id, &request, size).await?;
                return Ok(Running::Container {
                    session,
                    one_off: None,
                });
            }
            let spec = one_off(agent, &app, exec).await?;
            let id = agent.docker.create(&spec).await?.0;
            match agent.docker.start_session(&id, size).await {
                Ok(session) => Ok(Running::Container {
                    session,
                    one_off: Some(id),
                }),
                Err(error) => {
                    let _kept = agent.docker.remove(&id, true).await;
                    Err(error.into())
                }
            }
        }
        (verb, _) => anyhow::bail!("{} is no command to run", verb.name()),
    }
}

/// Outside of the agent's own sandbox, as a transient unit: its output is seen here, its processes are systemd's.
fn on_host(command: &[String]) -> anyhow::Result<Running> {
    let unit = format!("appliance-exec-{}", hex::encode(random::<6>()));
    let child = tokio::process::Command::new("systemd-run")
        .args(["--pipe", "--wait", "--collect", "--quiet", "--service-type=exec"])
        .arg(format!("--unit={unit}"))
        .args([
            "--property=KillMode=control-group",
            "--working-directory=/root",
            "--",
        ])
        .args(command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("cannot run systemd-run")?;
    Ok(Running::Host {
        child: Box::new(child),
        unit,
    })
}

/// The release whose image a command runs in.
fn deployment(agent: &Agent, app: &str, exec: &Exec) -> anyhow::Result<(Deployment, ReleaseNumber)> {
    let state = agent.apps.read(app)?;
    let current = state
        .numbers
        .current
        .with_context(|| format!("{app} does not run on this host"))?;
    let Some(version) = &exec.version else {
        let number = current.release_of(exec.role.as_str());
        let number = number.unwrap_or(current.release);
        return Ok((current, number));
    };
    for number in state.releases.iter().rev() {
        if agent.apps.release(app, *number)?.release.version == *version {
            return Ok((current, *number));
        }
    }
    anyhow::bail!("{app} has no release {version} on this host; `appliance status` lists those that are")
}

async fn running_container(agent: &Agent, app: &str, exec: &Exec) -> anyhow::Result<String> {
    let (current, number) = deployment(agent, app, exec)?;
    for found in agent.containers(app).await? {
        let is = |label: &str, value: &str| found.labels.get(label).is_some_and(|found| found == value);
        if found.state == State::Running
            && is(container::ROLE, exec.role.as_str())
            && is(container::RELEASE, &number.0.to_string())
            && (current.release_of(exec.role.as_str()) != Some(number)
                || container::plays(&found.labels, &current))
        {
            return Ok(found.id.0);
        }
    }
    anyhow::bail!(
        "no container of the role {} of {app} {number} runs; start it (appliance app start), or leave --reuse out",
        exec.role
    )
}

/// A container of its own: the role's environment, options and volumes, but no route, port, health check or restart.
async fn one_off(agent: &Agent, app: &str, exec: &Exec) -> anyhow::Result<ContainerSpec> {
    let (current, number) = deployment(agent, app, exec)?;
    let accepted = agent.apps.release(app, number)?;
    let role = accepted
        .release
        .roles
        .iter()
        .find(|role| role.name == exec.role)
        .with_context(|| format!("{app} has no role {} on this host", exec.role))?;
    let secrets = agent.open_secrets(&accepted)?;
    let image = agent.images.fetch(&accepted.release.image, &secrets).await?;
    let host_env = super::host_env::read(super::host_env::FILE.as_ref());
    let making = container::Making {
        app,
        release: &accepted.release,
        number,
        secrets: &secrets,
        image: &image.name,
        volumes: Vec::new(),
        host_env: &host_env,
        random: random(),
    };
    let instance = current
        .instance(role.name.as_str())
        .unwrap_or(appliance_rollout::Instance {
            role: role.name.to_string(),
            rollout: current.rollout,
        });
    let mut spec = container::spec(&making, role, &instance)?;
    let release = &accepted.release;
    spec.name = format!(
        "{}-exec-{}-{}",
        appliance_containers::names::role_prefix(
            release.service.as_str(),
            role.name.as_str(),
            release
                .destination
                .as_ref()
                .map(|destination| destination.as_str()),
        ),
        release.version,
        hex::encode(random::<3>())
    );
    spec.cmd = Some(exec.command.clone());
    spec.env.extend(
        exec.env
            .iter()
            .map(|(name, value)| (name.to_string(), value.clone())),
    );
    spec.restart = Restart::No;
    spec.health = None;
    spec.tuning.no_healthcheck = true;
    spec.publish.clear();
    spec.tuning.publish_all = false;
    spec.tuning.tty = exec.terminal;
    spec.tuning.interactive = !exec.detach;
    spec.tuning.joined = !exec.detach;
    // Detached ones are Docker's to remove; the others are removed here, once their exit code is known.
    spec.tuning.auto_remove = exec.detach;
    // Nothing may find it by these and route or count it.
    for label in [container::ROLE, container::ROLLOUT, container::RELEASE] {
        spec.labels.remove(label);
    }
    spec.labels.insert(EXEC.to_owned(), "true".to_owned());
    Ok(spec)
}

fn record(agent: &Agent, verified: &Verified, outcome: Outcome, detail: serde_json::Value) {
    if let Err(error) = agent.gate.conclude(verified, outcome, detail, Timestamp::now()) {
        tracing::error!("cannot record how a command ended: {}", chain(&error));
    }
}

async fn carry(
    agent: Arc<Agent>,
    verified: Verified,
    running: Running,
    input: Incoming,
    output: mpsc::Sender<Frame>,
) {
    let lost = CancellationToken::new();
    let ended = match running {
        Running::Container { session, one_off } => {
            let ended = contained(&agent, session, input, &output, &lost).await;
            if let Some(id) = one_off
                && let Err(error) = agent.docker.remove(&id, true).await
            {
                tracing::warn!("the container of a command stays behind: {}", chain(&error));
            }
            ended
        }
        Running::Host { child, unit } => hosted(*child, &unit, input, &output, &lost).await,
    };
    let (frame, outcome, detail) = match ended {
        Ok(code) => (
            Frame::Exit(code),
            Outcome::Done,
            serde_json::json!({ "exit": code }),
        ),
        Err(error) => {
            let why = chain(&*error);
            let detail = serde_json::json!({ "why": why });
            (Frame::Broken(why), Outcome::Failed, detail)
        }
    };
    record(&agent, &verified, outcome, detail);
    let _left = output.send(frame).await;
}

async fn contained(
    agent: &Arc<Agent>,
    session: Session,
    input: Incoming,
    output: &mpsc::Sender<Frame>,
    lost: &CancellationToken,
) -> anyhow::Result<i32> {
    let Session {
        id,
        input: stdin,
        output: mut lines,
    } = session;
    let resize = {
        let docker = Arc::clone(&agent.docker);
        let id = id.clone();
        move |size| {
            let (docker, id) = (Arc::clone(&docker), id.clone());
            // A program that has just ended has no terminal any more.
            async move { drop(docker.resize(&id, size).await) }
        }
    };
    let feeding = tokio::spawn(feed(input, stdin, resize, lost.clone()));
    let copied = async {
        while let Some(line) = lines.next().await {
            let line = line?;
            let frame = match line.stream {
                Stream::Stdout => Frame::Output(line.bytes),
                Stream::Stderr => Frame::Error(line.bytes),
            };
            if output.send(frame).await.is_err() {
                lost.cancel();
            }
        }
        Ok::<_, appliance_containers::EngineError>(())
    };
    let outcome = tokio::select! {
        copied = copied => copied.map_err(anyhow::Error::from),
        () = lost.cancelled() => Err(anyhow::anyhow!("the developer's connection was lost")),
        () = output.closed() => Err(anyhow::anyhow!("the developer's connection was lost")),
    };
    feeding.abort();
    outcome?;
    let code = agent.docker.session_exit(&id).await?;
    if let SessionId::Container(id) = &id {
        tracing::debug!("the command in {id} ended with {code}");
    }
    Ok(i32::try_from(code).unwrap_or(-1))
}

async fn hosted(
    mut child: tokio::process::Child,
    unit: &str,
    input: Incoming,
    output: &mpsc::Sender<Frame>,
    lost: &CancellationToken,
) -> anyhow::Result<i32> {
    let stdin = child.stdin.take().context("the command has an input")?;
    let stdout = child.stdout.take().context("the command has an output")?;
    let stderr = child
        .stderr
        .take()
        .context("the command has an output for errors")?;
    let feeding = tokio::spawn(feed(input, Box::pin(stdin), |_| async {}, lost.clone()));
    let ended = tokio::select! {
        ended = async {
            tokio::join!(
                copy(stdout, output, Frame::Output),
                copy(stderr, output, Frame::Error),
            );
            child.wait().await
        } => ended.context("cannot wait for the command"),
        () = lost.cancelled() => Err(anyhow::anyhow!("the developer's connection was lost")),
        () = output.closed() => Err(anyhow::anyhow!("the developer's connection was lost")),
    };
    feeding.abort();
    if ended.is_err() {
        let _gone = tokio::process::Command::new("systemctl")
            .args(["stop", unit])
            .status()
            .await;
    }
    Ok(ended?.code().unwrap_or(-1))
}

async fn copy(
    mut from: impl tokio::io::AsyncRead + Unpin,
    to: &mpsc::Sender<Frame>,
    frame: fn(Bytes) -> Frame,
) {
    let mut buffer = vec![0; 32 << 10];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => {
                // A reader that left is noticed by the caller.
                let _left = to.send(frame(Bytes::copy_from_slice(&buffer[..count]))).await;
            }
        }
    }
}

/// Carries the request's frames to the program; cancels `lost` when the request breaks off.
async fn feed<F: Future<Output = ()>>(
    mut body: Incoming,
    stdin: std::pin::Pin<Box<dyn AsyncWrite + Send>>,
    resize: impl Fn(TerminalSize) -> F,
    lost: CancellationToken,
) {
    let mut stdin = Some(stdin);
    let mut buffer = BytesMut::new();
    while let Some(piece) = body.frame().await {
        let Ok(piece) = piece else {
            lost.cancel();
            return;
        };
        let Ok(data) = piece.into_data() else { continue };
        buffer.extend_from_slice(&data);
        loop {
            match Frame::decode(&mut buffer) {
                Ok(None) => break,
                Ok(Some(Frame::Input(bytes))) => {
                    if let Some(open) = &mut stdin
                        && async {
                            open.write_all(&bytes).await?;
                            open.flush().await
                        }
                        .await
                        .is_err()
                    {
                        // The program reads no more; what it still writes is shown all the same.
                        stdin = None;
                    }
                }
                Ok(Some(Frame::InputEnd)) => {
                    if let Some(mut open) = stdin.take() {
                        let _closed = open.shutdown().await;
                    }
                }
                Ok(Some(Frame::Resize { rows, columns })) => resize(TerminalSize { rows, columns }).await,
                Ok(Some(_)) | Err(_) => {
                    lost.cancel();
                    return;
                }
            }
        }
    }
    // The request's body may end with the input; the answer goes on.
    if let Some(mut open) = stdin.take() {
        let _closed = open.shutdown().await;
    }
}
