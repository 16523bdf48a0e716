//! The host's door as a program uses it that does not trust our command line: envelopes of one's own, raw `/v2`.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use appliance_push::change::{AppName, Change, Envelope, Expectation, HostId, Nonce, VERSION, Verb};
use appliance_push::sign::Signer;
use appliance_push::ssh::{Options, Target};
use appliance_push::transport::{Client, Transport};
use appliance_sandbox::Command;
use appliance_tests::World;
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, StatusCode};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

/// How long a change may take on a machine that does much else.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// An open connection through SSH and `appliance receive`.
pub(crate) struct Door {
    client: Client,
    /// Who the host says it is.
    pub(crate) host: HostId,
    /// The key that opened the door, to sign with.
    pub(crate) signer: Signer,
}

/// What a request was answered with.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) status: StatusCode,
    pub(crate) headers: hyper::HeaderMap,
    pub(crate) body: Bytes,
}

impl Answered {
    pub(crate) fn json(&self) -> anyhow::Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("this is no JSON: {:?}", self.body))
    }
}

/// The key pair in `~/.ssh` of a home directory.
pub(crate) fn signer(home: &Path) -> anyhow::Result<Signer> {
    Ok(Signer::from_file(&home.join(".ssh/id_ed25519"), &mut |_| None)?)
}

/// A way through SSH for whoever lives in `home`.
pub(crate) async fn transport(world: &World, home: &Path) -> anyhow::Result<Transport> {
    let mut target = Target::parse(&format!("deploy@{}", world.ip().await?), Options::for_home(home))?;
    target.options.identities = vec![home.join(".ssh/id_ed25519")];
    target.options.identities_only = true;
    Ok(Transport::Ssh(Box::new(target)))
}

impl Door {
    /// Opens it with the key of the world's developer.
    pub(crate) async fn open(world: &World) -> anyhow::Result<Self> {
        Self::open_as(world, &world.developer.home()).await
    }

    /// Opens it with the key of whoever lives in `home`.
    pub(crate) async fn open_as(world: &World, home: &Path) -> anyhow::Result<Self> {
        let client = transport(world, home).await?.client().await?;
        let signer = signer(home)?;
        let about = request(&client, Method::GET, "/v1/host", &[], Bytes::new()).await?;
        let host = about.json()?["id"]
            .as_str()
            .context("a host has an id")?
            .to_owned();
        Ok(Self {
            client,
            host: HostId::parse(&host)?,
            signer,
        })
    }

    /// One request; any status is an answer.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> anyhow::Result<Answered> {
        request(&self.client, method, path, headers, body.into()).await
    }

    /// `GET path` as JSON.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let answer = self.send(Method::GET, path, &[], Bytes::new()).await?;
        ensure!(answer.status == StatusCode::OK, "GET {path}: {answer:?}");
        answer.json()
    }

    /// A change that nothing is wrong with; `app` is none for changes of the host.
    pub(crate) fn change(&self, app: Option<&str>, verb: Verb) -> anyhow::Result<Change> {
        let now = Timestamp::now();
        Ok(Change {
            version: VERSION,
            host: self.host.clone(),
            app: app.map(AppName::parse).transpose()?,
            destination: None,
            verb,
            issued_at: now,
            expires_at: now + SignedDuration::from_mins(5),
            nonce: nonce()?,
            expects: Expectation::Any,
        })
    }

    /// Submits a change signed with this door's key; the end of it.
    pub(crate) async fn ask(&self, change: &Change) -> anyhow::Result<Value> {
        self.submit(&self.signer.seal(change).await?).await
    }

    /// Submits an envelope; the end of it.
    pub(crate) async fn submit(&self, envelope: &Envelope) -> anyhow::Result<Value> {
        let body = serde_json::to_vec(envelope)?;
        let answer = tokio::time::timeout(LIMIT, self.send(Method::POST, "/v1/changes", &[], body))
            .await
            .context("the change took too long")??;
        ensure!(answer.status == StatusCode::OK, "{answer:?}");
        let mut ends = Vec::new();
        for line in answer
            .body
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            let event: Value = serde_json::from_slice(line)?;
            if event["event"] == "end" {
                ends.push(event);
            } else if !ends.is_empty() {
                bail!("an event came after the end: {event}");
            }
        }
        ensure!(ends.len() == 1, "there must be one end, not {ends:?}");
        Ok(ends.remove(0))
    }

    /// The audit log's records, oldest first.
    pub(crate) async fn records(&self) -> anyhow::Result<Vec<Value>> {
        let records = self.get("/v1/audit?last=1000000").await?;
        Ok(records.as_array().context("a list")?.clone())
    }
}

/// A nonce nobody used.
pub(crate) fn nonce() -> anyhow::Result<Nonce> {
    let mut bytes = [0; 16];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| anyhow::anyhow!("no random bytes"))?;
    Ok(Nonce::from_bytes(bytes))
}

async fn request(
    client: &Client,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Bytes,
) -> anyhow::Result<Answered> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = Full::new(body).map_err(|never| match never {}).boxed();
    let (head, body) = client.send(request.body(body)?).await?.into_parts();
    Ok(Answered {
        status: head.status,
        headers: head.headers,
        body: body.collect().await?.to_bytes(),
    })
}

/// Everything a change could have changed on a host, as text: ledgers, releases, keys, spent nonces, routes,
/// images of the store and of Docker, containers. The audit log is not part of it.
pub(crate) async fn picture(world: &World) -> anyhow::Result<String> {
    // What no app needed yet is not there.
    let script = "cd /var/lib\n\
        for path in appliance/{apps,releases,keys.json,nonces.json} appliance-proxy/snapshot.json; do\n\
          [ ! -e $path ] || find $path -type f ! -name '*.lock' -exec sha256sum {} + | sort -k2\n\
        done\n\
        find appliance/images | sort\n\
        cat /home/deploy/.ssh/authorized_keys\n\
        docker images --all --digests --no-trunc | sort\n\
        docker ps --all --no-trunc --format '{{.ID}} {{.Names}} {{.State}}' | sort";
    let output = world
        .host
        .exec(&Command::new(["bash", "-euo", "pipefail", "-c", script]))
        .await?;
    ensure!(
        output.success(),
        "cannot look at the host: {}",
        output.error_text()
    );
    Ok(output.text())
}

/// What differs between two pictures, for messages.
pub(crate) fn unchanged(before: &str, after: &str) -> anyhow::Result<()> {
    let missing = |of: &str, in_: &str| -> String {
        of.lines()
            .filter(|line| !in_.lines().any(|other| other == *line))
            .collect::<Vec<_>>()
            .join("\n  ")
    };
    ensure!(
        before == after,
        "the host changed:\n- {}\n+ {}",
        missing(before, after),
        missing(after, before)
    );
    Ok(())
}
