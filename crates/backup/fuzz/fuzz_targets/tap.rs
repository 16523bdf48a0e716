//! Whatever comes instead of an archive, in whatever pieces: an error or the same counts, never a panic.
#![no_main]

use appliance_backup::names::Kind;
use appliance_backup::tap::Tap;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some(([cut, kind], data)) = data.split_first_chunk::<2>().map(|(head, data)| (*head, data)) else { return };
    let kind = match kind % 4 {
        0 => Kind::Postgres,
        1 => Kind::Redis,
        2 => Kind::Sqlite,
        _ => Kind::Volume,
    };
    let mut whole = Tap::of(kind);
    let one = whole.feed(data).and_then(|()| whole.finish());
    let mut pieces = Tap::of(kind);
    let fed = data
        .chunks(usize::from(cut) + 1)
        .try_for_each(|piece| pieces.feed(piece));
    let many = fed.and_then(|()| pieces.finish());
    assert_eq!(one.ok(), many.ok());
});
