//! Nothing that strangers put into a bucket is taken for a manifest of ours, and what a trusted host signs is read or refused.
#![no_main]

use appliance_backup::manifest::Manifest;
use appliance_backup::names::Subject;
use appliance_backup::sign::{self, Signer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let signer = Signer::from_seed(&[1; 32]);
    let trusted = [signer.public()];
    assert!(sign::open::<Manifest>(data, &trusted).is_err());
    if let Ok(value) = serde_json::from_slice::<serde_json::Value>(data)
        && let Ok(document) = signer.seal(&value)
        && let Ok(manifest) = sign::open::<Manifest>(&document, &trusted)
    {
        let key = manifest.subject.key(&manifest.id, "manifest.json");
        assert!(Subject::of_key(&key).is_some(), "{key}");
    }
    if let Ok(key) = std::str::from_utf8(data)
        && let Some((subject, id, object)) = Subject::of_key(key)
    {
        assert_eq!(subject.key(&id, &object), key);
    }
});
