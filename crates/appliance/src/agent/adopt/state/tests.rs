use super::*;

use proptest::prelude::*;
use serde_json::{Value, json};

/// One service as kamal-proxy 0.9.2 writes it when Kamal 2 deployed it.
fn saved() -> Value {
    json!({
        "name": "shop-web",
        "options": {
            "hosts": ["shop.example", "www.shop.example"], "path_prefixes": ["/"],
            "tls_enabled": true, "tls_certificate_path": "", "tls_private_key_path": "", "tls_redirect": true,
            "canonical_host": "", "acme_directory": "https://acme.example/directory",
            "acme_cache_path": "/home/kamal-proxy/.config/kamal-proxy/certs",
            "error_page_path": "", "strip_prefix": true,
            "writer_affinity_timeout": 3_000_000_000_i64, "read_targets_accept_websockets": false
        },
        "target_options": {
            "health_check_config": {"path": "/up", "port": 0, "interval": 1_000_000_000_i64, "timeout": 5_000_000_000_i64, "host": ""},
            "response_timeout": 30_000_000_000_i64, "buffer_requests": true, "buffer_responses": true,
            "max_memory_buffer_size": 1_048_576, "max_request_body_size": 0, "max_response_body_size": 0,
            "log_request_headers": ["Cache-Control"], "log_response_headers": null,
            "forward_headers": false, "scope_cookie_paths": false
        },
        "active_targets": ["0123456789ab:3000"], "active_readers": [],
        "rollout_targets": null, "rollout_readers": null,
        "pause_controller": {"state": 0, "stop_message": "", "fail_after": 0},
        "rollout_controller": null
    })
}

fn one(saved: &Value) -> Result<Service, StateError> {
    let services = parse(json!([saved]).to_string().as_bytes())?;
    Ok(services.into_iter().next().expect("there is one"))
}

#[test]
fn what_kamal_deployed_is_read_whole() {
    let found = one(&saved()).expect("read");
    assert_eq!(found.name, "shop-web");
    assert_eq!(found.hosts, ["shop.example", "www.shop.example"]);
    assert!(found.path_prefixes.is_empty(), "the root is no prefix");
    assert_eq!((found.container.as_str(), found.port), ("0123456789ab", 3000));
    assert_eq!(
        found.tls,
        Tls::Acme {
            directory: "https://acme.example/directory".to_owned(),
            cache: "/home/kamal-proxy/.config/kamal-proxy/certs".to_owned(),
        }
    );
    assert_eq!(
        (
            found.health_interval,
            found.health_timeout,
            found.response_timeout
        ),
        (1, 5, 30)
    );
    assert_eq!(found.stopped, None);
}

#[test]
fn the_form_of_earlier_versions_is_read_too() {
    let mut old = saved();
    old["active_target"] = json!("0123456789ab:80");
    old["active_targets"] = Value::Null;
    old["hosts"] = json!(["old.example"]);
    old["options"]["hosts"] = Value::Null;
    let found = one(&old).expect("read");
    assert_eq!((found.port, found.hosts), (80, vec!["old.example".to_owned()]));
}

#[test]
fn a_stopped_service_stays_stopped() {
    let mut stopped = saved();
    stopped["pause_controller"] = json!({"state": 2, "stop_message": "back at noon", "fail_after": 0});
    assert_eq!(
        one(&stopped).expect("read").stopped,
        Some("back at noon".to_owned())
    );
}

#[test]
fn what_would_be_lost_is_refused_by_name() {
    let set = |pointer: &str, value: Value| {
        let mut changed = saved();
        *changed.pointer_mut(pointer).expect("there") = value;
        one(&changed).expect_err("refused").to_string()
    };
    for (pointer, value, said) in [
        ("/active_targets", json!(["a:80", "b:80"]), "has 2 targets"),
        ("/active_targets", json!([]), "has 0 targets"),
        ("/active_targets", json!(["a:0"]), "no container and port"),
        ("/active_readers", json!(["a:80"]), "read targets"),
        ("/rollout_targets", json!(["a:80"]), "rollout in progress"),
        (
            "/pause_controller",
            json!({"state": 1, "stop_message": "", "fail_after": 1}),
            "is paused",
        ),
        (
            "/target_options/health_check_config/port",
            json!(8080),
            "another port",
        ),
    ] {
        let why = set(pointer, value);
        assert!(why.contains(said) && why.contains("shop-web"), "{pointer}: {why}");
    }
}

#[test]
fn a_field_of_another_version_is_refused_and_named() {
    let mut newer = saved();
    newer["options"]["teleport"] = json!(true);
    let why = crate::agent::chain(&one(&newer).expect_err("refused"));
    assert!(why.contains("0.9.2") && why.contains("teleport"), "{why}");
    assert!(parse(b"{}").is_err() && parse(b"").is_err() && parse(b"[1]").is_err());
    assert!(parse(b"[]").expect("nothing deployed").is_empty());
}

#[test]
fn a_name_that_is_there_twice_is_refused() {
    let twice = json!([saved(), saved()]).to_string();
    assert!(matches!(parse(twice.as_bytes()), Err(StateError::Twice(_))));
}

proptest! {
    /// Whatever a damaged disk made of the file: an answer, never a panic, and what is accepted can be routed.
    #[test]
    fn any_bytes_are_answered(at in 0_usize..2000, byte in any::<u8>(), cut in 0_usize..2000) {
        let mut text = json!([saved()]).to_string().into_bytes();
        let length = text.len();
        text[at % length] = byte;
        text.truncate(length - cut % 3);
        if let Ok(services) = parse(&text) {
            for service in services {
                prop_assert!(service.port > 0 && !service.container.is_empty());
                prop_assert!(service.health_interval > 0 && service.response_timeout > 0);
            }
        }
    }

    /// Durations of any size stay whole seconds from 1.
    #[test]
    fn durations_never_become_none(nanoseconds in any::<i64>()) {
        let found = seconds(nanoseconds);
        prop_assert!(found >= 1);
        if nanoseconds > 0 && nanoseconds < i64::from(u32::MAX) * 1_000_000_000 {
            prop_assert!(i64::from(found) * 1_000_000_000 >= nanoseconds);
        }
    }
}
