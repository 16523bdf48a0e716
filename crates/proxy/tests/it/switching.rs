//! Switch, drain, pause, restart: without a dropped request.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use appliance_proxy::control::{ControlError, ProbeFailure, RefusalCode};
use appliance_proxy::snapshot::HealthCheck;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::basics::open_tunnel;
use crate::lifecycle::{Process, send};
use crate::rig::{Answer, App, Rig, closed_port, name, path_in, read_head, service};

/// `wrk` on 64 connections, ended by [`Load::end`].
struct Load(std::process::Child);

impl Load {
    fn start(url: &str) -> Self {
        let child = std::process::Command::new("wrk")
            .args(["-t1", "-c64", "-d600s", url])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("wrk is installed by `cargo xtask test`");
        Self(child)
    }

    /// What it has to say.
    async fn end(self) -> String {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
        let ended = tokio::task::spawn_blocking(move || self.0.wait_with_output());
        String::from_utf8(ended.await.unwrap().unwrap().stdout).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_switches_under_load_drop_nothing() {
    let process = Process::start().await;
    let apps = [App::start("a").await, App::start("b").await];
    let any = |app: &App| service("web", "", &[app]);
    process.client.put_service(&any(&apps[0])).await.unwrap();
    // Tunnels of a service that no switch concerns.
    let other = App::start("other").await;
    process
        .client
        .put_service(&service("chat", "chat", &[&other]))
        .await
        .unwrap();
    let mut tunnels = Vec::new();
    for _ in 0..200 {
        let ask = b"GET /ws HTTP/1.1\r\nHost: chat\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        let mut tunnel = send(process.http, ask).await;
        assert_eq!(read_head(&mut tunnel).await.0, 101);
        tunnels.push(tunnel);
    }
    let load = Load::start(&format!("http://{}/x", process.http));
    let served = |app: &App| app.state.requests.load(Ordering::Relaxed);
    for turn in 1..=100 {
        let (new, old) = (&apps[turn % 2], &apps[(turn + 1) % 2]);
        let before = served(new);
        process.client.put_service(&any(new)).await.unwrap();
        let drained = process
            .client
            .drain(&name("web"), &old.upstream(), Duration::from_secs(10))
            .await
            .unwrap();
        assert_eq!(drained.cut, 0);
        while served(new) < before + 20 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let said = load.end().await;
    assert!(said.contains("requests in"), "{said}");
    for bad in ["Non-2xx", "Socket errors"] {
        assert!(!said.contains(bad), "{said}");
    }
    for tunnel in &mut tunnels {
        tunnel.write_all(b"ping").await.unwrap();
        let mut echo = [0; 4];
        tunnel.read_exact(&mut echo).await.unwrap();
    }
}

#[tokio::test]
async fn the_same_request_twice_changes_nothing() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    let web = service("web", "h", &[&app]);
    let first = rig.put(&web).await;
    let second = rig.put(&web).await;
    assert!(first.changed && !second.changed);
    assert_eq!(first.generation, second.generation);
    assert!(rig.client.remove_service(&name("web")).await.unwrap().changed);
    assert!(!rig.client.remove_service(&name("web")).await.unwrap().changed);
    assert_eq!(rig.get("h", "/").await.status, 404);
}

#[tokio::test]
async fn a_host_that_another_service_owns_is_refused_with_its_name() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    rig.put(&service("web", "h", &[&app])).await;
    let error = rig
        .client
        .put_service(&service("thief", "h", &[&app]))
        .await
        .unwrap_err();
    let ControlError::Refused { refusal, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(refusal.code, RefusalCode::Conflict);
    assert_eq!(refusal.service, Some(name("web")));
    assert_eq!(rig.client.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_drain_waits_for_the_last_request() {
    let (rig, old, new) = (
        Arc::new(Rig::start()),
        App::start("old").await,
        App::start("new").await,
    );
    rig.put(&service("web", "h", &[&old])).await;
    let slow = tokio::spawn({
        let rig = Arc::clone(&rig);
        async move { rig.get("h", "/slow").await }
    });
    old.state.arrived.notified().await;
    let applied = rig.put(&service("web", "h", &[&new])).await;
    assert_eq!(applied.draining, [old.upstream()]);
    assert!(rig.get("h", "/").await.body.starts_with("new"));
    let draining = tokio::spawn({
        let (rig, upstream) = (Arc::clone(&rig), old.upstream());
        async move {
            rig.client
                .drain(&name("web"), &upstream, Duration::from_secs(20))
                .await
        }
    });
    old.state.release.notify_one();
    let drained = draining.await.unwrap().unwrap();
    assert_eq!(drained.cut, 0);
    assert_eq!(slow.await.unwrap().body, "old slow");
}

#[tokio::test]
async fn what_outlives_the_drain_is_cut_and_counted() {
    let (rig, old, new) = (
        Arc::new(Rig::start()),
        App::start("old").await,
        App::start("new").await,
    );
    rig.put(&service("web", "h", &[&old])).await;
    let mut tunnel = open_tunnel(&rig, "h").await;
    let slow = tokio::spawn({
        let rig = Arc::clone(&rig);
        async move { rig.get("h", "/slow").await }
    });
    old.state.arrived.notified().await;
    old.state.arrived.notified().await;
    rig.put(&service("web", "h", &[&new])).await;
    let begun = Instant::now();
    let drained = rig
        .client
        .drain(&name("web"), &old.upstream(), Duration::from_millis(200))
        .await
        .unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(200));
    assert_eq!((drained.cut, drained.tunnels_cut), (1, 1));
    assert_eq!(slow.await.unwrap().status, 504);
    assert_eq!(tunnel.read(&mut [0; 8]).await.unwrap(), 0, "the tunnel is closed");
}

#[tokio::test]
async fn a_tunnel_of_another_service_does_not_notice_a_switch() {
    let (rig, app, other) = (Rig::start(), App::start("app").await, App::start("other").await);
    rig.put(&service("web", "h", &[&app])).await;
    rig.put(&service("other", "other", &[&other])).await;
    let mut tunnel = open_tunnel(&rig, "h").await;
    rig.put(&service("other", "other", &[&app])).await;
    rig.client
        .drain(&name("other"), &other.upstream(), Duration::from_secs(1))
        .await
        .unwrap();
    tunnel.write_all(b"ping").await.unwrap();
    let mut echo = [0; 4];
    tunnel.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"ping");
}

#[tokio::test]
async fn a_probe_says_who_failed_and_why() {
    let (rig, good, bad) = (Rig::start(), App::start("good").await, App::start("bad").await);
    bad.state.healthy.store(false, Ordering::Relaxed);
    let dead = closed_port().await;
    let upstreams = [good.upstream(), bad.upstream(), dead.into()];
    let probed = rig
        .client
        .probe(&upstreams, &HealthCheck::default(), Duration::from_millis(300))
        .await
        .unwrap();
    assert!(!probed.all_healthy());
    assert_eq!(probed.upstreams[0].failure, None);
    assert!(matches!(
        probed.upstreams[1].failure,
        Some(ProbeFailure::Status { status: 500, .. })
    ));
    assert!(matches!(
        probed.upstreams[2].failure,
        Some(ProbeFailure::Connect { .. })
    ));
    assert!(probed.upstreams[1].tries >= 2, "the first tries come fast");
    bad.state.healthy.store(true, Ordering::Relaxed);
    let probed = rig
        .client
        .probe(&upstreams[..2], &HealthCheck::default(), Duration::from_secs(5))
        .await
        .unwrap();
    assert!(probed.all_healthy());
}

#[tokio::test]
async fn paused_requests_wait_and_stopped_ones_are_told() {
    let (rig, app) = (Arc::new(Rig::start()), App::start("one").await);
    rig.put(&service("web", "h", &[&app])).await;
    rig.client
        .pause(&name("web"), Duration::from_millis(100))
        .await
        .unwrap();
    assert_eq!(rig.get("h", "/").await.status, 504);
    rig.client
        .pause(&name("web"), Duration::from_secs(20))
        .await
        .unwrap();
    let waiting = tokio::spawn({
        let rig = Arc::clone(&rig);
        async move { rig.get("h", "/").await }
    });
    // A deploy leaves the pause alone.
    rig.put(&{
        let mut web = service("web", "h", &[&app]);
        web.response_timeout = Duration::from_secs(9);
        web
    })
    .await;
    rig.client.resume(&name("web")).await.unwrap();
    assert_eq!(waiting.await.unwrap().status, 200);
    rig.client.stop(&name("web"), "Back at <noon>").await.unwrap();
    let answer = rig.get("h", "/").await;
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("Back at &lt;noon&gt;"), "{}", answer.body);
}

#[tokio::test]
async fn a_client_that_leaves_while_it_waits_frees_its_place() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    rig.put(&service("web", "h", &[&app])).await;
    let hour = Duration::from_secs(3600);
    rig.client.pause(&name("web"), hour).await.unwrap();
    let connections = async |expected: u64| {
        while rig.client.status().await.unwrap().connections != expected {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    // With a body and a further request behind it, or with nothing.
    let more = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcGET / HTTP/1.1\r\nHost: h\r\n\r\n";
    for request in ["GET / HTTP/1.1\r\nHost: h\r\n\r\n", more] {
        let mut stream = tokio::net::TcpStream::connect(rig.http).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        connections(1).await;
        drop(stream);
        connections(0).await;
    }
    // Who stays is served, with all that was sent meanwhile.
    let mut stream = tokio::net::TcpStream::connect(rig.http).await.unwrap();
    stream.write_all(more.as_bytes()).await.unwrap();
    connections(1).await;
    rig.client.resume(&name("web")).await.unwrap();
    let mut stream = tokio::io::BufReader::new(stream);
    assert!(Answer::read(&mut stream).await.body.contains("POST /"));
    assert!(Answer::read(&mut stream).await.body.contains("GET /"));
    assert_eq!(app.state.requests.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_restart_serves_the_last_good_snapshot() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    let applied = rig.put(&service("web", "h", &[&app])).await;
    rig.client.stop(&name("web"), "closed").await.unwrap();
    let rig = Rig::over(rig.stop().await);
    assert_eq!(rig.get("h", "/").await.status, 503);
    rig.client.resume(&name("web")).await.unwrap();
    assert_eq!(rig.get("h", "/").await.status, 200);
    assert!(rig.client.status().await.unwrap().generation > applied.generation);
}

#[tokio::test]
async fn after_a_reboot_requests_wait_until_the_agent_has_confirmed_their_route() {
    let (rig, app, stranger) = (
        Rig::start(),
        App::start("one").await,
        App::start("stranger").await,
    );
    rig.put(&service("web", "h", &[&stranger])).await;
    rig.put(&service("other", "o", &[&app])).await;
    let home = rig.stop().await;
    // A restart in the same boot holds nothing.
    let rig = Rig::over(home);
    assert_eq!(rig.get("h", "/").await.status, 200);
    let home = rig.stop().await;
    // A reboot empties the directory of the control socket; meanwhile the address was given to a stranger, who is healthy.
    fs_err::remove_file(home.path().join("boot")).unwrap();
    let rig = Rig::over(home);
    let before = stranger.state.requests.load(Ordering::Relaxed);
    assert!(rig.client.list().await.unwrap().iter().all(|status| status.held));
    let asking = rig.get("h", "/");
    let confirming = async {
        // Another restart does not make the stranger a friend.
        app.state.healthy.store(false, Ordering::Relaxed);
        rig.put(&service("web", "h", &[&app])).await;
        app.state.healthy.store(true, Ordering::Relaxed);
    };
    let (answer, ()) = tokio::join!(asking, confirming);
    assert!(answer.body.starts_with("one GET"), "{}", answer.body);
    assert_eq!(stranger.state.requests.load(Ordering::Relaxed), before);

    // Put unchanged, it is confirmed as well; one that nobody confirms gets 503 in the end.
    let mut impatient = service("other", "o", &[&app]);
    impatient.response_timeout = Duration::from_millis(100);
    rig.put(&impatient).await;
    assert_eq!(rig.get("o", "/").await.status, 200);
    let home = rig.stop().await;
    fs_err::remove_file(home.path().join("boot")).unwrap();
    let rig = Rig::over(home);
    let answer = rig.get("o", "/").await;
    assert_eq!((answer.status, answer.header("retry-after")), (503, "5"));
    let rig = Rig::over(rig.stop().await);
    assert!(rig.client.list().await.unwrap().iter().all(|status| status.held));
}

#[tokio::test]
async fn a_stop_lets_requests_finish() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    rig.put(&service("web", "h", &[&app])).await;
    let mut stream = BufReader::new(TcpStream::connect(rig.http).await.unwrap());
    stream
        .write_all(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n")
        .await
        .unwrap();
    app.state.arrived.notified().await;
    let stopped = rig.stop_beside();
    app.state.release.notify_one();
    assert_eq!(Answer::read(&mut stream).await.body, "one slow");
    stopped.await.unwrap();
}

#[tokio::test]
async fn a_change_that_cannot_be_written_down_is_not_made() {
    let (rig, old, new) = (Rig::start(), App::start("old").await, App::start("new").await);
    rig.put(&service("web", "h", &[&old])).await;
    // A directory in the snapshot's place makes its replacement fail, as a full disk does.
    let snapshot = path_in(&rig, "state/snapshot.json");
    fs_err::remove_file(&snapshot).unwrap();
    fs_err::create_dir(&snapshot).unwrap();
    let error = rig
        .client
        .put_service(&service("web", "h", &[&new]))
        .await
        .unwrap_err();
    let ControlError::Refused { refusal, .. } = error else {
        panic!("{error}")
    };
    assert_eq!(refusal.code, RefusalCode::Storage);
    assert!(
        rig.get("h", "/").await.body.starts_with("old"),
        "the live service was touched"
    );
    fs_err::remove_dir(&snapshot).unwrap();
    rig.put(&service("web", "h", &[&new])).await;
    assert!(rig.get("h", "/").await.body.starts_with("new"));
}
