//! Ways into what meets strangers' bytes, for the targets in `fuzz/`; no part of the crate's interface.
//!
//! Each function panics when a promise is broken.

/// A request's head: what is accepted is written anew and accepted again, with the same meaning.
pub fn request(bytes: &[u8]) {
    crate::h1::fuzzing::request(bytes);
}

/// A body in chunks, whole and in two parts.
pub fn chunks(bytes: &[u8]) {
    crate::h1::fuzzing::chunks(bytes);
}

/// A response's head.
pub fn response(bytes: &[u8]) {
    crate::h1::fuzzing::response(bytes);
}

/// A snapshot: what is accepted is written and read again unchanged.
pub fn snapshot(bytes: &[u8]) {
    if let Ok(snapshot) = crate::store::parse(bytes) {
        let again = serde_json::to_vec(&snapshot).expect("a snapshot turns into JSON");
        assert_eq!(crate::store::parse(&again).as_ref(), Ok(&snapshot));
    }
    crate::store::read_as_stored(bytes);
}
