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

use appliance_config::erb::{Context, ErbError, Rendered, render};
use appliance_config::runner::{ProcessRunner, find_on_path};

/// Renders one template after another with one environment, as a base file and its destination are.
fn render_all(templates: &[&str]) -> Option<Vec<Result<Rendered, ErbError>>> {
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
        .map(|text| render(text, Path::new("config/deploy.yml"), &mut context))
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
        "<% print 'no newline'; STDOUT.write('{}'); system('echo', 'a child'); Rational(1, 2) %>ok",
        "<% Rational(1, 2) %><%= [Digest::MD5.hexdigest('a')[0, 4], SecureRandom.hex(2).size, Open3.capture2('cat', stdin_data: 'x')[0]].join(' ') %>",
        "<% Rational(1, 2) %><%= [nil, ' ', 'x'].map(&:presence).inspect %> <%= [].blank? %> <%= 0.present? %>",
        "<% require 'dotenv'; Dotenv.load('none'); Rational(1, 2) %>a <%% b %%> c",
    ];
    let Some(rendered) = render_all(&templates) else {
        return;
    };
    let texts: Vec<String> = rendered
        .into_iter()
        .map(|rendered| rendered.unwrap().text)
        .collect();
    assert_eq!(
        texts,
        [
            "service: SHOP\n",
            "webweb",
            "YWJj né",
            "a\nb\nc\n",
            "1/2",
            "ok",
            "0cc1 4 x",
            "[nil, nil, \"x\"] true true",
            "a <% b %%> c",
        ]
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
    assert_eq!(rendered[1].as_ref().unwrap().text, "eu nil");
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

#[test]
fn places_after_ruby_are_those_of_the_file() {
    let text = "<%- class Name; def to_s = \"x\\ny\"; end -%>\n# é\na: <%= Name.new %> z\n<% 3.times do |n| %>\nb<%= n %>: 1\n<% end %>\nlast: 1\n";
    let Some(rendered) = render_all(&[text]) else {
        return;
    };
    let rendered = rendered[0].as_ref().unwrap();
    assert_eq!(
        rendered.text,
        "# é\na: x\ny z\n\nb0: 1\n\nb1: 1\n\nb2: 1\n\nlast: 1\n"
    );
    let origins: Vec<(usize, usize)> = [(1, 3), (2, 1), (3, 1), (3, 3), (5, 1), (7, 4), (9, 1), (11, 4)]
        .into_iter()
        .map(|(line, column)| rendered.origin(line, column))
        .collect();
    assert_eq!(
        origins,
        [(2, 3), (3, 1), (3, 4), (3, 20), (5, 1), (5, 11), (5, 1), (7, 4)]
    );
}

#[test]
fn a_tag_that_is_not_closed_is_refused_with_ruby_too() {
    let Some(rendered) = render_all(&["<% Struct.new(:x) %>\na: <%= 1\n"]) else {
        return;
    };
    assert!(
        matches!(rendered[0], Err(ErbError::Syntax { line: 2, .. })),
        "{:?}",
        rendered[0]
    );
}
