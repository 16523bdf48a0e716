//! Whatever comes instead of an archive, in whatever pieces: an error or the same counts, never a panic.
#![no_main]

use appliance_backup::tap::Tap;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((cut, data)) = data.split_first() else { return };
    let mut whole = Tap::default();
    let one = whole.feed(data).and_then(|()| whole.finish());
    let mut pieces = Tap::default();
    let fed = data
        .chunks(usize::from(*cut) + 1)
        .try_for_each(|piece| pieces.feed(piece));
    let many = fed.and_then(|()| pieces.finish());
    assert_eq!(one.ok(), many.ok());
});
