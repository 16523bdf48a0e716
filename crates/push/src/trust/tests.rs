//! Every way in which a change is refused, with real keys and signatures.

use super::*;
use crate::change::tests::{change, release};
use crate::change::{Nonce, Power};
use crate::sign::Signer;
use crate::sign::tests::Keys;

struct World {
    keys: Keys,
    ring: KeyRing,
    nonces: NonceLedger,
    now: Timestamp,
    host: HostId,
    current: Option<ReleaseNumber>,
}

impl World {
    fn new() -> Self {
        let template = change(Verb::AppRestart);
        Self {
            keys: Keys::new(),
            ring: KeyRing::default(),
            nonces: NonceLedger::default(),
            now: template.issued_at + SignedDuration::from_secs(10),
            host: template.host,
            current: Some(ReleaseNumber(41)),
        }
    }

    fn enrol(&mut self, name: &str, permissions: &str) -> Signer {
        let signer = self.keys.ed25519(name);
        let permissions = serde_json::from_str(permissions).expect("permissions");
        let entry = KeyEntry::new(&self.keys.public(name), permissions, "", "bootstrap").expect("entry");
        self.ring.insert(entry).expect("enrolled");
        signer
    }

    fn check(&self, envelope: &Envelope) -> Result<Verified, Refusal> {
        check(
            envelope,
            &Situation {
                now: self.now,
                host: &self.host,
                keys: &self.ring,
                nonces: &self.nonces,
                current_release: &|_, _| self.current,
            },
        )
    }

    async fn refused(&self, signer: &Signer, change: &Change) -> Refusal {
        let envelope = signer.seal(change).await.expect("sealed");
        let refusal = self.check(&envelope).expect_err("refused");
        let fingerprint = signer.public_key().fingerprint();
        assert_eq!(refusal.fingerprint(), Some(&fingerprint));
        assert!(refusal.to_string().contains(fingerprint.as_str()), "{refusal}");
        assert!(!refusal.next().is_empty());
        refusal
    }
}

const DEPLOY_SHOP: &str = r#"[{"deploy": {"apps": ["shop"]}}]"#;

#[tokio::test]
async fn a_change_that_is_in_order_passes_and_names_its_signer() {
    let mut world = World::new();
    let signer = world.enrol("dev", DEPLOY_SHOP);
    let mut change = change(Verb::Deploy(Box::new(release())));
    change.expects = Expectation::Release(Some(ReleaseNumber(41)));
    let envelope = signer.seal(&change).await.expect("sealed");
    let verified = world.check(&envelope).expect("passes");
    assert_eq!(verified.change, change);
    assert_eq!(verified.signer, "dev");
    assert_eq!(verified.fingerprint, signer.public_key().fingerprint());
    assert_eq!(
        verified.payload_digest,
        Digest::of(&envelope.payload_bytes().expect("bytes"))
    );
}

#[tokio::test]
async fn unknown_keys_and_altered_bytes_are_refused() {
    let mut world = World::new();
    let signer = world.enrol("dev", DEPLOY_SHOP);
    let stranger = world.keys.ed25519("stranger");
    let refusal = world.refused(&stranger, &change(Verb::AppRestart)).await;
    assert_eq!(refusal.code(), "unknown-key");
    assert!(refusal.next().contains("appliance keys add"));

    let envelope = signer.seal(&change(Verb::AppRestart)).await.expect("sealed");
    let bytes = envelope.payload_bytes().expect("bytes");
    for place in (0..bytes.len()).step_by(7) {
        let mut altered = bytes.clone();
        altered[place] ^= 1;
        let altered = Envelope::new(&altered, envelope.signature.clone());
        let refusal = world.check(&altered).expect_err("refused");
        assert_eq!(refusal.code(), "bad-signature", "byte {place}");
    }
    // Somebody else's signature under the same payload.
    let forged = Envelope {
        signature: stranger.sign(&bytes).await.expect("signed"),
        ..envelope.clone()
    };
    assert_eq!(world.check(&forged).expect_err("refused").code(), "unknown-key");
    let broken = Envelope {
        signature: "-----BEGIN SSH SIGNATURE-----".to_owned(),
        ..envelope.clone()
    };
    assert_eq!(
        world.check(&broken).expect_err("refused").code(),
        "malformed-signature"
    );
    let broken = Envelope {
        payload: "§".to_owned(),
        ..envelope
    };
    assert_eq!(
        world.check(&broken).expect_err("refused").code(),
        "malformed-change"
    );
    let nonsense = Envelope::new(b"{}", signer.sign(b"{}").await.expect("signed"));
    assert_eq!(
        world.check(&nonsense).expect_err("refused").code(),
        "malformed-change"
    );
}

#[tokio::test]
async fn permissions_are_per_app_destination_and_power() {
    let mut world = World::new();
    let admin = world.enrol("admin", r#"["admin"]"#);
    let staging = world.enrol("staging", r#"[{"deploy": {"apps": ["shop@staging"]}}]"#);
    let operator = world.enrol("operator", r#"[{"operate": {"apps": ["*"]}}]"#);
    let reader = world.enrol("reader", r#"[{"read": {"apps": ["*"]}}]"#);
    let key = Verb::KeyRemove {
        fingerprint: reader.public_key().fingerprint(),
    };
    let deploy = change(Verb::Deploy(Box::new(release())));
    let mut production = deploy.clone();
    production.destination = None;
    if let Verb::Deploy(release) = &mut production.verb {
        release.destination = None;
    }
    let table: [(&Signer, &Change, bool); 10] = [
        (&admin, &deploy, true),
        (&admin, &change(key.clone()), true),
        (&staging, &deploy, true),
        (&staging, &production, false),
        (&staging, &change(Verb::AppRestart), false),
        (&staging, &change(key.clone()), false),
        (&operator, &change(Verb::AppRestart), true),
        (&operator, &deploy, false),
        (&operator, &change(key), false),
        (&reader, &change(Verb::AppRestart), false),
    ];
    for (signer, change, allowed) in table {
        let outcome = world.check(&signer.seal(change).await.expect("sealed"));
        let who = signer.public_key().comment();
        match outcome {
            Ok(_) => assert!(allowed, "{who} {}", change.verb.name()),
            Err(refusal) => {
                assert!(!allowed, "{who}: {refusal}");
                assert_eq!(refusal.code(), "not-permitted");
            }
        }
    }
    let entry = world
        .ring
        .find(&staging.public_key().fingerprint())
        .expect("enrolled");
    let app = AppName::parse("shop").expect("name");
    assert!(entry.allows(
        Power::Read,
        Some(&app),
        Destination::parse("staging").ok().as_ref()
    ));
    assert!(!entry.allows(Power::Read, Some(&app), None));
    assert!(!entry.allows(Power::Read, None, None));
}

#[tokio::test]
async fn other_hosts_windows_replays_and_moved_releases_are_refused() {
    let mut world = World::new();
    let signer = world.enrol("dev", DEPLOY_SHOP);
    let good = change(Verb::AppRestart);

    let mut other = good.clone();
    other.host = HostId::parse(&good.host.as_str().replace("qgpq", "pgqp")).expect("identity");
    assert_eq!(world.refused(&signer, &other).await.code(), "other-host");

    let mut long = good.clone();
    long.expires_at = long.issued_at + MAX_WINDOW + SignedDuration::from_secs(1);
    assert_eq!(world.refused(&signer, &long).await.code(), "window-too-long");

    let now = world.now;
    world.now = good.issued_at - MAX_SKEW - SignedDuration::from_secs(1);
    let early = world.refused(&signer, &good).await;
    assert_eq!(early.code(), "not-yet-valid");
    let text = early.to_string();
    assert!(
        text.contains(&good.issued_at.to_string()) && text.contains(&world.now.to_string()),
        "both clocks: {text}"
    );
    world.now = good.issued_at - MAX_SKEW;
    assert!(
        world.check(&signer.seal(&good).await.expect("sealed")).is_ok(),
        "a little skew is fine"
    );

    world.now = good.expires_at + MAX_SKEW + SignedDuration::from_secs(1);
    let late = world.refused(&signer, &good).await;
    assert_eq!(late.code(), "expired");
    assert!(late.next().contains("timedatectl"));

    world.now = now;
    assert!(world.nonces.spend(&good, now));
    assert!(!world.nonces.spend(&good, now), "a nonce is spent once");
    assert_eq!(world.refused(&signer, &good).await.code(), "replayed");

    let mut moved = good.clone();
    moved.nonce = Nonce::from_bytes([8; 16]);
    moved.expects = Expectation::Release(Some(ReleaseNumber(40)));
    let refusal = world.refused(&signer, &moved).await;
    assert_eq!(refusal.code(), "release-moved");
    assert!(
        refusal.to_string().contains("v40") && refusal.to_string().contains("v41"),
        "{refusal}"
    );
    moved.expects = Expectation::Release(None);
    assert_eq!(world.refused(&signer, &moved).await.code(), "release-moved");
}

#[test]
fn a_nonce_is_kept_as_long_as_its_change_could_pass() {
    let mut ledger = NonceLedger::default();
    let first = change(Verb::AppRestart);
    assert!(ledger.spend(&first, first.issued_at));
    ledger.prune(first.expires_at + MAX_SKEW);
    assert!(ledger.contains(&first.nonce), "still inside the window with skew");
    ledger.prune(first.expires_at + MAX_SKEW + SignedDuration::from_secs(1));
    assert!(ledger.is_empty());
    let text = serde_json::to_string(&ledger).expect("JSON");
    assert_eq!(serde_json::from_str::<NonceLedger>(&text).expect("reads"), ledger);
}

#[tokio::test]
async fn keys_are_enrolled_and_removed_by_signed_changes_but_never_the_last_administrator() {
    let mut world = World::new();
    let admin = world.enrol("admin", r#"["admin"]"#);
    world.keys.ed25519("new");
    let add = change(Verb::KeyAdd {
        key: world.keys.public("new"),
        permissions: serde_json::from_str(DEPLOY_SHOP).expect("permissions"),
        comment: String::new(),
    });
    let verified = world
        .check(&admin.seal(&add).await.expect("sealed"))
        .expect("passes");
    assert!(world.ring.apply(&verified).expect("applied"));
    let entry = world.ring.keys[1].clone();
    assert_eq!(
        (entry.comment.as_str(), entry.added_by.as_str()),
        ("new", verified.fingerprint.as_str())
    );

    let own = admin.public_key().fingerprint();
    assert!(matches!(
        world.ring.remove(&own),
        Err(KeyRingError::LastAdmin { .. })
    ));
    let mut weaker = world.ring.keys[0].clone();
    weaker.permissions.clone_from(&entry.permissions);
    assert!(matches!(
        world.ring.insert(weaker),
        Err(KeyRingError::LastAdmin { .. })
    ));
    world.ring.remove(&entry.fingerprint).expect("removed");
    assert!(matches!(
        world.ring.remove(&entry.fingerprint),
        Err(KeyRingError::NotThere { .. })
    ));
}

#[test]
fn the_ring_is_written_with_fingerprints_that_must_fit() {
    let keys = Keys::new();
    keys.ed25519("dev");
    let line = keys.public("dev");
    let text = serde_json::json!({"keys": [{"key": line, "permissions": ["admin", {"read": {"apps": ["*", "a@b"]}}]}]});
    let ring: KeyRing = serde_json::from_value(text.clone()).expect("reads");
    assert_eq!(
        (ring.keys[0].comment.as_str(), ring.keys[0].added_by.as_str()),
        ("dev", "bootstrap")
    );
    let again: KeyRing = serde_json::from_str(&serde_json::to_string(&ring).expect("JSON")).expect("reads");
    assert_eq!(again, ring);
    let mut wrong = text;
    wrong["keys"][0]["fingerprint"] = format!("SHA256:{}", "A".repeat(43)).into();
    assert!(serde_json::from_value::<KeyRing>(wrong).is_err());
}

#[test]
fn keys_that_would_break_the_files_they_are_written_to_are_refused() {
    let keys = Keys::new();
    keys.ed25519("dev");
    let line = keys.public("dev");
    let entry =
        |line: &str, comment: &str| KeyEntry::new(line, vec![Permission::Admin], comment, "bootstrap");
    assert!(entry(&line, "").is_ok());
    let two = format!("{}\nssh-ed25519 AAAA", line.trim());
    assert!(matches!(entry(&two, ""), Err(KeyRingError::Key { .. })));
    assert!(matches!(
        entry(&line, "me\nand another"),
        Err(KeyRingError::Comment { .. })
    ));
    assert!(matches!(
        entry(&line, &"x".repeat(300)),
        Err(KeyRingError::Comment { .. })
    ));
    let nothing = KeyEntry::new(&line, Vec::new(), "", "bootstrap");
    assert!(matches!(nothing, Err(KeyRingError::NoPermission { .. })));
}
