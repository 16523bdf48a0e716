#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| appliance_proxy::fuzzing::chunks(bytes));
