//! Metrics and the access log.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::rig::{App, Rig, name, service};

pub(crate) async fn page(rig: &Rig) -> String {
    let mut stream = TcpStream::connect(rig.metrics).await.unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    rig.put(&service("web", "h", &[&app])).await;
    for _ in 0..3 {
        rig.get("h", "/").await;
    }
    rig.client.stop(&name("web"), "").await.unwrap();
    rig.get("h", "/").await;
    let page = page(&rig).await;
    for expect in [
        "appliance_proxy_requests_total{service=\"web\",class=\"2xx\"} 3",
        "appliance_proxy_requests_total{service=\"web\",class=\"5xx\"} 1",
        "appliance_proxy_request_duration_seconds_bucket{service=\"web\",le=\"+Inf\"} 4",
        "appliance_proxy_request_duration_seconds_count{service=\"web\"} 4",
        "# TYPE appliance_proxy_request_duration_seconds histogram",
        "appliance_proxy_snapshot_generation 2",
    ] {
        assert!(page.contains(expect), "{expect} is missing in {page}");
    }
    let healthy = format!(
        "appliance_proxy_upstream_healthy{{service=\"web\",upstream=\"{}\"}} 1",
        app.address
    );
    assert!(page.contains(&healthy), "{page}");
    let sent = page
        .lines()
        .find_map(|line| line.strip_prefix("appliance_proxy_sent_bytes_total{service=\"web\"} "))
        .unwrap();
    assert!(sent.parse::<u64>().unwrap() > 100);
}

#[tokio::test]
async fn requests_are_logged_when_asked_for_and_queries_are_not() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    let mut web = service("web", "h", &[&app]);
    rig.put(&web).await;
    rig.get("h", "/silent").await;
    web.log.requests = true;
    rig.put(&web).await;
    let answer = rig.get("h", "/a/b?token=secret").await;
    let line = loop {
        let bytes = rig.log.0.lock().unwrap().clone();
        if bytes.ends_with(b"\n") {
            break String::from_utf8(bytes).unwrap();
        }
        tokio::task::yield_now().await;
    };
    assert!(!line.contains("secret") && !line.contains("silent"), "{line}");
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["msg"], "Request");
    assert_eq!(line["path"], "/a/b");
    assert_eq!(line["status"], 200);
    assert_eq!(line["service"], "web");
    assert_eq!(line["target"], app.address.to_string());
    assert_eq!(line["request_id"], answer.header("x-request-id"));
    assert_eq!(line["client_addr"], "127.0.0.1");
    assert!(line["duration"].as_u64().unwrap() > 0);
    assert_eq!(line["resp_content_length"], answer.body.len());
}

#[tokio::test]
async fn a_full_disk_costs_lines_of_the_log_and_no_request() {
    use std::sync::atomic::Ordering;
    let (rig, app) = (Rig::start(), App::start("one").await);
    let mut web = service("web", "h", &[&app]);
    web.log.requests = true;
    rig.put(&web).await;
    rig.log.1.store(true, Ordering::SeqCst);
    for _ in 0..100 {
        assert_eq!(rig.get("h", "/lost").await.status, 200);
    }
    rig.log.1.store(false, Ordering::SeqCst);
    // Once there is room again, lines are written again.
    loop {
        assert_eq!(rig.get("h", "/kept").await.status, 200);
        if String::from_utf8_lossy(&rig.log.0.lock().unwrap()).contains("/kept") {
            break;
        }
    }
}
