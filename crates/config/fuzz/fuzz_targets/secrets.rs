//! The grammar of secrets files: no input may make it panic or hang, and only commands of the file are run.
//!
//! `cargo +nightly fuzz run secrets -- -max_total_time=300`

#![no_main]

use std::collections::BTreeMap;
use std::convert::Infallible;

use appliance_config::secrets::dotenv::parse;
use appliance_config::secrets::shell;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let env = BTreeMap::from([("A".to_owned(), "x$(y)".to_owned())]);
    let mut ran = 0;
    let parsed = parse::<Infallible>(text, &env, true, &mut |command| {
        ran += 1;
        Ok(format!("$(never) {}", command.text))
    });
    // Each command takes at least the four characters of `$(x)`; what a command prints is never run.
    assert!(ran * 4 <= text.len());
    drop(parsed);
    if let Ok(words) = shell::split(text) {
        let again: Vec<String> = words.iter().map(|word| shell::escape(word)).collect();
        assert_eq!(shell::split(&again.join(" ")).as_deref(), Ok(&words[..]));
    }
});
