//! The payload's form, as both sides must agree on it.

use proptest::prelude::*;

use super::*;

const HOST: &str = "age1qyqszqgpqyqszqgpqyqszqgpqyqszqgpqyqszqgpqyqszqgpqyqs3290gq";

/// A release with every part filled in.
pub(crate) fn release() -> Release {
    let digest = Digest::of(b"image");
    serde_json::from_value(serde_json::json!({
        "service": "shop", "destination": "staging", "version": "abc123", "host": "192.0.2.1",
        "image": {"repository": "org/shop", "digest": digest, "config": digest, "tag": "abc123",
                  "platform": {"os": "linux", "architecture": "amd64"}},
        "roles": [{
            "name": "web", "primary": true, "cmd": ["bin/server", "-p", "80"],
            "env_clear": {"RAILS_ENV": "production", "EMPTY": null}, "env_secret": {"KEY": "MASTER_KEY"},
            "labels": {"a": "b"}, "options": {"cpus": ["2"], "init": [null]}, "volumes": ["/data:/data"],
            "logging": {"driver": "local", "options": {"max-size": "10m"}}, "stop_timeout": 10,
            "asset_path": "/rails/public/assets",
            "proxy": {"service_name": "shop-web-staging", "hosts": ["shop.example.com"], "app_port": 3000,
                      "tls": {"secrets": {"certificate": "CERT", "private_key": "CERT_KEY"}},
                      "ssl_redirect": true, "path_prefixes": ["/"], "strip_path_prefix": true,
                      "healthcheck": {"path": "/up", "interval": 1, "timeout": 5},
                      "response_timeout": 30, "deploy_timeout": 30, "drain_timeout": 30,
                      "buffering": {"requests": true, "responses": false, "memory": 1048576}}}],
        "deploy_timeout": 30, "drain_timeout": 30, "readiness_delay": 7, "retain": 5,
        "release_command": {"command": ["bin/migrate"], "role": "web", "timeout": 300},
        "watch": {"window": 60, "error_rate": 0.05},
        "sealed_secrets": "", "config_digest": digest, "created_by": "dev@example.com",
    }))
    .expect("a release")
}

/// A change that passes every check of form.
pub(crate) fn change(verb: Verb) -> Change {
    let (app, destination) = match &verb {
        Verb::Deploy(release) => (Some(release.service.clone()), release.destination.clone()),
        verb if verb.needs_app() => (Some(AppName::parse("shop").expect("name")), None),
        _ => (None, None),
    };
    let issued_at: Timestamp = "2026-01-02T03:04:05Z".parse().expect("time");
    Change {
        version: VERSION,
        host: HostId::parse(HOST).expect("identity"),
        app,
        destination,
        verb,
        issued_at,
        expires_at: issued_at + jiff::SignedDuration::from_mins(5),
        nonce: Nonce::from_bytes([7; 16]),
        expects: Expectation::Any,
    }
}

#[test]
fn a_whole_release_survives_the_way_and_keeps_its_form() {
    let mut change = change(Verb::Deploy(Box::new(release())));
    change.expects = Expectation::Release(Some(ReleaseNumber(41)));
    let payload = change.to_payload().expect("payload");
    assert_eq!(Change::from_payload(&payload).expect("reads"), change);
    let value: serde_json::Value = serde_json::from_slice(&payload).expect("JSON");
    assert_eq!(
        value["verb"]["deploy"]["roles"][0]["env_clear"]["EMPTY"],
        serde_json::Value::Null
    );
    assert_eq!(value["expects"]["release"], 41);
    let none = serde_json::to_value(Expectation::Release(None)).expect("JSON");
    assert_eq!(none, serde_json::json!({"release": null}));
    assert_eq!(
        serde_json::to_value(Verb::AppRestart).expect("JSON"),
        serde_json::json!("app-restart")
    );
}

#[test]
fn forms_that_could_mean_something_else_are_refused() {
    let good = serde_json::to_value(change(Verb::AppRestart)).expect("JSON");
    let with = |path: &str, value: serde_json::Value| {
        let mut changed = good.clone();
        changed[path] = value;
        Change::from_payload(changed.to_string().as_bytes())
    };
    assert!(with("version", 1.into()).is_ok());
    assert!(matches!(
        with("version", 2.into()),
        Err(ChangeError::Version { found: 2 })
    ));
    assert!(matches!(with("surprise", 1.into()), Err(ChangeError::Json(_))));
    assert!(matches!(
        with("verb", "format-disk".into()),
        Err(ChangeError::Json(_))
    ));
    assert!(matches!(with("app", "../etc".into()), Err(ChangeError::Json(_))));
    assert!(matches!(
        with("host", "age1short".into()),
        Err(ChangeError::Json(_))
    ));
    assert!(matches!(
        with("app", serde_json::Value::Null),
        Err(ChangeError::Inconsistent { .. })
    ));
    let twice = good.to_string().replacen('{', "{\"version\":1,", 1);
    assert!(matches!(
        Change::from_payload(twice.as_bytes()),
        Err(ChangeError::Json(_))
    ));
    let long = vec![b' '; PAYLOAD_LIMIT + 1];
    assert!(matches!(
        Change::from_payload(&long),
        Err(ChangeError::TooLarge { .. })
    ));
}

#[test]
fn a_release_of_another_app_or_with_impossible_roles_is_refused() {
    let mut other = change(Verb::Deploy(Box::new(release())));
    other.app = AppName::parse("bank").ok();
    assert!(matches!(
        other.to_payload(),
        Err(ChangeError::Inconsistent { .. })
    ));
    let mut other = change(Verb::Deploy(Box::new(release())));
    other.destination = None;
    assert!(matches!(
        other.to_payload(),
        Err(ChangeError::Inconsistent { .. })
    ));
    let mut twice = release();
    twice.roles.push(twice.roles[0].clone());
    assert!(twice.consistent().is_err());
    let mut nowhere = release();
    nowhere.roles[0].name = RoleName::parse("job").expect("name");
    assert!(
        nowhere.consistent().is_err(),
        "the release command's role is not there"
    );
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let _outcome = Change::from_payload(&bytes);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let envelope = Envelope { payload: text.clone(), signature: text };
        let _outcome = envelope.payload_bytes();
        let _outcome = crate::sign::Signature::parse(&envelope.signature);
    }
}
