use std::collections::BTreeMap;

use super::*;
use crate::runner::ProcessRunner;

const HEAD: &str =
    "service: shop\nimage: acme/shop\nbuilder: {arch: amd64}\nregistry: {username: u, password: [P]}\n";

/// Loads a configuration, beside empty files in its directory.
fn load(text: &str, beside: &[&str]) -> Vec<Problem> {
    let directory = tempfile::tempdir().expect("a directory");
    let config = directory.path().join("config");
    std::fs::create_dir_all(&config).expect("created");
    for name in beside {
        std::fs::File::create(config.join(name)).expect("created");
    }
    let mut written = std::fs::File::create(config.join("deploy.yml")).expect("created");
    std::io::Write::write_all(&mut written, text.as_bytes()).expect("written");
    let env = BTreeMap::from([("TOKEN".to_owned(), "from env".to_owned())]);
    let mut options = crate::LoadOptions::new(
        directory.path(),
        env,
        "2026-01-01T00:00:00+00:00[UTC]".parse().expect("a time"),
    );
    options.version = Some("v1".to_owned());
    let loaded = crate::load(
        &options,
        &ProcessRunner {
            forward_stderr: false,
        },
    );
    loaded.expect("valid").warnings
}

/// Loads a configuration below the usual head.
fn found(text: &str) -> Vec<Problem> {
    load(&format!("{HEAD}{text}"), &[])
}

/// `name@line` of a warning.
fn shown(warning: &Problem) -> String {
    assert!(warning.hint.is_some(), "{warning} has no fix");
    let name = warning.name.as_deref().expect("a warning has a name");
    assert!(NAMES.contains(&name), "{name} is not among the names");
    format!("{name}@{}", warning.line.unwrap_or_default())
}

fn warnings(text: &str) -> Vec<String> {
    found(text).iter().map(shown).collect()
}

const QUIET: &str = "servers: {web: {hosts: [192.0.2.1], options: {memory: 1g}}}\n";

#[test]
fn a_careful_configuration_has_no_warnings() {
    let text = format!(
        "{QUIET}accessories:\n  db: {{image: 'postgres:17', host: 192.0.2.1, port: '127.0.0.1:5432:5432', options: {{memory: 1g}}}}\n"
    );
    assert_eq!(warnings(&text), [""; 0]);
}

#[test]
fn data_stores_reachable_from_everywhere_are_found() {
    for (settings, found) in [
        ("image: 'postgres:17', port: 5432", true),
        ("image: 'postgres:17', port: '5433:5432'", true),
        ("image: 'postgres:17', port: '0.0.0.0:5432:5432'", true),
        ("image: 'postgres:17', port: '[::]:5432:5432'", true),
        ("image: 'postgres:17', port: '10.0.0.5:5432:5432'", false),
        ("image: 'postgres:17', port: '100.100.1.1:5432:5432'", false),
        ("image: 'postgres:17', port: '[::1]:5432:5432'", false),
        ("image: 'postgres:17'", false),
        ("image: 'acme/thing:1', port: 6379", true),
        ("image: 'acme/thing:1', port: 8080", false),
        ("image: 'acme/thing:1', port: '6000-7000:6000-7000'", true),
        ("image: 'postgres:17', network: host", true),
        ("image: 'acme/thing:1', network: host", false),
    ] {
        let text =
            format!("{QUIET}accessories:\n  db: {{{settings}, host: 192.0.2.1, options: {{memory: 1g}}}}\n");
        let expect: &[&str] = if found { &["published-data-store@7"] } else { &[] };
        assert_eq!(warnings(&text), expect, "{settings}");
    }
}

#[test]
fn tags_limits_literals_and_names_are_looked_at() {
    let text = "servers:\n  web: [192.0.2.1]\naccessories:\n  web:\n    image: redis\n    host: 192.0.2.1\n    env:\n      clear:\n        \
                API_TOKEN: abc\n        OTHER_TOKEN: <%= ENV[\"TOKEN\"] %>\n  two: {image: 'x:latest', host: 192.0.2.1, options: {memory: 1g}}\n";
    assert_eq!(
        warnings(text),
        [
            "unpinned-accessory@9",
            "no-memory-limit@8",
            "latest-tag@15",
            "no-memory-limit@6",
            "literal-secret@13",
            "colliding-name@8",
        ]
    );
}

#[test]
fn a_warning_is_silenced_by_name() {
    let text = "servers: [192.0.2.1]\nx-appliance: {silence: [no-memory-limit]}\n";
    assert_eq!(warnings(text), [""; 0]);
    assert_eq!(warnings("servers: [192.0.2.1]\n"), ["no-memory-limit@5"]);
    let limited = "servers: [192.0.2.1]\nx-appliance: {limits: {memory: 512m}}\n";
    assert_eq!(warnings(limited), [""; 0]);
}

/// The fixes of the warnings of one name.
fn fixes(text: &str, name: &str) -> Vec<String> {
    let found = found(text);
    let named = found
        .into_iter()
        .filter(|warning| warning.name.as_deref() == Some(name));
    named.filter_map(|warning| warning.hint).collect()
}

#[test]
fn a_published_port_is_mended_as_it_was_written() {
    let text = format!(
        "{QUIET}accessories:\n  db:\n    image: 'redis:7'\n    host: 192.0.2.1\n    port: '6000-6010:6379-6389/tcp'\n    \
         options: {{memory: 1g, publish: ['9000:6379/udp']}}\n"
    );
    assert_eq!(
        fixes(&text, "published-data-store"),
        [
            "publish it for this host alone: port: \"127.0.0.1:6000-6010:6379-6389/tcp\"; containers reach it as shop-db anyway",
            "publish it for this host alone: publish: \"127.0.0.1:9000:6379/udp\"; containers reach it as shop-db anyway",
        ]
    );
}

#[test]
fn secrets_are_found_as_numbers_in_addresses_under_tags_and_in_builds() {
    let text = format!(
        "{QUIET}env:\n  clear:\n    PIN_SECRET: 1234\n    DATABASE_URL: postgres://app:hush@db/app\n    \
         PLAIN_URL: postgres://app@db/app\n    LATER_URL: redis://:${{PASSWORD}}@db\n    FLAG_TOKEN: true\n    \
         FILE_TOKEN: /run/token\n  tags:\n    eu:\n      EU_TOKEN: abc\n    us:\n      clear: {{US_TOKEN: abc}}\n"
    );
    assert_eq!(
        warnings(&text),
        [
            "literal-secret@8",
            "literal-secret@9",
            "literal-secret@16",
            "literal-secret@18",
        ]
    );
    assert_eq!(
        fixes(&text, "literal-secret"),
        [
            "move PIN_SECRET from env/clear to env/secret, and the value to .kamal/secrets",
            "move DATABASE_URL from env/clear to env/secret, and the value to .kamal/secrets",
            "move EU_TOKEN from env/tags/eu to env/tags/eu/secret, and the value to .kamal/secrets",
            "move US_TOKEN from env/tags/us/clear to env/tags/us/secret, and the value to .kamal/secrets",
        ]
    );
}

#[test]
fn what_the_form_of_the_file_hides_is_found() {
    let text = format!(
        "{QUIET}accessories:\n  db:\n    image: 'acme/x:1'\n    host: 192.0.2.1\n    options: {{memory: 1g}}\n    files:\n    \
         - {{local: a, remote: /a, mode: 0644}}\n    - {{local: b, remote: /b, mode: '0644'}}\n    \
         - {{local: c, remote: /c, mode: 644}}\nx-aplliance: {{release: x}}\nx-anchors: {{}}\n"
    );
    assert_eq!(warnings(&text), ["octal-mode@12", "misspelt-extension@15"]);
    assert_eq!(fixes(&text, "misspelt-extension"), ["did you mean x-appliance?"]);
}

#[test]
fn a_tag_on_the_apps_own_image_is_found() {
    for (image, found) in [
        ("acme/shop:latest", "latest-tag@2"),
        ("localhost:5000/shop:v1", "tagged-image@2"),
    ] {
        let text = HEAD.replace("acme/shop", image) + QUIET;
        let names: Vec<String> = load(&text, &[]).iter().map(shown).collect();
        assert_eq!(names, [found]);
    }
}

#[test]
fn a_role_named_like_a_role_of_a_destination_is_found_from_either_side() {
    let text = "servers:\n  web: {hosts: [192.0.2.1], options: {memory: 1g}}\n  web-staging: {hosts: [192.0.2.2], options: {memory: 1g}}\n";
    let names = |files: &[&str]| {
        let found = load(&format!("{HEAD}{text}"), files);
        found.iter().map(shown).collect::<Vec<_>>()
    };
    assert_eq!(names(&[]), [""; 0]);
    assert_eq!(names(&["deploy.production.yml"]), [""; 0]);
    assert_eq!(names(&["deploy.staging.yml"]), ["colliding-name@7"]);
}
