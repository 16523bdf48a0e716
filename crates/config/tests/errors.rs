//! The messages people see: Kamal's own, word for word, and what is added to them.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails loudly, and its files need not outlive a crash"
)]

use std::collections::BTreeMap;
use std::path::Path;

use appliance_config::runner::ProcessRunner;
use appliance_config::{LoadOptions, Loaded, Problems, load};

/// A configuration that Kamal accepts, by root key.
const BASE: &[(&str, &str)] = &[
    ("service", "service: app"),
    ("image", "image: app"),
    ("builder", "builder: {arch: amd64}"),
    ("registry", "registry: {username: user, password: secret}"),
    ("servers", "servers: [1.1.1.1]"),
];

fn load_in(directory: &Path, destination: Option<&str>) -> Result<Loaded, Problems> {
    let env = BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]);
    let mut options = LoadOptions::new(directory, env, "2026-01-01T00:00:00Z[UTC]".parse().unwrap());
    options.version = Some("v1".to_owned());
    options.destination = destination.map(ToOwned::to_owned);
    options.local_arch = "amd64".to_owned();
    load(
        &options,
        &ProcessRunner {
            forward_stderr: false,
        },
    )
}

fn load_text(text: &str) -> Result<Loaded, Problems> {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("config")).unwrap();
    std::fs::write(directory.path().join("config/deploy.yml"), text).unwrap();
    load_in(directory.path(), None)
}

/// The base with some root keys replaced.
fn with(overrides: &str) -> String {
    let replaced: Vec<&str> = overrides
        .lines()
        .filter_map(|line| line.split_once(':').map(|(key, _)| key))
        .collect();
    let kept = BASE
        .iter()
        .filter(|(key, _)| !replaced.contains(key))
        .map(|(_, line)| *line);
    kept.chain([overrides]).collect::<Vec<_>>().join("\n") + "\n"
}

/// The first problem's message, or that there was none.
fn complaint(overrides: &str) -> String {
    match load_text(&with(overrides)) {
        Ok(_) => "accepted".to_owned(),
        Err(problems) => problems.0[0].message.clone(),
    }
}

/// Kamal's `validation_test.rb`: what is written instead of the base's keys, and what Kamal says.
#[rustfmt::skip]
const KAMALS: &[(&str, &str)] = &[
    ("unknown: value", "unknown key: unknown"),
    ("unknown: value\nunknown2: value", "unknown keys: unknown, unknown2"),
    ("service: []", "service: should be a string"),
    ("image: []", "image: should be a string"),
    ("asset_path: []", "asset_path: should be a string"),
    ("hooks_path: []", "hooks_path: should be a string"),
    ("error_pages_path: []", "error_pages_path: should be a string"),
    ("primary_role: []", "primary_role: should be a string"),
    ("minimum_version: []", "minimum_version: should be a string"),
    ("run_directory: []", "run_directory: should be a string"),
    ("require_destination: foo", "require_destination: should be a boolean"),
    ("allow_empty_roles: foo", "allow_empty_roles: should be a boolean"),
    ("deploy_timeout: foo", "deploy_timeout: should be an integer"),
    ("drain_timeout: foo", "drain_timeout: should be an integer"),
    ("retain_containers: foo", "retain_containers: should be an integer"),
    ("readiness_delay: foo", "readiness_delay: should be an integer"),
    ("volumes: foo", "volumes: should be an array"),
    ("servers: foo", "servers: should be an array or a hash"),
    ("labels: []", "labels: should be a hash"),
    ("registry: []", "registry: should be a hash"),
    ("accessories: []", "accessories: should be a hash"),
    ("env: []", "env: should be a hash"),
    ("ssh: []", "ssh: should be a hash"),
    ("sshkit: []", "sshkit: should be a hash"),
    ("builder: []", "builder: should be a hash"),
    ("proxy: []", "proxy: should be a hash"),
    ("boot: []", "boot: should be a hash"),
    ("logging: []", "logging: should be a hash"),
    ("servers: 1", "servers: should be an array or a hash"),
    ("servers: [[]]", "servers/0: should be a string or a hash"),
    ("servers: [{a: b, c: d}]", "servers/0: multiple hosts found"),
    ("servers: [{foo: {}}]", "servers/0/foo: should be a string or an array"),
    ("servers: [{foo: [[]]}]", "servers/0/foo/0: should be a string"),
    ("servers: {web: foo}", "servers/web: should be an array or a hash"),
    ("servers: {web: {hosts: ''}}", "servers/web/hosts: should be an array"),
    ("servers: {web: {hosts: [[]]}}", "servers/web/hosts/0: should be a string or a hash"),
    ("servers: {web: {options: ''}}", "servers/web/options: should be a hash"),
    ("servers: {web: {logging: {options: ''}}}", "servers/web/logging/options: should be a hash"),
    ("servers: {web: {logging: {driver: []}}}", "servers/web/logging/driver: should be a string"),
    ("servers: {web: {labels: {service: foo}}}", "servers/web/labels/service: invalid label. destination, role, and service are reserved labels"),
    ("servers: {web: {labels: []}}", "servers/web/labels: should be a hash"),
    ("servers: {web: {env: []}}", "servers/web/env: should be a hash"),
    ("servers: {web: {hosts: [1.1.1.1], env: {tags: {}}}}", "servers/web/env: tags are only allowed in the root env"),
    ("registry: {}", "registry/username: is required"),
    ("registry: {username: foo}", "registry/password: is required"),
    ("registry: {username: foo, password: [SECRET1, SECRET2]}", "registry/password: should be a string or an array with one string (for secret lookup)"),
    ("registry: {username: foo, password: bar, server: []}", "registry/server: should be a string"),
    ("accessories: {accessory1: []}", "accessories/accessory1: should be a hash"),
    ("accessories: {accessory1: {unknown: baz}}", "accessories/accessory1: unknown key: unknown"),
    ("accessories: {accessory1: {options: []}}", "accessories/accessory1/options: should be a hash"),
    ("accessories: {accessory1: {host: host, labels: {destination: foo}}}", "accessories/accessory1/labels/destination: invalid label. destination, role, and service are reserved labels"),
    ("accessories: {accessory1: {host: []}}", "accessories/accessory1/host: should be a string"),
    ("accessories: {accessory1: {env: []}}", "accessories/accessory1/env: should be a hash"),
    ("accessories: {accessory1: {host: host, env: {tags: {}}}}", "accessories/accessory1/env: tags are only allowed in the root env"),
    ("env: {FOO: []}", "env/FOO: should be a string"),
    ("env: {clear: {FOO: []}}", "env/clear/FOO: should be a string"),
    ("env: {secret: {FOO: []}}", "env/secret: should be an array"),
    ("env: {secret: [[]]}", "env/secret/0: should be a string"),
    ("env: {tags: []}", "env/tags: should be a hash"),
    ("env: {tags: {tag1: foo}}", "env/tags/tag1: should be a hash"),
    ("env: {tags: {tag1: {FOO: []}}}", "env/tags/tag1/FOO: should be a string"),
    ("env: {tags: {tag1: {clear: {FOO: []}}}}", "env/tags/tag1/clear/FOO: should be a string"),
    ("env: {tags: {tag1: {secret: {}}}}", "env/tags/tag1/secret: should be an array"),
    ("env: {tags: {tag1: {secret: [[]]}}}", "env/tags/tag1/secret/0: should be a string"),
    ("env: {tags: {tag1: {tags: {}}}}", "env/tags/tag1: tags are only allowed in the root env"),
    ("env: foo", "env: should be a hash"),
    ("ssh: {foo: bar}", "ssh: unknown key: foo"),
    ("ssh: {user: []}", "ssh/user: should be a string"),
    ("ssh: {config: {}}", "ssh/config: should be a boolean or a string or an array"),
    ("sshkit: {foo: bar}", "sshkit: unknown key: foo"),
    ("sshkit: {max_concurrent_starts: foo}", "sshkit/max_concurrent_starts: should be an integer"),
    ("sshkit: {dns_retries: foo}", "sshkit/dns_retries: should be an integer"),
    ("builder: {foo: bar}", "builder: unknown key: foo"),
    ("builder: {remote: {foo: bar}}", "builder/remote: should be a string"),
    ("builder: {arch: {}}", "builder/arch: should be an array or a string"),
    ("builder: {args: [foo]}", "builder/args: should be a hash"),
    ("builder: {cache: {options: []}}", "builder/cache/options: should be a string"),
    ("builder: {arch: amd64, local: foo}", "builder/local: should be a boolean"),
    ("registry: {server: 'localhost:5000'}\nbuilder: {arch: arm64, remote: 'tcp://builder'}", "Local registry with remote builder requires an SSH URL (e.g., ssh://user@host)"),
];

/// Further errors that Kamal's tests assert elsewhere, or that its sources raise.
#[rustfmt::skip]
const OTHERS: &[(&str, &str)] = &[
    ("require_destination: true", "You must specify a destination"),
    ("image: ' '", "Missing required configuration for image"),
    ("service: ''", "Missing required configuration for service"),
    ("service: my.app", "Service name can only include alphanumeric characters, hyphens, and underscores"),
    ("servers: {web: [1.1.1.1], worker: []}", "No servers specified for the worker role. You can ignore this with allow_empty_roles: true"),
    ("servers: {web: [1.1.1.1], worker: []}\nallow_empty_roles: true", "accepted"),
    ("servers: {web: []}\nallow_empty_roles: true", "No servers specified for the web primary_role"),
    ("servers: {}", "The primary_role web isn't defined"),
    ("primary_role: nope", "The primary_role nope isn't defined"),
    ("servers: [1.1]", "No servers specified for the web primary_role"),
    ("minimum_version: 2.13", "Current version is 2.12.0, minimum required is 2.13"),
    ("minimum_version: '2.9'", "accepted"),
    ("minimum_version: two", "Malformed version number string two"),
    ("retain_containers: 0", "Must retain at least 1 container"),
    ("hooks_output: loud", "Invalid hooks_output 'loud', must be one of: quiet, verbose"),
    ("hooks_output: {pre-deploy: loud}", "Invalid hooks_output 'loud' for hook 'pre-deploy', must be one of: quiet, verbose"),
    ("hooks_output: :verbose", "accepted"),
    ("servers: {web: [a, b]}\nproxy: {ssl: true, host: x}", "SSL is only supported on a single server unless you provide custom certificates, found 2 servers for role web"),
    ("servers: {web: [a], api: {hosts: [b], proxy: true}}\nproxy: {ssl: true, host: x.org}", "Different roles can't share the same host for SSL: x.org"),
    ("servers: {web: {hosts: [a], proxy: {host: y.org}}}\nproxy: {hosts: [x.org]}", "proxy: Specify one of 'host' or 'hosts', not both"),
    ("proxy: {ssl: {certificate_pem: A}, host: x}", "proxy: Missing private_key_pem setting (required when certificate_pem is present)"),
    ("proxy: {ssl: {private_key_pem: A}, host: x}", "proxy: Missing certificate_pem setting (required when private_key_pem is present)"),
    ("proxy: {run: {publish: false, http_port: 80}}", "proxy: Cannot set http_port, https_port or bind_ips when publish is false"),
    ("proxy: true", "proxy: should be a hash"),
    ("proxy: {run: {http_port: 1}}\naccessories: {db: {image: x, host: 1.1.1.1, proxy: {run: {http_port: 2}}}}", "Conflicting proxy run configurations for host 1.1.1.1"),
    ("accessories: {db: {image: x}}", "accessories/db: specify one of `host`, `hosts`, `role`, `roles`, `tag` or `tags`"),
    ("accessories: {db: {image: x, role: nope}}", "accessories/db: unknown role nope"),
    ("accessories: {db: {image: x, roles: [web, nope]}}", "accessories/db: unknown roles nope"),
    ("accessories: {db: {image: x, host: a, options: {restart: no}}}", "accessories/db/options/restart: should be a string. Use \"no\" to disable restarts"),
    ("aliases: {deploy: app logs}", "aliases/deploy: Alias 'deploy' conflicts with a built-in command."),
    ("aliases: {A b: app logs}", "aliases/A b: Invalid alias name: 'A b'. Must only contain lowercase letters, alphanumeric, hyphens and underscores."),
    ("builder: {arch: amd64, local: false}", "builder: Cannot disable local builds, no remote is set"),
    ("builder: {arch: [amd64, arm64], pack: {builder: x}}", "builder: buildpacks only support building for one arch"),
    // Here Kamal crashes instead.
    ("registry: {server: 5000, username: u, password: p}", "registry/server: should be a string"),
    ("hooks_path: 5", "hooks_path: should be a string"),
    ("proxy: {ssl: true, host: 1.5}", "proxy/host: should be a string"),
    ("servers: {1: [a]}", "servers: the name of a role should be a string"),
    ("x-anything: [1]", "accepted"),
    ("ssh: {x-foo: 1}", "ssh: unknown key: x-foo"),
];

#[test]
fn kamals_messages_are_kept_word_for_word() {
    assert_eq!(KAMALS.len(), 79);
    for (written, message) in KAMALS.iter().chain(OTHERS) {
        assert_eq!(complaint(written), *message, "{written}");
    }
}

#[test]
fn every_section_is_told_with_its_place_and_what_to_do() {
    let text = include_str!("golden/errors.yml");
    let problems = load_text(text).expect_err("it is full of errors").to_string();
    assert_eq!(problems, include_str!("golden/errors.txt").trim_end());
}

/// With `UPDATE_GOLDEN=1`, what is resolved now becomes what is expected.
#[test]
fn a_whole_configuration_resolves_to_the_last_field() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("config")).unwrap();
    std::fs::write(
        directory.path().join("config/deploy.yml"),
        include_str!("golden/whole.yml"),
    )
    .unwrap();
    let loaded = load_in(directory.path(), None).unwrap();
    let resolved = serde_json::to_string_pretty(&loaded.config).unwrap();
    let mut resolved = resolved.replace(&*directory.path().to_string_lossy(), "/app");
    resolved.push('\n');
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/whole.json");
        std::fs::write(golden, resolved).unwrap();
        return;
    }
    assert_eq!(resolved, include_str!("golden/whole.json"));
}

#[test]
fn a_value_under_env_is_never_shown() {
    let text = with("env:\n  clear:\n    TOKEN: [hush]\n  hush2: hush3\n");
    let problems = load_text(&text).expect_err("two errors");
    let shown = format!("{problems}{}", serde_json::to_string(&problems.0).unwrap());
    assert!(shown.contains("TOKEN: …"), "{shown}");
    assert!(!shown.contains("hush]") && !shown.contains("hush3"), "{shown}");
    let broken = load_text("env:\n  TOKEN: hush: hush\n")
        .expect_err("no YAML")
        .to_string();
    assert!(broken.contains(":2:"), "{broken}");
    assert!(!broken.contains("hush"), "{broken}");
}

#[test]
fn problems_name_the_file_they_stand_in() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config");
    std::fs::create_dir(&config).unwrap();
    std::fs::write(config.join("deploy.yml"), with("proxy: {app_port: 80}")).unwrap();
    std::fs::write(config.join("deploy.staging.yml"), "proxy:\n  app_port: many\n").unwrap();
    let problems = load_in(directory.path(), Some("staging")).expect_err("one error");
    let problem = &problems.0[0];
    assert_eq!(problem.file.as_deref(), Some("config/deploy.staging.yml"));
    assert_eq!((problem.line, problem.column), (Some(2), Some(13)));
    assert_eq!(problem.path, "proxy/app_port");
    let missing = load_in(directory.path(), Some("mars")).expect_err("no such file");
    assert!(
        missing.0[0]
            .message
            .starts_with("Configuration file not found in ")
    );
    assert!(missing.0[0].message.ends_with("config/deploy.mars.yml"));
}

#[test]
fn loading_changes_nothing_and_tells_what_kamal_passes_over() {
    let loaded = load_text(&with(
        "servers: {web: [1.1.1.1, 2.2, host: nope]}\nservice: other\nservice: app\naccessories: {db: {image: x, host: a, files: [one]}}",
    ))
    .unwrap();
    let names: Vec<_> = loaded
        .warnings
        .iter()
        .filter_map(|warning| warning.name.as_deref())
        .collect();
    for name in ["duplicate-key", "dropped-host", "unknown-tag", "incomplete-mount"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    assert_eq!(loaded.config.app_hosts, ["1.1.1.1", "host"]);
}

#[test]
fn without_a_version_git_tells_and_an_unclean_tree_shows() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("config")).unwrap();
    let env = BTreeMap::from([
        ("PATH".to_owned(), "/usr/bin:/bin".to_owned()),
        ("HOME".to_owned(), directory.path().to_string_lossy().into_owned()),
    ]);
    let version = |config: &str| {
        std::fs::write(directory.path().join("config/deploy.yml"), config).unwrap();
        let now = "2026-01-01T00:00:00Z[UTC]".parse().unwrap();
        let options = LoadOptions::new(directory.path(), env.clone(), now);
        let runner = ProcessRunner {
            forward_stderr: false,
        };
        load(&options, &runner).map(|loaded| loaded.config.version)
    };
    let clean = with("proxy: {app_port: 80}");
    let problems = version(&clean).expect_err("no repository");
    assert!(
        problems.0[0]
            .message
            .starts_with("Can't use commit hash as version")
    );
    for arguments in [
        ["init", "-q"].as_slice(),
        &["add", "."],
        &[
            "-c",
            "user.name=T",
            "-c",
            "user.email=t@example.com",
            "commit",
            "-q",
            "-m",
            "all",
        ],
    ] {
        let status = std::process::Command::new("git")
            .args(arguments)
            .current_dir(directory.path())
            .status()
            .unwrap();
        assert!(status.success());
    }
    let revision = version(&clean).unwrap();
    assert_eq!(revision.len(), 40, "{revision}");
    // The clean clone does not contain the change; the working tree does.
    assert_eq!(version(&with("proxy: {app_port: 81}")).unwrap(), revision);
    let unclean = version(&with("builder: {arch: amd64, context: .}")).unwrap();
    assert!(
        unclean.starts_with(&format!("{revision}_uncommitted_")),
        "{unclean}"
    );
}

/// `line:column`, the message and the hint of the first problem, and how many there are.
fn told(text: &str) -> (String, usize) {
    let problems = load_text(text).unwrap_err().0;
    let first = &problems[0];
    let place = format!(
        "{}:{}",
        first.line.unwrap_or_default(),
        first.column.unwrap_or_default()
    );
    let hint = first.hint.clone().unwrap_or_default();
    (format!("{place} {} = {hint}", first.message), problems.len())
}

#[test]
fn slips_of_form_are_told_where_they_are_with_what_to_do() {
    for (overrides, expect) in [
        (
            "env:\n  clear:\n    A: \"open\n    B: 2",
            "8:8 found unexpected end of stream while scanning a quoted scalar = close the quote that opens here",
        ),
        (
            "labels: {a: 1\n",
            "6:9 did not find expected ',' or '}' while parsing a flow mapping = close the bracket that opens here, and separate its items by commas",
        ),
        (
            "env:\n  clear:\n    A:hush\n    B: 2",
            "9:6 mapping values are not allowed in this context = write a space after the colon: A: …",
        ),
        (
            "proxy:\n  host:x.test",
            "7:3 proxy: should be a hash = write a space after the colon: host: …",
        ),
        (
            "ssh: {log_level: :debug}",
            "6:18 did not find expected node content while parsing a flow node = inside { } and [ ] no value starts with a colon; write it without, or on a line of its own",
        ),
        (
            "# host: <%= ENV.fetch('X') %>",
            "6:17 key not found: \"X\" = ERB runs in YAML comments too: write <%# … %>, or take the tag out",
        ),
        (
            "labels: {a: <%= region %>}",
            "6:17 undefined local variable or method `region' for main = set region in a tag before this one; for a variable of the environment write ENV[\"region\"], for a text put quotes around it",
        ),
        (
            "labels: {a: <%= File.read('none') %>}",
            "6:22 No such file or directory @ rb_sysopen - none = create the file, or give a default where File.exist? says it is not there; paths start in the project's directory",
        ),
        (
            "labels: {a: <%= raise 'Not on Fridays' %>}",
            "6:17 Not on Fridays = the file itself refuses to go on here: see the condition of its `raise`",
        ),
        (
            "labels: {a: <%= nil.strip %>}",
            "6:21 undefined method `strip' for nil = what stands before .strip is nil: give it a default with ||, or call with &.",
        ),
        (
            "<% if true %>\nlabels: {a: b}",
            "6:4 ERB is not valid Ruby: what begins here is never closed by `end' = every if, case and do needs one `end`, in a tag of its own: <% end %>",
        ),
        (
            "servers:",
            "5:9 servers: should be an array or a hash = there is no value here; add one, or remove the key",
        ),
        (
            "servers: {web: }",
            "5:16 servers/web: should be an array or a hash = there is no value here; add one, or remove the key",
        ),
        (
            "servers: {}",
            "5:1 The primary_role web isn't defined = list at least one host under `servers: web:`; if a destination file has them, give `-d`",
        ),
    ] {
        assert_eq!(told(&with(overrides)), (expect.to_owned(), 1), "{overrides}");
    }
}

#[test]
fn mistakes_of_ours_and_of_kamals_keys_are_told_together() {
    let (first, count) = told(&with(
        "retain_containers: 0\nx-appliance: {release: {command: x, role: wbe}, cron: {a: {command: x}}, limits: {memory: 0}}",
    ));
    assert!(first.contains("Must retain at least 1 container"), "{first}");
    assert_eq!(count, 4);
}

#[test]
fn beyond_a_hundred_problems_only_their_number_is_told() {
    let labels: Vec<String> = (0..130).map(|n| format!("  l{n}: []")).collect();
    let problems = load_text(&with(&format!("labels:\n{}", labels.join("\n"))))
        .unwrap_err()
        .0;
    assert_eq!(problems.len(), 101);
    assert_eq!(problems[99].message, "labels/l99: should be a string");
    assert_eq!(problems[100].message, "and 30 more");
}

#[test]
fn bodies_are_held_back_only_where_somebody_asked_for_it() {
    let held = |section: &str| {
        let loaded = load_text(&with(&format!("proxy: {{app_port: 80, {section}}}"))).unwrap();
        let roles = loaded.config.roles;
        let buffering = roles[0].proxy.as_ref().unwrap().buffering.clone();
        // What is printed stays Kamal's.
        assert_eq!(
            (buffering.requests, buffering.responses),
            kamal(section),
            "{section}"
        );
        (buffering.holds_requests(), buffering.holds_responses())
    };
    fn kamal(section: &str) -> (bool, bool) {
        (
            !section.contains("requests: false"),
            !section.contains("responses: false"),
        )
    }
    assert_eq!(held("ssl: false"), (false, false));
    assert_eq!(held("buffering: {requests: true}"), (true, false));
    assert_eq!(
        held("buffering: {requests: false, responses: true}"),
        (false, true)
    );
    assert_eq!(held("buffering: {max_request_body: 10}"), (false, false));
    // A limit on responses can be kept in no other way.
    assert_eq!(held("buffering: {max_response_body: 10}"), (false, true));
    assert_eq!(
        held("buffering: {max_response_body: 10, responses: false}"),
        (false, false)
    );
}
