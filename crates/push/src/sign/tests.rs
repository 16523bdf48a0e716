//! Signing and verifying, against the real `ssh-keygen` and `ssh-agent`.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use super::*;

/// A directory with key files made by `ssh-keygen`.
pub(crate) struct Keys {
    pub(crate) directory: tempfile::TempDir,
}

impl Keys {
    pub(crate) fn new() -> Self {
        Self {
            directory: tempfile::tempdir().expect("directory"),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn make(&self, name: &str, kind: &[&str], passphrase: &str) -> PathBuf {
        let path = self.path(name);
        run(Command::new("ssh-keygen")
            .args(["-q", "-C", name, "-N", passphrase, "-f"])
            .arg(&path)
            .args(kind));
        path
    }

    pub(crate) fn ed25519(&self, name: &str) -> Signer {
        let path = self.make(name, &["-t", "ed25519"], "");
        Signer::from_file(&path, &mut |_| None).expect("a key")
    }

    pub(crate) fn public(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{name}.pub"))).expect("public key")
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("starts");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

/// Whether `ssh-keygen -Y verify` accepts a signature.
fn ssh_keygen_accepts(keys: &Keys, public: &str, namespace: &str, signature: &str, payload: &[u8]) -> bool {
    let allowed = keys.path("allowed");
    fs_write(&allowed, format!("someone {public}").as_bytes());
    let file = keys.path("payload.sig");
    fs_write(&file, signature.as_bytes());
    let mut child = Command::new("ssh-keygen")
        .args(["-Y", "verify", "-I", "someone", "-n", namespace, "-f"])
        .arg(&allowed)
        .arg("-s")
        .arg(&file)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    std::io::Write::write_all(&mut child.stdin.take().expect("stdin"), payload).expect("written");
    child.wait().expect("ends").success()
}

pub(crate) fn fs_write(path: &Path, bytes: &[u8]) {
    let mut file = std::fs::File::create(path).expect("created");
    std::io::Write::write_all(&mut file, bytes).expect("written");
}

const KINDS: [(&str, &[&str]); 4] = [
    ("ed25519", &["-t", "ed25519"]),
    ("p256", &["-t", "ecdsa", "-b", "256"]),
    ("p384", &["-t", "ecdsa", "-b", "384"]),
    ("p521", &["-t", "ecdsa", "-b", "521"]),
];

#[tokio::test]
async fn ssh_keygen_verifies_what_we_sign() {
    let keys = Keys::new();
    for (name, kind) in KINDS {
        let signer = Signer::from_file(&keys.make(name, kind, ""), &mut |_| None).expect("a key");
        let signature = signer.sign(b"payload").await.expect("signed");
        let public = keys.public(name);
        assert!(
            ssh_keygen_accepts(&keys, &public, NAMESPACE, &signature, b"payload"),
            "{name}"
        );
        assert!(
            !ssh_keygen_accepts(&keys, &public, NAMESPACE, &signature, b"payloaD"),
            "{name}"
        );
        assert!(
            !ssh_keygen_accepts(&keys, &public, "other", &signature, b"payload"),
            "{name}"
        );
    }
}

#[test]
fn we_verify_what_ssh_keygen_signs() {
    let keys = Keys::new();
    let payload = keys.path("payload");
    fs_write(&payload, b"payload");
    for (name, kind) in KINDS {
        let key = keys.make(name, kind, "");
        let sign = |namespace: &str| {
            let _none = std::fs::remove_file(keys.path("payload.sig"));
            run(Command::new("ssh-keygen")
                .args(["-q", "-Y", "sign", "-n", namespace, "-f"])
                .arg(&key)
                .arg(&payload));
            std::fs::read_to_string(keys.path("payload.sig")).expect("signature")
        };
        let public = PublicKey::parse(&keys.public(name)).expect("public key");
        let signature = Signature::parse(&sign(NAMESPACE)).expect("parses");
        assert_eq!(signature.fingerprint(), public.fingerprint());
        signature.verify(&public, b"payload").expect("fits");
        assert!(
            matches!(signature.verify(&public, b"payloaD"), Err(SignError::Verify(_))),
            "{name}"
        );
        let other = Signature::parse(&sign("git")).expect("parses");
        assert!(
            matches!(
                other.verify(&public, b"payload"),
                Err(SignError::Namespace { .. })
            ),
            "{name}"
        );
    }
}

#[test]
fn the_fingerprint_is_the_one_ssh_keygen_prints() {
    let keys = Keys::new();
    keys.make("key", &["-t", "ed25519"], "");
    let printed = run(Command::new("ssh-keygen").arg("-lf").arg(keys.path("key.pub")));
    let public = PublicKey::parse(&keys.public("key")).expect("public key");
    assert!(printed.contains(public.fingerprint().as_str()), "{printed}");
    assert_eq!(public.comment(), "key");
}

#[test]
fn encrypted_keys_ask_and_rsa_keys_are_refused_with_a_way_out() {
    let keys = Keys::new();
    let path = keys.make("locked", &["-t", "ed25519"], "open sesame");
    assert!(matches!(
        Signer::from_file(&path, &mut |_| None),
        Err(SignError::NeedsPassphrase { .. })
    ));
    let wrong = Signer::from_file(&path, &mut |_| Some("wrong".to_owned()));
    assert!(
        matches!(wrong, Err(SignError::WrongPassphrase { .. })),
        "{wrong:?}"
    );
    Signer::from_file(&path, &mut |_| Some("open sesame".to_owned())).expect("opens");

    for (name, form) in [("rsa", None), ("rsa-pem", Some("PEM"))] {
        let mut kind = vec!["-t", "rsa", "-b", "2048"];
        kind.extend(form.into_iter().flat_map(|form| ["-m", form]));
        let path = keys.make(name, &kind, "");
        let error = Signer::from_file(&path, &mut |_| None).expect_err("refused");
        assert!(matches!(error, SignError::KeyType { .. }), "{error:?}");
        assert!(error.to_string().contains("ssh-keygen -t ed25519"), "{error}");
        let error = PublicKey::parse(&keys.public(name)).expect_err("refused");
        assert!(matches!(error, SignError::KeyType { .. }), "{error:?}");
    }
    assert!(matches!(
        PublicKey::parse("not a key"),
        Err(SignError::ParseKey { .. })
    ));
}

#[tokio::test]
async fn the_agent_signs_and_a_missing_key_is_named() {
    let keys = Keys::new();
    let agent = Agent::start(&keys);
    let path = keys.make("held", &["-t", "ed25519"], "");
    let other = keys.ed25519("other");
    run(Command::new("ssh-add")
        .arg("-q")
        .arg(&path)
        .env("SSH_AUTH_SOCK", &agent.socket));

    let held = agent_keys(&agent.socket).await.expect("answers");
    assert_eq!(held.len(), 1);
    let signer = Signer::from_agent(&agent.socket, &held[0].fingerprint())
        .await
        .expect("held");
    let signature = signer.sign(b"payload").await.expect("signed");
    assert!(ssh_keygen_accepts(
        &keys,
        &keys.public("held"),
        NAMESPACE,
        &signature,
        b"payload"
    ));
    Signature::parse(&signature)
        .expect("parses")
        .verify(&held[0], b"payload")
        .expect("fits");

    let wanted = other.public_key().fingerprint();
    let error = Signer::from_agent(&agent.socket, &wanted)
        .await
        .expect_err("not held");
    assert!(
        error.to_string().contains(wanted.as_str())
            && error.to_string().contains(held[0].fingerprint().as_str())
    );
    let gone = agent_keys(&keys.path("no-socket")).await.expect_err("no agent");
    assert!(matches!(gone, SignError::AgentConnect { .. }));
}

/// What a hardware key answers: a signature over the application, flags, a counter and the message's hash
/// (`PROTOCOL.u2f`).
struct HardwareKey(aws_lc_rs::signature::Ed25519KeyPair);

impl HardwareKey {
    fn public(&self) -> ssh_key::PublicKey {
        use aws_lc_rs::signature::KeyPair as _;
        let bytes: [u8; 32] = self.0.public_key().as_ref().try_into().expect("32 bytes");
        let key = ssh_key::public::Ed25519PublicKey(bytes);
        let key = ssh_key::public::SkEd25519::new(key, "ssh:");
        ssh_key::PublicKey::new(ssh_key::public::KeyData::SkEd25519(key), "hardware")
    }

    fn sign(&self, payload: &[u8], flags: u8) -> String {
        let sha256 = |bytes: &[u8]| aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
        let message = SshSig::signed_data(NAMESPACE, HashAlg::Sha512, payload).expect("data");
        let mut trailer = vec![flags];
        trailer.extend(7_u32.to_be_bytes());
        let signed = [sha256(b"ssh:").as_ref(), &trailer, sha256(&message).as_ref()].concat();
        let blob = [self.0.sign(&signed).as_ref(), &trailer].concat();
        let blob = ssh_key::Signature::new(Algorithm::SkEd25519, blob).expect("a signature");
        let signature = SshSig::new(self.public().key_data().clone(), NAMESPACE, HashAlg::Sha512, blob);
        signature
            .and_then(|signature| signature.to_pem(LineEnding::LF))
            .expect("PEM")
    }
}

#[test]
fn the_file_half_of_a_hardware_key_points_to_the_agent() {
    let keys = Keys::new();
    let key = HardwareKey(aws_lc_rs::signature::Ed25519KeyPair::generate().expect("a key"));
    let ssh_key::public::KeyData::SkEd25519(public) = key.public().key_data().clone() else {
        panic!("another key")
    };
    let half = ssh_key::private::SkEd25519::new(public, 1, b"handle".to_vec()).expect("half a key");
    let private = PrivateKey::new(ssh_key::private::KeypairData::SkEd25519(half), "hardware").expect("a key");
    let path = keys.path("id_ed25519_sk");
    fs_write(&path, private.to_openssh(LineEnding::LF).expect("PEM").as_bytes());
    let error = Signer::from_file(&path, &mut |_| None).expect_err("refused");
    assert!(matches!(error, SignError::HardwareKey { .. }), "{error:?}");
    assert!(error.to_string().contains("ssh-add"), "{error}");
}

#[test]
fn a_hardware_key_counts_only_when_it_was_touched() {
    let keys = Keys::new();
    let key = HardwareKey(aws_lc_rs::signature::Ed25519KeyPair::generate().expect("a key"));
    let line = key.public().to_openssh().expect("line");
    let public = PublicKey::parse(&line).expect("usable");
    let verify = |signature: &str, payload: &[u8]| {
        Signature::parse(signature)
            .expect("parses")
            .verify(&public, payload)
    };
    let touched = key.sign(b"payload", 1);
    verify(&touched, b"payload").expect("fits");
    // ssh-keygen agrees that this is what a hardware key answers.
    assert!(ssh_keygen_accepts(&keys, &line, NAMESPACE, &touched, b"payload"));
    assert!(matches!(verify(&touched, b"payloaD"), Err(SignError::Verify(_))));
    let untouched = key.sign(b"payload", 0);
    assert!(matches!(
        verify(&untouched, b"payload"),
        Err(SignError::NotTouched)
    ));
}

/// A real ssh-agent for one test.
pub(crate) struct Agent {
    child: std::process::Child,
    pub(crate) socket: PathBuf,
}

impl Agent {
    pub(crate) fn start(keys: &Keys) -> Self {
        let socket = keys.path("agent.sock");
        std::fs::set_permissions(keys.directory.path(), std::fs::Permissions::from_mode(0o700))
            .expect("private");
        let mut child = Command::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(&socket)
            .stdout(Stdio::piped())
            .spawn()
            .expect("ssh-agent starts");
        // It prints its variables once it listens.
        let mut line = String::new();
        let stdout = child.stdout.as_mut().expect("stdout");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).expect("a line");
        assert!(line.contains("SSH_AUTH_SOCK"), "{line}");
        Self { child, socket }
    }

    pub(crate) fn add(&self, key: &Path) {
        run(Command::new("ssh-add")
            .arg("-q")
            .arg(key)
            .env("SSH_AUTH_SOCK", &self.socket));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
