//! Several upstreams: balance, canary, readers and writers.

use std::collections::HashSet;
use std::time::Duration;

use appliance_proxy::names::ServiceName;
use appliance_proxy::snapshot::{Canary, CanaryHeader};

use crate::rig::{App, Rig, service};

fn ask(method: &str, fields: &str) -> String {
    format!("{method} / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 0\r\n{fields}\r\n")
}

#[tokio::test]
async fn requests_are_spread_over_all_upstreams() {
    let (rig, one, two) = (Rig::start(), App::start("one").await, App::start("two").await);
    rig.put(&service("web", "h", &[&one, &two])).await;
    let mut seen = HashSet::new();
    for _ in 0..8 {
        seen.insert(rig.get("h", "/").await.body[..3].to_owned());
    }
    assert_eq!(seen.len(), 2);
}

#[tokio::test]
async fn who_has_the_fewest_requests_gets_the_next() {
    let (rig, busy, idle) = (Rig::start(), App::start("busy").await, App::start("idle").await);
    rig.put(&service("web", "h", &[&busy])).await;
    let slow = [(); 2].map(|()| rig.get("h", "/slow"));
    let [one, two] = slow;
    let (mut one, mut two) = (std::pin::pin!(one), std::pin::pin!(two));
    let both_there = async {
        while busy.state.requests.load(std::sync::atomic::Ordering::SeqCst) < 2 {
            busy.state.arrived.notified().await;
        }
    };
    tokio::select! {
        () = both_there => {}
        _ = &mut one => panic!("answered before its release"),
        _ = &mut two => panic!("answered before its release"),
    }
    rig.put(&service("web", "h", &[&busy, &idle])).await;
    for _ in 0..10 {
        assert!(rig.get("h", "/").await.body.starts_with("idle"));
    }
    busy.state.release.notify_waiters();
    assert_eq!(one.await.body, "busy slow");
    assert_eq!(two.await.body, "busy slow");
}

#[tokio::test]
async fn a_canary_gets_its_clients_and_keeps_them() {
    let (rig, main, canary) = (Rig::start(), App::start("main").await, App::start("canary").await);
    let mut web = service("web", "h", &[&main]);
    web.canary = Some(Canary {
        upstreams: vec![canary.upstream()],
        percent: 0.0,
        values: vec!["friend".into()],
        header: Some(CanaryHeader {
            name: "X-Canary".into(),
            value: "1".into(),
        }),
    });
    rig.put(&web).await;
    assert!(rig.get("h", "/").await.body.starts_with("main"));
    for fields in ["X-Canary: 1\r\n", "Cookie: a=b; kamal-rollout=friend\r\n"] {
        assert!(
            rig.send(&ask("GET", fields)).await.body.starts_with("canary"),
            "{fields}"
        );
    }
    if let Some(canary) = &mut web.canary {
        canary.percent = 50.0;
    }
    rig.put(&web).await;
    let mut seen = HashSet::new();
    for _ in 0..40 {
        let first = rig.get("h", "/").await;
        let cookie = first.header("set-cookie").split(';').next().unwrap().to_owned();
        assert!(cookie.starts_with("appliance-canary="), "{cookie}");
        let again = rig.send(&ask("GET", &format!("Cookie: {cookie}\r\n"))).await;
        assert_eq!(again.body.split(' ').next(), first.body.split(' ').next());
        assert_eq!(again.header("set-cookie"), "");
        seen.insert(first.body.split(' ').next().unwrap().to_owned());
    }
    assert_eq!(seen.len(), 2, "half of the clients each");
    let stats = rig
        .client
        .stats(&ServiceName::parse("web").unwrap())
        .await
        .unwrap();
    assert!(
        stats
            .upstreams
            .iter()
            .all(|upstream| upstream.counts.requests > 0)
    );
}

#[tokio::test]
async fn reads_go_to_readers_and_a_writer_stays_with_the_writers() {
    let (rig, writer, reader) = (
        Rig::start(),
        App::start("writer").await,
        App::start("reader").await,
    );
    let mut web = service("web", "h", &[&writer]);
    web.read_upstreams = vec![reader.upstream()];
    web.writer_affinity = Duration::from_secs(20);
    rig.put(&web).await;
    assert!(rig.send(&ask("GET", "")).await.body.starts_with("reader"));
    let written = rig.send(&ask("POST", "")).await;
    assert!(written.body.starts_with("writer"));
    let cookie = written.header("set-cookie").split(';').next().unwrap().to_owned();
    let after = rig.send(&ask("GET", &format!("Cookie: {cookie}\r\n"))).await;
    assert!(after.body.starts_with("writer"));
    // Readers that are gone leave the reading to the writers.
    reader.kill().await;
    assert!(rig.send(&ask("GET", "")).await.body.starts_with("writer"));
}
