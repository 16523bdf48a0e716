//! What strangers and slow peers must not be able to do, over real sockets.

use std::time::Duration;

use appliance_proxy::names::HostPattern;
use appliance_proxy::options::Store;
use appliance_proxy::snapshot::{Auth, Certificate, Service, Settings, Snapshot, Tls};
use http::StatusCode;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::h2c::{H2cApp, all, connect, request};
use crate::rig::{Answer, App, Rig, name, path_in, read_head, service};
use crate::tls;

/// A service whose upstream is in the test's own hands, with an idle timeout of two seconds.
async fn impatient(tls: Option<Tls>) -> (Rig, TcpListener) {
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut web = Service::new(
        name("web"),
        vec![HostPattern::parse("slow.test").unwrap()],
        vec![upstream.local_addr().unwrap().into()],
    );
    web.health_check.interval = Duration::from_secs(3600);
    web.tls = tls;
    let snapshot = Snapshot {
        settings: Settings {
            idle_timeout: Duration::from_secs(2),
            ..Settings::default()
        },
        services: vec![web],
        ..Snapshot::default()
    };
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("routes.json");
    fs_err::write(&file, serde_json::to_vec(&snapshot).unwrap()).unwrap();
    (Rig::with(home, Store::File(file)), upstream)
}

async fn head_of(stream: &mut BufReader<TcpStream>) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(stream.read_line(&mut head).await.unwrap(), 0, "{head:?}");
    }
    head
}

#[tokio::test]
async fn only_websockets_leave_http() {
    let (rig, upstream) = impatient(None).await;
    let mut client = TcpStream::connect(rig.http).await.unwrap();
    let h2c = "GET /open HTTP/1.1\r\nHost: slow.test\r\nConnection: Upgrade, HTTP2-Settings\r\n\
               Upgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n";
    client.write_all(h2c.as_bytes()).await.unwrap();
    let mut talk = BufReader::new(upstream.accept().await.unwrap().0);
    let head = head_of(&mut talk).await.to_ascii_lowercase();
    assert!(
        !head.contains("upgrade") && !head.contains("http2-settings"),
        "{head}"
    );
    // One that agrees all the same leads nowhere.
    talk.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(Answer::read(&mut BufReader::new(client)).await.status, 502);
}

#[tokio::test]
async fn no_field_passes_for_one_of_ours() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    rig.put(&service("web", "h", &[&app])).await;
    let fields = [
        "X_Forwarded_For",
        "x-forwarded_proto",
        "X_REQUEST_ID",
        "Content_Length",
        "Proxy",
    ];
    let lines: String = fields.iter().map(|name| format!("{name}: 6.6.6.6\r\n")).collect();
    let answer = rig
        .send(&format!(
            "GET / HTTP/1.1\r\nHost: h\r\n{lines}My_Own: kept\r\nConnection: close\r\n\r\n"
        ))
        .await;
    assert!(!answer.body.contains("6.6.6.6"), "{}", answer.body);
    assert!(answer.body.contains("my_own: kept"), "{}", answer.body);
    let mut client = connect(rig.http).await;
    let mut asked = request("GET", "/");
    for name in fields {
        asked = asked.header(name.to_ascii_lowercase(), "6.6.6.6");
    }
    let asked = asked.header("my_own", "kept").body(()).unwrap();
    let (answer, _) = client.send_request(asked, true).unwrap();
    let (body, _) = all(&mut answer.await.unwrap().into_body()).await.unwrap();
    assert!(
        !body.contains("6.6.6.6") && body.contains("my_own: kept"),
        "{body}"
    );
}

#[tokio::test]
async fn head_gets_every_status_and_no_body_and_each_is_logged() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    let mut secret = service("secret", "secret", &[&app]);
    secret.auth = Some(Auth {
        realm: "Shop".into(),
        users: [("ada".to_owned(), bcrypt::hash("love", 4).unwrap())].into(),
        except: Vec::new(),
    });
    // Healthy when it is put, gone when it is asked.
    let dead = App::start("dead").await;
    let mut gone = service("gone", "gone", &[&dead]);
    let mut stopped = service("stopped", "stopped", &[&app]);
    let mut paused = service("paused", "paused", &[&app]);
    for web in [&mut secret, &mut stopped, &mut paused, &mut gone] {
        web.log.requests = true;
        web.health_check.interval = Duration::from_secs(3600);
    }
    for web in [&secret, &stopped, &paused, &gone] {
        rig.put(web).await;
    }
    dead.kill().await;
    rig.client.stop(&stopped.name, "").await.unwrap();
    let wait = Duration::from_millis(50);
    rig.client.pause(&paused.name, wait).await.unwrap();
    let expected = [("secret", 401), ("stopped", 503), ("paused", 504), ("gone", 502)];
    for (host, status) in expected {
        for method in ["HEAD", "GET"] {
            let mut stream = BufReader::new(TcpStream::connect(rig.http).await.unwrap());
            let asked = format!("{method} /{method} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            stream.write_all(asked.as_bytes()).await.unwrap();
            assert_eq!(read_head(&mut stream).await.0, status, "{method} {host}");
            let mut body = String::new();
            stream.read_to_string(&mut body).await.unwrap();
            assert_eq!(body.is_empty(), method == "HEAD", "{method} {host}: {body}");

            let mut client = connect(rig.http).await;
            let asked = request(method, &format!("/2/{method}"));
            let asked = asked.uri(format!("http://{host}/2/{method}")).body(()).unwrap();
            let (answer, _) = client.send_request(asked, true).unwrap();
            let answer = answer.await.unwrap();
            assert_eq!(
                answer.status(),
                StatusCode::from_u16(status).unwrap(),
                "{method} {host}"
            );
            let (body, _) = all(&mut answer.into_body()).await.unwrap();
            assert_eq!(
                body.is_empty(),
                method == "HEAD",
                "{method} {host} over HTTP/2: {body}"
            );
        }
    }
    let lines = loop {
        let bytes = rig.log.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        if text.lines().count() >= expected.len() * 4 {
            break text;
        }
        tokio::task::yield_now().await;
    };
    for (host, status) in expected {
        for path in ["/HEAD", "/GET", "/2/HEAD", "/2/GET"] {
            let line = lines
                .lines()
                .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
                .find(|line| line["service"] == host && line["path"] == path)
                .unwrap_or_else(|| panic!("{host} {path} is not in {lines}"));
            assert_eq!(line["status"], status, "{line}");
            let length = line["resp_content_length"].as_u64().unwrap();
            assert_eq!(length == 0, path.ends_with("HEAD"), "{line}");
        }
    }
}

#[tokio::test]
async fn the_log_counts_the_bytes_of_the_body_whatever_the_protocol() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    let mut web = service("web", "h", &[&app]);
    web.log.requests = true;
    rig.put(&web).await;
    let body = "x".repeat(150_000);
    for path in ["/echo", "/echo?chunked"] {
        let answer = rig
            .send(&format!(
                "POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            ))
            .await;
        assert_eq!(answer.body.len(), body.len());
        let mut client = connect(rig.http).await;
        let asked = request("POST", path).body(()).unwrap();
        let (answer, mut up) = client.send_request(asked, false).unwrap();
        up.send_data(body.clone().into(), true).unwrap();
        let (given, _) = all(&mut answer.await.unwrap().into_body()).await.unwrap();
        assert_eq!(given.len(), body.len());
    }
    let lines = loop {
        let bytes = rig.log.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        if text.lines().count() >= 4 {
            break text;
        }
        tokio::task::yield_now().await;
    };
    for line in lines.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["resp_content_length"], body.len(), "{line}");
    }
}

#[tokio::test]
async fn an_upstream_that_takes_no_upload_is_the_one_to_blame() {
    let (rig, upstream) = impatient(None).await;
    let body = vec![b'x'; 32 << 20];
    let mut stream = TcpStream::connect(rig.http).await.unwrap();
    let head = format!(
        "POST / HTTP/1.1\r\nHost: slow.test\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let (reader, mut writer) = stream.into_split();
    let upload = tokio::spawn(async move {
        let _given_up = writer.write_all(&body).await;
        writer
    });
    let held = upstream.accept().await.unwrap();
    let answer = Answer::read(&mut BufReader::new(reader)).await;
    assert_eq!(answer.status, 504);
    drop((held, upload));
}

#[tokio::test]
async fn a_download_over_tls_goes_on_for_as_long_as_its_reader_reads() {
    let local = Tls {
        certificate: Certificate::LocalCa,
        redirect: false,
    };
    let (rig, upstream) = impatient(Some(local)).await;
    const PARTS: usize = 2_000;
    let part = vec![b'x'; 15 << 10];
    let sender = tokio::spawn(async move {
        let mut talk = BufReader::new(upstream.accept().await.unwrap().0);
        head_of(&mut talk).await;
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
            PARTS * part.len()
        );
        talk.write_all(head.as_bytes()).await.unwrap();
        // A little at a time, so that what is written is less than what TLS takes at once.
        for _ in 0..PARTS {
            talk.write_all(&part).await.unwrap();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        talk
    });
    let ca = fs_err::read_to_string(path_in(&rig, "local-ca/ca.pem")).unwrap();
    // A small window, so that the kernel does not take everything at once.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 << 10).unwrap();
    let stream = socket.connect(rig.https).await.unwrap();
    let mut stream = tls::over(stream, &ca, "slow.test", &[b"http/1.1"]).await.unwrap();
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: slow.test\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut stream = BufReader::with_capacity(16 << 10, stream);
    assert_eq!(read_head(&mut stream).await.0, 200);
    let (mut got, mut room) = (0, vec![0; 16 << 10]);
    // Slower than the upstream for three times the idle timeout, then as fast as it can.
    let begun = tokio::time::Instant::now();
    while got < PARTS * (15 << 10) {
        let count = stream.read(&mut room).await.unwrap();
        assert_ne!(count, 0, "broken off after {got} bytes, {:?}", begun.elapsed());
        got += count;
        if begun.elapsed() < Duration::from_secs(7) {
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
    }
    drop(sender.await.unwrap());
}

#[tokio::test]
async fn guessing_passwords_is_slowed_down_and_keeps_nobody_else_out() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    let mut web = service("web", "h", &[&app]);
    web.auth = Some(Auth {
        realm: "Shop".into(),
        users: [("ada".to_owned(), bcrypt::hash("love", 4).unwrap())].into(),
        except: Vec::new(),
    });
    rig.put(&web).await;
    let ask = async |password: &str| {
        use base64::Engine as _;
        let pair = base64::engine::general_purpose::STANDARD.encode(format!("ada:{password}"));
        rig.send(&format!(
            "GET / HTTP/1.1\r\nHost: h\r\nAuthorization: Basic {pair}\r\nConnection: close\r\n\r\n"
        ))
        .await
    };
    assert_eq!(ask("love").await.status, 200);
    let mut refused = 0;
    for guess in 0..40 {
        let answer = ask(&format!("guess {guess}")).await;
        match answer.status {
            401 => refused += 1,
            status => {
                assert_eq!(status, 429);
                assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
            }
        }
    }
    assert!((5..40).contains(&refused), "{refused} guesses were looked at");
    assert_eq!(ask("love").await.status, 200, "who is known stays known");
}

#[tokio::test]
async fn what_has_no_body_gets_no_length_from_an_h2c_upstream() {
    let (rig, mut app) = (Rig::start(), H2cApp::start().await);
    rig.put(&app.service()).await;
    for status in [204, 304] {
        let mut stream = BufReader::new(TcpStream::connect(rig.http).await.unwrap());
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let (_, mut respond) = app.next().await;
        let head = http::Response::builder().status(status).body(()).unwrap();
        respond.send_response(head, true).unwrap();
        let (given, headers) = read_head(&mut stream).await;
        assert_eq!(given, status);
        assert!(!headers.contains_key("content-length"), "{status}: {headers:?}");
        assert!(
            !headers.contains_key("transfer-encoding"),
            "{status}: {headers:?}"
        );
    }
}

#[tokio::test]
async fn beyond_the_most_connections_new_ones_wait_until_one_ends() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    rig.put(&service("web", "h", &[&app])).await;
    let settings = Settings {
        max_connections: 16,
        ..Settings::default()
    };
    rig.client.put_settings(&settings).await.unwrap();
    let ask = async || {
        let mut stream = BufReader::new(TcpStream::connect(rig.http).await.unwrap());
        let asked = stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
        asked.unwrap();
        stream
    };
    let mut held = Vec::new();
    for _ in 0..16 {
        let mut stream = ask().await;
        assert_eq!(Answer::read(&mut stream).await.status, 200);
        held.push(stream);
    }
    let mut late = ask().await;
    let requests = || app.state.requests.load(std::sync::atomic::Ordering::SeqCst);
    let waits = tokio::time::timeout(Duration::from_millis(300), late.fill_buf()).await;
    assert!(waits.is_err() && requests() == 16, "the seventeenth waits");
    held.pop();
    assert_eq!(Answer::read(&mut late).await.status, 200);
}
