//! Nothing that strangers put into a bucket is taken for a manifest of ours.
#![no_main]

use appliance_backup::manifest::Manifest;
use appliance_backup::names::Subject;
use appliance_backup::sign::{self, Signer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let trusted = [Signer::from_seed(&[1; 32]).public()];
    assert!(sign::open::<Manifest>(data, &trusted).is_err());
    if let Ok(key) = std::str::from_utf8(data)
        && let Some((subject, id, object)) = Subject::of_key(key)
    {
        assert_eq!(subject.key(&id, &object), key);
    }
});
