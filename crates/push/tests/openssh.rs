//! The SSH client against a real OpenSSH server with a forced command, as bootstrap sets it up.
//!
//! Needs `sshd` on this machine; without it this part is left out.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use appliance_push::ssh::{HostKeyPolicy, Options, SshError, Target};
use appliance_push::transport::{Transport, TransportError};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};

fn sshd() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
    places.map(|place| place.join("sshd")).find(|file| file.exists())
}

fn keygen(path: &Path, kind: &[&str]) {
    let made = Command::new("ssh-keygen")
        .args(["-q", "-N", "", "-f"])
        .arg(path)
        .args(kind)
        .status();
    assert!(made.expect("ssh-keygen starts").success());
}

fn write(path: &Path, text: &str) {
    let mut file = std::fs::File::create(path).expect("created");
    std::io::Write::write_all(&mut file, text.as_bytes()).expect("written");
}

struct Server {
    child: Child,
    directory: tempfile::TempDir,
    port: u16,
    user: String,
}

impl Server {
    /// Starts sshd for the current user, where the key of `identity` may run `command` and nothing else.
    fn start(sshd: &Path, command: &str) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let at = |name: &str| directory.path().join(name);
        keygen(&at("host"), &["-t", "ed25519"]);
        keygen(&at("host-ecdsa"), &["-t", "ecdsa"]);
        keygen(&at("identity"), &["-t", "ed25519"]);
        let public = std::fs::read_to_string(at("identity.pub")).expect("public key");
        write(
            &at("authorized"),
            &format!("restrict,command=\"{command}\" {public}"),
        );
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|free| free.local_addr())
            .expect("a port")
            .port();
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\n\
             StrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n",
            at("host").display(),
            at("host-ecdsa").display(),
            at("authorized").display(),
        );
        write(&at("config"), &config);
        // Its unprivileged half needs this directory when it runs as root.
        let _there_already = std::fs::create_dir("/run/sshd");
        let mut child = Command::new(sshd)
            .args(["-D", "-e", "-f"])
            .arg(at("config"))
            .stderr(Stdio::piped())
            .spawn()
            .expect("sshd starts");
        let stderr = child.stderr.take().expect("stderr");
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stderr));
        let listening = lines
            .by_ref()
            .map_while(Result::ok)
            .find(|line| line.contains("Server listening"));
        assert!(listening.is_some(), "sshd did not come up");
        std::thread::spawn(move || lines.map_while(Result::ok).count());
        let user = Command::new("id").arg("-un").output().expect("id starts").stdout;
        let user = String::from_utf8(user).expect("text").trim().to_owned();
        Self {
            child,
            directory,
            port,
            user,
        }
    }

    fn transport(&self, change: impl FnOnce(&mut Options)) -> Transport {
        let mut options = Options::bare();
        options.identities = vec![self.directory.path().join("identity")];
        options.known_hosts = vec![self.directory.path().join("known_hosts")];
        options.policy = Some(HostKeyPolicy::AcceptNew);
        change(&mut options);
        let target =
            Target::parse(&format!("{}@127.0.0.1:{}", self.user, self.port), options).expect("target");
        Transport::Ssh(Box::new(target))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forced_command_carries_many_bytes_both_ways() {
    let Some(sshd) = sshd() else {
        eprintln!("there is no sshd here: this part was left out");
        return;
    };
    let server = Server::start(&sshd, "cat");
    let mut link = server.transport(|_| {}).open().await.expect("connects");
    let piece: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    let (mut read, mut write) = tokio::io::split(&mut link.stream);
    let pieces = 32;
    let send = async {
        for _ in 0..pieces {
            write.write_all(&piece).await.expect("sent");
        }
        write.shutdown().await.expect("half closed");
    };
    let receive = async {
        let mut back = vec![0; 1 << 20];
        for _ in 0..pieces {
            read.read_exact(&mut back).await.expect("received");
            assert!(back == piece);
        }
        assert_eq!(read.read(&mut back).await.expect("the end"), 0);
    };
    let start = std::time::Instant::now();
    tokio::join!(send, receive);
    eprintln!("{pieces} MiB there and back in {:?}", start.elapsed());
    let mut exit = link.exit.expect("behind SSH");
    while exit.changed().await.is_ok() {}
    assert_eq!(exit.borrow().status, Some(0));

    // The key that was learnt is the one that is asked for; the other type is not taken for a change.
    let known = std::fs::read_to_string(server.directory.path().join("known_hosts")).expect("learnt");
    assert!(
        known.contains("ssh-ed25519") && known.lines().count() == 1,
        "{known}"
    );
    let strict = server.transport(|options| options.policy = Some(HostKeyPolicy::Strict));
    strict.open().await.expect("known by now");
    let ecdsa = std::fs::read_to_string(server.directory.path().join("host-ecdsa.pub")).expect("key");
    write_known(&server, &ecdsa);
    strict.open().await.expect("the ECDSA key is asked for");

    let stranger = server.directory.path().join("stranger");
    keygen(&stranger, &["-t", "ed25519"]);
    let refused = server
        .transport(|options| options.identities = vec![stranger])
        .open()
        .await;
    let Err(TransportError::Ssh { source, .. }) = refused else {
        panic!("let a stranger in")
    };
    assert!(matches!(*source, SshError::AuthRefused { .. }), "{source:?}");
}

fn write_known(server: &Server, key: &str) {
    let line = format!("[127.0.0.1]:{} {key}", server.port);
    write(&server.directory.path().join("known_hosts"), &line);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_words_and_the_status_of_a_failing_command_arrive() {
    let Some(sshd) = sshd() else {
        eprintln!("there is no sshd here: this part was left out");
        return;
    };
    let server = Server::start(&sshd, "echo the agent is away >&2; echo partial; exit 7");
    let link = server.transport(|_| {}).open().await.expect("connects");
    let mut lines = tokio::io::BufReader::new(link.stream).lines();
    assert_eq!(
        lines.next_line().await.expect("reads").as_deref(),
        Some("partial")
    );
    assert_eq!(lines.next_line().await.expect("reads"), None);
    let mut exit = link.exit.expect("behind SSH");
    while exit.changed().await.is_ok() {}
    let exit = exit.borrow().clone();
    assert_eq!(
        (exit.status, exit.stderr.as_str()),
        (Some(7), "the agent is away")
    );
    // Whether the far side speaks HTTP/2 shows at the first request at the latest.
    let error = match server.transport(|_| {}).client().await {
        Err(error) => error,
        Ok(client) => {
            let body = http_body_util::Empty::<bytes::Bytes>::new();
            let body =
                http_body_util::BodyExt::boxed(http_body_util::BodyExt::map_err(
                    body,
                    |never| match never {},
                ));
            let request = http::Request::builder()
                .uri("/v1/status")
                .body(body)
                .expect("request");
            client.send(request).await.expect_err("that is no appliance")
        }
    };
    assert!(error.to_string().contains("the agent is away"), "{error}");
}
