//! Any sequence of requests is answered, never with a fault of ours, and every blob has the digest it is named by.
#![no_main]

use std::sync::Arc;

use appliance_push::change::Digest;
use appliance_push::registry::Registry;
use appliance_push::store::{GcOptions, Limits, Store};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use libfuzzer_sys::fuzz_target;

// Requests are separated by 0xff; each is a line `METHOD path [Header: value]…` and a body.
fuzz_target!(|data: &[u8]| {
    let directory = tempfile::tempdir().expect("directory");
    let limits = Limits { reserve: 0, max_blob: 1 << 20, max_manifest: 1 << 16, max_uploads: 8 };
    let store = Store::open(directory.path(), limits).expect("opens");
    let registry = Registry::new(store.clone(), Arc::new(|_, _, _| Ok(u64::MAX)));
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    let mut location = String::new();
    for part in data.split(|byte| *byte == 0xff).take(8) {
        let end = part.iter().position(|byte| *byte == b'\n').unwrap_or(part.len());
        let (head, body) = part.split_at(end);
        let body = Bytes::copy_from_slice(body.get(1..).unwrap_or_default());
        let digest = Digest::of(&body);
        let head = String::from_utf8_lossy(head).replace("$D", digest.as_str()).replace("$L", &location);
        let mut words = head.split(' ');
        let (method, path) = (words.next().unwrap_or("GET"), words.next().unwrap_or("/v2/"));
        let mut request = Request::builder().method(method).uri(path);
        for pair in words.filter_map(|word| word.split_once(':')) {
            request = request.header(pair.0, pair.1);
        }
        let Ok(request) = request.body(Full::new(body)) else { continue };
        runtime.block_on(async {
            let response = registry.answer(request).await;
            let status = response.status();
            assert!(!status.is_server_error() || status == 507, "{status}");
            if let Some(place) = response.headers().get("location").and_then(|place| place.to_str().ok()) {
                location = place.to_owned();
            }
            let _body = response.into_body().collect().await.expect("whole");
        });
    }
    let blobs = directory.path().join("blobs/sha256");
    for prefix in blobs.read_dir().expect("list").flatten() {
        for blob in prefix.path().read_dir().expect("list").flatten() {
            let bytes = std::fs::read(blob.path()).expect("blob");
            assert_eq!(Digest::of(&bytes).hex(), blob.file_name().to_string_lossy());
        }
    }
    let all = GcOptions { roots: Default::default(), keep_tagged: false, min_age: Default::default() };
    store.collect(&all, std::time::SystemTime::now() + std::time::Duration::from_secs(9)).expect("collects");
});
