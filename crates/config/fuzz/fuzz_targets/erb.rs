//! ERB: no template may make it panic or hang; commands are refused, not run.
//!
//! `cargo +nightly fuzz run erb -- -max_total_time=300`

#![no_main]

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use appliance_config::erb::{Context, render};
use appliance_config::runner::{Invocation, Outcome, Runner};

struct Nothing;

impl Runner for Nothing {
    fn run(&self, _: &Invocation) -> io::Result<Outcome> {
        Err(io::Error::new(io::ErrorKind::NotFound, "nothing is run here"))
    }
}

libfuzzer_sys::fuzz_target!(|text: &str| {
    let mut context = Context {
        env: BTreeMap::from([
            ("HOST".to_owned(), "a,b".to_owned()),
            ("PATH".to_owned(), "/nonexistent".to_owned()),
        ]),
        directory: "/nonexistent".into(),
        runner: &Nothing,
        now: jiff::Zoned::default(),
    };
    let whole = format!("<%= {text} %>");
    for template in [text, &whole] {
        if let Ok(rendered) = render(template, Path::new("x"), &mut context) {
            let (line, column) = rendered.origin(1, 1);
            assert!(line >= 1 && column >= 1);
        }
    }
});
