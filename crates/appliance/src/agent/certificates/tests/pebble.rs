//! A certificate authority in a process of its own, with a DNS server that answers what the test wants.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::net::TcpStream;

/// Ends with its owner.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// What a test wants of its authority.
#[derive(Clone, Copy)]
pub(super) struct Wanted {
    pub(super) http: SocketAddr,
    pub(super) https: SocketAddr,
    /// Key identifier and MAC key (base64url) that an account must be bound to.
    pub(super) external: Option<(&'static str, &'static str)>,
}

/// Pebble and its DNS server.
pub(super) struct Pebble {
    pub(super) home: tempfile::TempDir,
    wanted: Wanted,
    server: Option<Process>,
    _dns: Process,
    pub(super) listen: SocketAddr,
    management: SocketAddr,
    dns: SocketAddr,
    pub(super) records: SocketAddr,
}

/// A port that nobody uses now.
fn free() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

async fn listening(address: SocketAddr) {
    let limit = Duration::from_secs(30);
    let up = async {
        while TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(limit, up)
        .await
        .unwrap_or_else(|_| panic!("nothing listens on {address}"));
}

impl Pebble {
    pub(super) async fn start(wanted: Wanted) -> Self {
        let home = tempfile::tempdir().unwrap();
        let (dns, records) = (free(), free());
        let server = Command::new("pebble-challtestsrv")
            .args([
                "-http01",
                "",
                "-https01",
                "",
                "-tlsalpn01",
                "",
                "-defaultIPv6",
                "",
            ])
            .args(["-dns01", &dns.to_string(), "-management", &records.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("pebble-challtestsrv is installed (Debian package pebble)");
        let mut pebble = Self {
            listen: free(),
            management: free(),
            wanted,
            server: None,
            _dns: Process(server),
            dns,
            records,
            home,
        };
        pebble.identity();
        listening(records).await;
        pebble.run().await;
        pebble
    }

    /// The authority's own certificate, as `ca_file` will check it.
    fn identity(&self) {
        let mut root = CertificateParams::new(Vec::new()).unwrap();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = root.self_signed(&key).unwrap();
        let issuer = Issuer::new(root, key);
        let leaf_key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])
            .unwrap()
            .signed_by(&leaf_key, &issuer)
            .unwrap();
        for (file, text) in [
            ("ca.pem", certificate.pem()),
            ("cert.pem", leaf.pem()),
            ("key.pem", leaf_key.serialize_pem()),
        ] {
            fs_err::write(self.path(file), text).unwrap();
        }
    }

    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.home.path().join(file)
    }

    /// Starts it; it remembers nothing of an earlier run.
    pub(super) async fn run(&mut self) {
        let keys = self
            .wanted
            .external
            .map(|(id, key)| serde_json::json!({ id: key }));
        let config = serde_json::json!({ "pebble": {
            "listenAddress": self.listen.to_string(),
            "managementListenAddress": self.management.to_string(),
            "certificate": self.path("cert.pem"),
            "privateKey": self.path("key.pem"),
            "httpPort": self.wanted.http.port(),
            "tlsPort": self.wanted.https.port(),
            "ocspResponderURL": "",
            "externalAccountBindingRequired": self.wanted.external.is_some(),
            "externalAccountMACKeys": keys,
        }});
        fs_err::write(self.path("pebble.json"), config.to_string()).unwrap();
        let server = Command::new("pebble")
            .arg("-config")
            .arg(self.path("pebble.json"))
            .args(["-dnsserver", &self.dns.to_string()])
            // Good nonces are rejected, every authorization is looked at, and without a pause for show.
            .env("PEBBLE_WFE_NONCEREJECT", "15")
            .env("PEBBLE_AUTHZREUSE", "0")
            .env("PEBBLE_VA_NOSLEEP", "1")
            .stdout(fs_err::File::create(self.path("log")).unwrap().into_parts().0)
            .stderr(Stdio::null())
            .spawn()
            .expect("pebble is installed (Debian package pebble)");
        self.server = Some(Process(server));
        listening(self.listen).await;
        listening(self.management).await;
    }

    pub(super) fn stop(&mut self) {
        self.server = None;
    }

    pub(super) fn directory(&self) -> String {
        format!("https://localhost:{}/dir", self.listen.port())
    }

    /// The root that it signs with now.
    pub(super) async fn root(&self) -> String {
        self.ask("/roots/0").await
    }

    /// `Valid` or `Revoked`.
    pub(super) async fn status(&self, serial: &str) -> String {
        let answer = self.ask(&format!("/cert-status-by-serial/{serial}")).await;
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        answer["Status"].as_str().unwrap().to_owned()
    }

    async fn ask(&self, path: &str) -> String {
        let ca = fs_err::read_to_string(self.path("ca.pem")).unwrap();
        let stream = super::handshake(self.management, "localhost", &ca).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        let connection = tokio::spawn(connection);
        let request = http::Request::get(path)
            .header("host", "localhost")
            .body(Full::<bytes::Bytes>::default())
            .unwrap();
        let answer = sender.send_request(request).await.unwrap();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        connection.abort();
        String::from_utf8(body.to_vec()).unwrap()
    }

    /// A script that sets and removes TXT records in the DNS server.
    pub(super) fn dns_command(&self) -> PathBuf {
        let script = self.path("dns");
        let text = format!(
            "#!/bin/bash\nset -e\ncase $1 in present) path=set-txt;; cleanup) path=clear-txt;; esac\n\
             body=\"{{\\\"host\\\":\\\"$ACME_RECORD.\\\",\\\"value\\\":\\\"$ACME_VALUE\\\"}}\"\n\
             exec 3<>/dev/tcp/127.0.0.1/{}\n\
             printf 'POST /%s HTTP/1.0\\r\\nContent-Length: %d\\r\\n\\r\\n%s' $path ${{#body}} \"$body\" >&3\n\
             read -r status <&3\n[[ $status == *200* ]]\necho \"$1 $ACME_RECORD\" >> {}\n",
            self.records.port(),
            self.path("dns.log").display(),
        );
        fs_err::write(&script, text).unwrap();
        executable(&script);
        script
    }

    /// One that notes what it is asked in `log`, and fails to set anything.
    pub(super) fn failing_dns_command(&self, log: &Path) -> PathBuf {
        let script = self.path("failing-dns");
        let text = format!(
            "#!/bin/sh\necho $1 >> {}\n[ $1 = cleanup ] || {{ echo too late >&2; exit 1; }}\n",
            log.display()
        );
        fs_err::write(&script, text).unwrap();
        executable(&script);
        script
    }

    /// Makes the DNS server say that `host` is at `address`.
    pub(super) async fn point(&self, host: &str, address: &str) {
        let stream = TcpStream::connect(self.records).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        let connection = tokio::spawn(connection);
        let body = serde_json::json!({ "host": host, "addresses": [address] }).to_string();
        let request = http::Request::post("/add-a")
            .header("host", "dns")
            .body(Full::new(bytes::Bytes::from(body)))
            .unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
        connection.abort();
    }
}

fn executable(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(0o700)).unwrap();
}
