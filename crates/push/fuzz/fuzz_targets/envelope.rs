//! Whatever arrives as a signed change is refused or read, and what is read survives being written again.
#![no_main]

use appliance_push::change::{Change, Envelope, HostId};
use appliance_push::sign::Signature;
use appliance_push::trust::{KeyRing, NonceLedger, Situation, check};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(change) = Change::from_payload(data) {
        let again = change.to_payload().expect("what was read can be written");
        assert_eq!(Change::from_payload(&again).expect("and read again"), change);
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _read = Signature::parse(text);
    }
    let Ok(envelope) = serde_json::from_slice::<Envelope>(data) else { return };
    let host = HostId::parse(&format!("age1{}", "q".repeat(58))).expect("an identity");
    let situation = Situation {
        now: jiff::Timestamp::UNIX_EPOCH,
        host: &host,
        keys: &KeyRing::default(),
        nonces: &NonceLedger::default(),
        current_release: &|_, _| None,
    };
    // Nobody is enrolled, so nothing may pass.
    let refusal = check(&envelope, &situation).expect_err("refused");
    assert!(!refusal.to_string().is_empty() && !refusal.next().is_empty());
});
