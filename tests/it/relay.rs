//! A link of one's own making between a developer and a host: it counts, and it breaks when told to.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use appliance_tests::{Developer, World};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Forwards a port of the loopback to a host's SSH.
pub(crate) struct Relay {
    shared: Arc<Shared>,
    port: u16,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    /// Bytes towards the host after which the next connections break; those not listed hold.
    cuts: Mutex<VecDeque<u64>>,
    /// Once the last cut has happened, whether new connections are refused.
    dead_after: Mutex<bool>,
    connections: AtomicU64,
    sent: AtomicU64,
}

impl Relay {
    /// Starts it; the developer then knows the host behind it by its key.
    pub(crate) async fn start(world: &World, developer: &Developer) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let host = SocketAddr::new(world.ip().await?, 22);
        let key = world.host.read("/etc/ssh/ssh_host_ed25519_key.pub").await?;
        let key = String::from_utf8(key)?;
        let words: Vec<_> = key.split_whitespace().take(2).collect();
        let path = developer.home().join(".ssh/known_hosts");
        let known = fs_err::read_to_string(&path)?;
        fs_err::write(&path, format!("{known}[127.0.0.1]:{port} {}\n", words.join(" ")))?;

        let shared = Arc::new(Shared::default());
        let mine = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            while let Ok((inner, _)) = listener.accept().await {
                mine.connections.fetch_add(1, Ordering::Relaxed);
                let budget = lock(&mine.cuts).pop_front();
                if budget.is_none() && *lock(&mine.dead_after) {
                    continue;
                }
                let shared = Arc::clone(&mine);
                tokio::spawn(async move {
                    // Whatever ends one side ends the connection; that is what a cut looks like.
                    let _ended = carry(inner, host, &shared, budget.unwrap_or(u64::MAX)).await;
                });
            }
        });
        Ok(Self { shared, port, task })
    }

    /// The next connections break after so many bytes towards the host each.
    pub(crate) fn cut(&self, after: &[u64]) {
        lock(&self.shared.cuts).extend(after);
    }

    /// Whether connections beyond those with a cut are refused.
    pub(crate) fn dead_after_cuts(&self, dead: bool) {
        *lock(&self.shared.dead_after) = dead;
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Bytes towards the host since this was asked last.
    pub(crate) fn take_sent(&self) -> u64 {
        self.shared.sent.swap(0, Ordering::Relaxed)
    }

    /// Makes the configuration in a developer's directory lead through this link.
    pub(crate) fn lead(&self, developer: &Developer) -> anyhow::Result<()> {
        let path = developer.app().join("config/deploy.yml");
        let yml = fs_err::read_to_string(path)?;
        // A configuration may name no server, by mistake.
        let mut servers = yml.lines().skip_while(|line| *line != "servers:");
        let server = servers.nth(1).unwrap_or("  - nobody").to_owned();
        let yml = yml
            .replace(&server, "  - 127.0.0.1")
            .replace("ssh:\n", &format!("ssh:\n  port: {}\n", self.port));
        developer.write("config/deploy.yml", &yml)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn carry(inner: TcpStream, host: SocketAddr, shared: &Shared, mut budget: u64) -> std::io::Result<()> {
    let outer = TcpStream::connect(host).await?;
    let (mut from_developer, mut to_developer) = inner.into_split();
    let (mut from_host, mut to_host) = outer.into_split();
    let up = async {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let room = buffer.len().min(usize::try_from(budget).unwrap_or(usize::MAX));
            let read = from_developer.read(&mut buffer[..room]).await?;
            if read == 0 {
                return Ok(());
            }
            to_host.write_all(&buffer[..read]).await?;
            budget -= read as u64;
            shared.sent.fetch_add(read as u64, Ordering::Relaxed);
        }
    };
    tokio::select! {
        ended = up => ended,
        ended = tokio::io::copy(&mut from_host, &mut to_developer) => ended.map(drop),
    }
}
