//! The whole way from a file to the resolved configuration, ERB included; commands are refused, not run.
//!
//! `cargo +nightly fuzz run whole -- -max_total_time=300`

#![no_main]

use std::collections::BTreeMap;
use std::io;

use appliance_config::runner::{Invocation, Outcome, Runner};
use appliance_config::{LoadOptions, load};

struct Nothing;

impl Runner for Nothing {
    fn run(&self, _: &Invocation) -> io::Result<Outcome> {
        Err(io::Error::new(io::ErrorKind::NotFound, "nothing is run here"))
    }
}

libfuzzer_sys::fuzz_target!(init: appliance_config::yaml::silence_caught_panics(), |text: &str| {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let config = directory.path().join("config");
    std::fs::create_dir(&config).expect("an empty directory");
    std::fs::write(config.join("deploy.yml"), text).expect("a small file");
    let now = jiff::Zoned::new(jiff::Timestamp::UNIX_EPOCH, jiff::tz::TimeZone::UTC);
    let mut options = LoadOptions::new(directory.path(), BTreeMap::new(), now);
    options.version = Some("v1".to_owned());
    if let Err(problems) = load(&options, &Nothing) {
        assert!(!problems.0.is_empty());
        let _shown = problems.to_string();
    }
});
