//! What a token allows, and what it does not.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::change::{BlobRef, Fingerprint, Repository};

fn holder() -> Fingerprint {
    Fingerprint::parse(&format!("SHA256:{}", "A".repeat(43))).expect("fingerprint")
}

#[tokio::test]
async fn tokens_allow_exactly_what_was_signed() {
    let grants = Grants::default();
    let now: Timestamp = "2026-01-02T03:04:05Z".parse().expect("time");
    let clock = Arc::new(std::sync::Mutex::new(now));
    let authorize: Authorize = {
        let (grants, clock) = (grants.clone(), Arc::clone(&clock));
        Arc::new(move |parts, repository, action| match action {
            Action::Read => Ok(0),
            _ => grants.check(parts, repository, action, *clock.lock().expect("clock")),
        })
    };
    let server = serve(authorize).await;
    let listed = BlobRef {
        digest: Digest::of(b"{}"),
        size: 2,
    };
    let image = manifest(&listed.digest, 2, serde_json::json!([]));
    let own = BlobRef {
        digest: Digest::of(image.to_string().as_bytes()),
        size: image.to_string().len() as u64,
    };
    let grant = Grant {
        holder: holder(),
        expires: now + SignedDuration::from_mins(5),
        scope: Scope::blobs([&listed, &own]),
    };
    let token = grants.issue(grant.clone(), now);
    let bearer = format!("Bearer {}", token.expose());
    let auth = [("authorization", bearer.as_str())];
    let begin = |digest: &Digest, size: u64| format!("/v2/app/blobs/uploads/?expect={digest}&size={size}");

    let anonymous = server.ask("POST", &begin(&listed.digest, 2), &[], b"").await;
    assert_eq!(
        (anonymous.status, anonymous.code().as_str()),
        (401, "UNAUTHORIZED")
    );
    assert!(anonymous.headers.contains_key("www-authenticate"));
    let wrong = server
        .ask(
            "POST",
            &begin(&listed.digest, 2),
            &[("authorization", "Bearer 00")],
            b"",
        )
        .await;
    assert_eq!(wrong.status, 401);
    let other = server
        .ask("POST", &begin(&Digest::of(b"other"), 5), &auth, b"")
        .await;
    assert_eq!((other.status, other.code().as_str()), (403, "DENIED"));
    assert!(String::from_utf8_lossy(&other.body).contains(holder().as_str()));
    assert_eq!(
        server
            .ask("POST", &begin(&listed.digest, 3), &auth, b"")
            .await
            .status,
        403,
        "another size"
    );
    // Not announced, then finished as something that was not signed.
    let sneaky = server.ask("POST", "/v2/app/blobs/uploads/", &auth, b"").await;
    assert_eq!(sneaky.status, 202);
    let finish = format!("{}?digest={}", sneaky.header("location"), Digest::of(b"oo"));
    assert_eq!(server.ask("PUT", &finish, &auth, b"oo").await.status, 403);
    let finish = format!("{}?digest={}", sneaky.header("location"), listed.digest);
    assert_eq!(
        server.ask("PUT", &finish, &auth, &[b'x'; 5000]).await.status,
        413,
        "larger than anything signed"
    );

    let whole = format!("/v2/app/blobs/uploads/?digest={}", listed.digest);
    assert_eq!(server.ask("POST", &whole, &auth, b"{}").await.status, 201);
    let typed = [auth[0], ("content-type", media_type::OCI_MANIFEST)];
    let put = |reference: &str| format!("/v2/app/manifests/{reference}");
    let text = image.to_string();
    assert_eq!(
        server
            .ask("PUT", &put("latest"), &typed, text.as_bytes())
            .await
            .status,
        403,
        "no tags"
    );
    assert_eq!(
        server
            .ask("PUT", &put(own.digest.as_str()), &typed, text.as_bytes())
            .await
            .status,
        201
    );
    assert_eq!(
        server
            .ask("DELETE", &put(own.digest.as_str()), &auth, b"")
            .await
            .status,
        403
    );

    let tunnel = Scope::Repository {
        name: Repository::parse("app").expect("name"),
        bytes: 100,
    };
    let second = grants.issue(
        Grant {
            scope: tunnel,
            ..grant.clone()
        },
        now,
    );
    let basic = base64::Engine::encode(
        &base64::engine::general_purpose::STANDARD,
        format!("x:{}", second.expose()),
    );
    let basic = format!("Basic {basic}");
    let basic = [
        ("authorization", basic.as_str()),
        ("content-type", media_type::OCI_MANIFEST),
    ];
    assert_eq!(
        server
            .ask("PUT", &put("latest"), &basic, text.as_bytes())
            .await
            .status,
        201
    );
    let elsewhere = "/v2/other/blobs/uploads/";
    assert_eq!(server.ask("POST", elsewhere, &basic, b"").await.status, 403);

    *clock.lock().expect("clock") = grant.expires;
    assert_eq!(
        server.ask("POST", &whole, &auth, b"{}").await.status,
        401,
        "expired"
    );
    *clock.lock().expect("clock") = now;
    grants.revoke_holder(&holder());
    assert_eq!(
        server.ask("POST", &whole, &auth, b"{}").await.status,
        401,
        "revoked"
    );
}

/// Two layers, of which one takes an hour: the other must be there when the manifest comes.
#[test]
fn what_a_push_under_way_brings_is_known_until_nobody_hears_of_it_any_more() {
    let grants = Grants::default();
    let begun: Timestamp = "2026-01-02T03:04:05Z".parse().expect("time");
    let later = |minutes: i64| begun + SignedDuration::from_mins(minutes);
    let idle = SignedDuration::from_mins(30);
    let (layer, other) = (Digest::of(b"layer"), Digest::of(b"other"));
    let blob = BlobRef {
        digest: layer.clone(),
        size: 5,
    };
    let app = Repository::parse("app").expect("name");
    let grant = |scope: Scope| Grant {
        holder: holder(),
        expires: later(360),
        scope,
    };
    let token = grants.issue(grant(Scope::blobs([&blob])), begun);
    let kept = |minutes: i64, writing: &[&Token]| {
        let writing = writing.iter().map(|token| token.owner()).collect();
        grants.under_way(later(minutes), idle, &writing)
    };
    let only_layer = BTreeSet::from([layer.clone()]);
    assert_eq!(kept(29, &[]), only_layer);
    assert!(kept(31, &[]).is_empty(), "nobody came with the token any more");
    assert_eq!(
        kept(300, &[&token]),
        only_layer,
        "one request that takes for hours"
    );
    assert!(kept(361, &[&token]).is_empty(), "expired");

    let request = |token: &Token| {
        let bearer = format!("Bearer {}", token.expose());
        let request = http::Request::builder().header("authorization", bearer);
        request.body(()).expect("a request").into_parts().0
    };
    let comes = |token: &Token, action: &Action<'_>, minutes: i64| {
        let allowed = grants.check(&request(token), Some(&app), action, later(minutes));
        allowed.expect("allowed");
    };
    comes(&token, &Action::Continue, 25);
    assert_eq!(kept(50, &[]), only_layer, "it came again meanwhile");

    // A stock client does not say beforehand what it brings.
    let scope = Scope::Repository {
        name: app.clone(),
        bytes: 100,
    };
    let tunnel = grants.issue(grant(scope), later(60));
    assert!(kept(61, &[]).is_empty());
    comes(&tunnel, &Action::Finish { digest: &other }, 62);
    assert_eq!(kept(63, &[]), [other].into());
}
