//! The YAML reader: no input may make it panic, hang or grow without bounds.
//!
//! `cargo +nightly fuzz run reader -- -max_total_time=300`

#![no_main]

use appliance_config::yaml::read;

libfuzzer_sys::fuzz_target!(init: appliance_config::yaml::silence_caught_panics(), |text: &str| {
    if let Ok(document) = read(text, 0, &|line, column| (line, column))
        && let Some(root) = document.root
    {
        let _shown = root.to_s();
        let _json = root.to_json();
    }
});
