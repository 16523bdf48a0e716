//! Any sequence of requests is answered, never with a fault of ours, and every blob has the digest it is named by.

use proptest::prelude::*;

use super::*;
use crate::store::GcOptions;

/// One request; `{D}` stands for the digest of its body, `{L}` for the last Location.
type Asked = (
    &'static str,
    &'static str,
    Vec<(&'static str, &'static str)>,
    Vec<u8>,
);

fn asked() -> impl Strategy<Value = Asked> {
    let method = prop::sample::select(vec!["GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS"]);
    let path = prop::sample::select(vec![
        "{L}",
        "{L}?digest={D}",
        "/v2/a/blobs/uploads/",
        "/v2/a/blobs/uploads/?digest={D}",
        "/v2/a/blobs/uploads/?expect={D}&size=4",
        "/v2/a/blobs/uploads/?mount={D}&from=b",
        "/v2/a/blobs/{D}",
        "/v2/a/manifests/tag",
        "/v2/a/manifests/{D}",
        "/v2/a/tags/list?n=1",
        "/v2/a/referrers/{D}",
        "/v2/%2e%2e/blobs/uploads/",
        "/v2/a/blobs/uploads/../../../x",
    ]);
    let header = prop::sample::select(vec![
        ("content-range", "0-3"),
        ("content-range", "4-1"),
        ("content-range", "18446744073709551615-18446744073709551615"),
        ("range", "bytes=1-2"),
        ("range", "bytes=-0"),
        ("range", "bytes=18446744073709551615-"),
        ("content-type", media_type::OCI_MANIFEST),
        ("content-type", media_type::OCI_INDEX),
        ("authorization", "Bearer x"),
    ]);
    let body = prop_oneof![
        Just(Vec::new()),
        Just(b"blob".to_vec()),
        Just(b"{\"schemaVersion\":2}".to_vec()),
        Just(
            format!(
                "{{\"schemaVersion\":2,\"mediaType\":\"{}\",\"manifests\":[]}}",
                media_type::OCI_INDEX
            )
            .into_bytes()
        ),
        prop::collection::vec(any::<u8>(), 0..64),
    ];
    (method, path, prop::collection::vec(header, 0..3), body)
}

async fn ask_all(registry: &Registry, sequence: Vec<Asked>) {
    let mut location = "/v2/a/blobs/uploads/x".to_owned();
    for (method, path, headers, body) in sequence {
        let path = path
            .replace("{D}", Digest::of(&body).as_str())
            .replace("{L}", &location);
        let mut request = Request::builder().method(method).uri(&path);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(Bytes::from(body))).expect("a request");
        let response = registry.answer(request).await;
        let status = response.status();
        assert!(!status.is_server_error(), "{method} {path}: {status}");
        if let Some(place) = response.headers().get("location") {
            location = place.to_str().expect("text").to_owned();
        }
        response.into_body().collect().await.expect("a whole answer");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn requests_in_any_order_find_an_answer(sequence in prop::collection::vec(asked(), 1..24)) {
        let directory = tempfile::tempdir().expect("directory");
        let store = Store::open(directory.path(), Limits { reserve: 0, ..Limits::default() }).expect("opens");
        let registry = Registry::new(store.clone(), everything());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime");
        runtime.block_on(ask_all(&registry, sequence));
        for prefix in std::fs::read_dir(directory.path().join("blobs/sha256")).expect("list").flatten() {
            for blob in std::fs::read_dir(prefix.path()).expect("list").flatten() {
                let bytes = std::fs::read(blob.path()).expect("blob");
                let digest = Digest::of(&bytes);
                let name = blob.file_name().into_string().expect("text");
                prop_assert_eq!(digest.hex(), name);
            }
        }
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(60);
        store.clean_uploads(later, std::time::Duration::from_secs(1)).expect("cleans");
        let all = GcOptions { roots: Default::default(), keep_tagged: false, min_age: Default::default() };
        store.collect(&all, later).expect("collects");
        prop_assert_eq!(store.usage().expect("usage"), Default::default());
    }
}
