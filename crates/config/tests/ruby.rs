//! Templates beyond the native subset, through a real `ruby`.
//!
//! `cargo xtask test` installs one; where there is none, the tests say so and pass.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a test fails loudly, and its files need not outlive a crash"
)]

use std::collections::BTreeMap;
use std::path::Path;

use appliance_config::erb::{Context, ErbError, render};
use appliance_config::runner::{ProcessRunner, find_on_path};

/// Renders one template after another with one environment, as a base file and its destination are.
fn render_all(templates: &[&str]) -> Option<Vec<Result<String, ErbError>>> {
    let env: BTreeMap<String, String> = std::env::vars()
        .filter(|(name, _)| name == "PATH")
        .chain([("APP".to_owned(), "shop".to_owned())])
        .collect();
    if find_on_path("ruby", &env).is_none() {
        eprintln!("left out: no ruby is installed");
        return None;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut context = Context {
        env,
        directory: directory.path().to_owned(),
        runner: &ProcessRunner {
            forward_stderr: false,
        },
        now: jiff::Zoned::default(),
    };
    let rendered = templates
        .iter()
        .map(|text| render(text, Path::new("config/deploy.yml"), &mut context).map(|rendered| rendered.text))
        .collect();
    Some(rendered)
}

#[test]
fn what_needs_ruby_is_given_to_ruby() {
    let templates = [
        "<% class Name; def to_s = ENV['APP'].upcase; end -%>\nservice: <%= Name.new %>\n",
        "<%= case { role: 'web', n: 2 }\nin { role: String => role, n: } then role * n\nend %>",
        "<%= ['abc'].pack('m0') %> <%= 'né' %>",
        "a\n<%- if Struct.new(:on).new(true).on -%>\nb\n<%- end -%>\nc\n",
        "<% puts 'printed by the template'; $stdout.flush %><%= Rational(1, 2) %>",
    ];
    let Some(rendered) = render_all(&templates) else {
        return;
    };
    let texts: Vec<String> = rendered.into_iter().map(Result::unwrap).collect();
    assert_eq!(
        texts,
        ["service: SHOP\n", "webweb", "YWJj né", "a\nb\nc\n", "1/2"]
    );
}

#[test]
fn variables_that_ruby_sets_reach_the_next_file() {
    let Some(rendered) = render_all(&[
        "<% Struct.new(:x); ENV['REGION'] = 'eu'; ENV.delete('APP') %>",
        "<%= ENV['REGION'] %> <%= ENV['APP'].inspect %>",
    ]) else {
        return;
    };
    assert_eq!(rendered[1].as_deref().unwrap(), "eu nil");
}

#[test]
fn what_ruby_raises_is_told_with_its_line() {
    let Some(rendered) = render_all(&[
        "a\n\n<% Struct.new(:x); raise KeyError, 'no such host' %>",
        "a\n<%= Struct.new(:x) + %>",
    ]) else {
        return;
    };
    match &rendered[0] {
        Err(ErbError::Raised {
            line, class, message, ..
        }) => assert_eq!((*line, &**class, &**message), (3, "KeyError", "no such host")),
        other => panic!("{other:?}"),
    }
    assert!(
        matches!(rendered[1], Err(ErbError::Syntax { line: 2, .. })),
        "{:?}",
        rendered[1]
    );
}
