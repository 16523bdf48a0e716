#![no_main]

use appliance_proxy::proxy_header::{Progress, read};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // What is asked for is always more than there is, and what is found lies within it.
    match read(bytes) {
        Ok(Progress::More(least)) => assert!(least > bytes.len()),
        Ok(Progress::Complete(header)) => {
            assert!(header.length <= bytes.len());
            assert_eq!(read(&bytes[..header.length]), Ok(Progress::Complete(header)));
        }
        Err(_) => {}
    }
});
