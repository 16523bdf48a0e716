//! The life of the process: stop, succession by a new binary, metrics, log.

use std::net::SocketAddr;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use appliance_proxy::Client;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::rig::{Answer, App, closed_port, name, read_head, service};

/// The proxy as a process of its own; ended with the test.
pub(crate) struct Process {
    pub(crate) pid: u32,
    child: Child,
    pub(crate) http: SocketAddr,
    pub(crate) client: Client,
    home: tempfile::TempDir,
}

impl Process {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same with variables in its environment.
    pub(crate) async fn start_with(variables: &[(&str, &str)]) -> Self {
        let home = tempfile::tempdir().unwrap();
        loop {
            // Another test may take the port before the process does; then it ends, and gets another one.
            let http = closed_port().await;
            let mut process = Self {
                pid: 0,
                child: spawn(home.path(), http, variables),
                http,
                client: Client::new(home.path().join("control.sock")),
                home: tempfile::tempdir().unwrap(),
            };
            if let Some(pid) = process.answering().await {
                process.pid = pid;
                process.home = home;
                return process;
            }
        }
    }

    /// The id of the process that answers on the control socket; `None` when the one we started has ended.
    async fn answering(&mut self) -> Option<u32> {
        loop {
            if let Ok(status) = self.client.status().await {
                return Some(status.pid);
            }
            if self.child.try_wait().unwrap().is_some() {
                return None;
            }
        }
    }

    /// The id of the process that answers once the one we started has ended.
    async fn answering_anew(&self) -> u32 {
        loop {
            if let Ok(status) = self.client.status().await {
                return status.pid;
            }
        }
    }

    /// Waits for the process we started; whether it ended well. The apps run on this thread, so it must not block.
    async fn ended(&mut self) -> bool {
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.success();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.pid).unwrap()), signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped = self.child.wait();
        if self.pid != 0 && self.pid != self.child.id() {
            let _ended_already = kill(Pid::from_raw(i32::try_from(self.pid).unwrap()), Signal::SIGKILL);
        }
    }
}

fn spawn(home: &std::path::Path, http: SocketAddr, variables: &[(&str, &str)]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_proxy-process"))
        .arg(home.join("state"))
        .arg(home.join("control.sock"))
        .arg(http.to_string())
        .envs(variables.iter().copied())
        .spawn()
        .unwrap()
}

pub(crate) async fn send(http: SocketAddr, bytes: &[u8]) -> BufReader<TcpStream> {
    let mut stream = BufReader::new(TcpStream::connect(http).await.unwrap());
    stream.write_all(bytes).await.unwrap();
    stream
}

#[tokio::test]
async fn a_successor_accepts_while_the_old_process_finishes() {
    let app = App::start("one").await;
    let mut process = Process::start().await;
    process
        .client
        .put_service(&service("web", "h", &[&app]))
        .await
        .unwrap();
    let mut slow = send(process.http, b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n").await;
    app.state.arrived.notified().await;
    let mut tunnel = send(
        process.http,
        b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    )
    .await;
    assert_eq!(read_head(&mut tunnel).await.0, 101);

    // Load on fresh connections and on kept ones, all through the succession.
    let stop = Arc::new(AtomicBool::new(false));
    let (served, told) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let (stop, served, http) = (Arc::clone(&stop), Arc::clone(&served), process.http);
            let told = Arc::clone(&told);
            tokio::spawn(async move {
                let mut stream = None;
                while !stop.load(Ordering::Relaxed) {
                    let mut open = match stream.take() {
                        Some(open) => open,
                        None => BufReader::new(TcpStream::connect(http).await.unwrap()),
                    };
                    open.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
                        .await
                        .unwrap();
                    // Also on a kept connection: it is told to end with an answer, not instead of one.
                    let answer = Answer::read(&mut open).await;
                    assert_eq!(answer.status, 200);
                    served.fetch_add(1, Ordering::Relaxed);
                    if answer.header("connection") == "close" {
                        told.fetch_add(1, Ordering::Relaxed);
                    } else {
                        stream = Some(open);
                    }
                }
            })
        })
        .collect();
    let old = process.pid;
    process.signal(Signal::SIGUSR2);
    while process
        .client
        .status()
        .await
        .is_ok_and(|status| status.pid == old)
    {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    process.pid = process.client.status().await.unwrap().pid;
    assert_ne!(process.pid, old);
    let before = served.load(Ordering::Relaxed);
    while served.load(Ordering::Relaxed) < before + 100 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.store(true, Ordering::Relaxed);
    for task in load {
        task.await.unwrap();
    }
    assert!(
        told.load(Ordering::Relaxed) >= 4,
        "every kept connection is told to go over"
    );

    // What the old process had in flight goes on.
    tunnel.write_all(b"ping").await.unwrap();
    let mut echo = [0; 4];
    tunnel.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"ping");
    app.state.release.notify_one();
    assert_eq!(Answer::read(&mut slow).await.body, "one slow");
    drop((tunnel, slow));
    assert!(process.ended().await, "the old process ends by itself");
    assert!(process.client.stats(&name("web")).await.unwrap().total.requests > 0);
}

#[tokio::test]
async fn who_waits_at_a_paused_service_is_sent_to_the_successor() {
    let app = App::start("one").await;
    let mut process = Process::start().await;
    process
        .client
        .put_service(&service("web", "h", &[&app]))
        .await
        .unwrap();
    let long = Duration::from_secs(3600);
    process.client.pause(&name("web"), long).await.unwrap();
    let mut waiting = send(process.http, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    // The connection is counted before its request waits, and what waits stays open.
    while process.client.status().await.unwrap().connections == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    process.signal(Signal::SIGUSR2);
    let (status, headers) = read_head(&mut waiting).await;
    assert_eq!(status, 503);
    assert!(headers.contains_key("retry-after"), "{headers:?}");
    assert_eq!(headers["connection"], "close");
    assert!(process.ended().await, "nothing holds the old process up");
    process.pid = process.answering_anew().await;

    // The successor kept the pause, and its end concerns those who came again.
    let mut again = send(process.http, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    process.client.resume(&name("web")).await.unwrap();
    assert_eq!(Answer::read(&mut again).await.status, 200);
}

#[tokio::test]
async fn sigterm_lets_requests_finish_and_refuses_new_connections() {
    let app = App::start("one").await;
    let mut process = Process::start().await;
    process
        .client
        .put_service(&service("web", "h", &[&app]))
        .await
        .unwrap();
    let mut slow = send(process.http, b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n").await;
    app.state.arrived.notified().await;
    process.signal(Signal::SIGTERM);
    while TcpStream::connect(process.http).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    app.state.release.notify_one();
    let answer = Answer::read(&mut slow).await;
    assert_eq!(answer.body, "one slow");
    assert_eq!(answer.header("connection"), "close");
    assert!(process.ended().await);
}

#[tokio::test]
async fn kill_nine_loses_no_route() {
    let app = App::start("one").await;
    let mut process = Process::start().await;
    process
        .client
        .put_service(&service("web", "h", &[&app]))
        .await
        .unwrap();
    process.signal(Signal::SIGKILL);
    process.child.wait().unwrap();
    process.child = spawn(process.home.path(), process.http, &[]);
    process.pid = process.answering().await.unwrap();
    let mut stream = send(process.http, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(Answer::read(&mut stream).await.status, 200);
}

#[tokio::test]
async fn sighup_reads_the_snapshot_again_and_a_bad_one_changes_nothing() {
    let app = App::start("one").await;
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("snapshot.json");
    let snapshot = |host: &str| {
        let upstream = app.address;
        format!(
            r#"{{"format":1,"services":[{{"name":"web","hosts":["{host}"],"upstreams":["{upstream}"]}}]}}"#
        )
    };
    fs_err::write(&file, snapshot("first")).unwrap();
    let seen = fs_err::metadata(&file).unwrap().modified().unwrap();
    // As long as before and no newer, so that nothing but the signal tells of it.
    let rewrite = |text: &str| {
        fs_err::write(&file, text).unwrap();
        let file = fs_err::File::options().write(true).open(&file).unwrap();
        file.file().set_modified(seen).unwrap();
    };
    let process = Process::start_with(&[("SNAPSHOT", file.to_str().unwrap())]).await;
    let get = async |host: &str| {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let mut stream = send(process.http, request.as_bytes()).await;
        Answer::read(&mut stream).await.status
    };
    assert_eq!((get("first").await, get("other").await), (200, 404));
    rewrite(&snapshot("other"));
    process.signal(Signal::SIGHUP);
    while get("other").await != 200 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(get("first").await, 404);
    rewrite(&snapshot("first").replace(r#""format":1"#, r#""format":x"#));
    process.signal(Signal::SIGHUP);
    while process.client.status().await.unwrap().problems.is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!((get("first").await, get("other").await), (404, 200));
}
