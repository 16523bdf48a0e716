//! `appliance receive`: joins standard input and output to the agent's socket, and can do nothing else.
//!
//! sshd starts it as the forced command of a developer's key.
//! Before the first byte it tells the agent which key opened the door, so that reads can be limited to known keys;
//! changes carry their own signature and do not rely on it.

use std::path::PathBuf;

use anyhow::Context as _;
use tokio::io::AsyncWriteExt as _;

use crate::agent;
use crate::failure::{Kind, failure};

/// Carry one connection from sshd to the agent
#[derive(Debug, clap::Args)]
pub struct ReceiveArgs {
    /// Fingerprint of the SSH key that opened this connection (SHA256:…), set by the forced command
    #[arg(long, value_name = "FINGERPRINT")]
    key: Option<String>,
    /// The agent's socket
    #[arg(long, default_value = agent::SOCKET, value_name = "PATH")]
    socket: PathBuf,
}

/// Carries bytes until both sides have closed.
///
/// # Errors
/// When the agent cannot be reached or either side breaks off.
pub async fn run(args: &ReceiveArgs) -> anyhow::Result<()> {
    let agent = tokio::net::UnixStream::connect(&args.socket)
        .await
        .map_err(|error| {
            failure(
                Kind::Unreachable,
                format!("the agent does not answer on {}: {error}", args.socket.display()),
            )
            .hint("on the host: systemctl status appliance-agent")
        })?;
    let (mut from_agent, mut to_agent) = agent.into_split();
    if let Some(key) = &args.key {
        to_agent
            .write_all(agent::preamble(key).as_bytes())
            .await
            .context("cannot greet the agent")?;
    }
    let upload = async {
        let mut stdin = tokio::io::stdin();
        tokio::io::copy(&mut stdin, &mut to_agent).await?;
        to_agent.shutdown().await
    };
    let download = async {
        let mut stdout = tokio::io::stdout();
        tokio::io::copy(&mut from_agent, &mut stdout).await?;
        stdout.flush().await
    };
    // The agent closing its side ends the connection; a developer closing theirs still gets the answer.
    tokio::pin!(upload, download);
    tokio::select! {
        done = &mut download => done.context("the connection to the developer broke")?,
        sent = &mut upload => {
            sent.context("the connection to the agent broke")?;
            download.await.context("the connection to the developer broke")?;
        }
    }
    Ok(())
}
