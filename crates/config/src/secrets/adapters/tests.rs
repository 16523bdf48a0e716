use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::runner::ProcessRunner;

/// Programs in a directory that is then all of `PATH`.
struct Programs {
    directory: tempfile::TempDir,
}

impl Programs {
    fn new(programs: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, script) in programs {
            let path = directory.path().join(name);
            let mut file = std::fs::File::create(&path).expect("created");
            std::io::Write::write_all(&mut file, format!("#!/bin/sh\n{script}").as_bytes()).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("made executable");
        }
        Self { directory }
    }

    fn fetch(
        &self,
        adapter: &str,
        account: &str,
        from: &str,
        names: &[&str],
    ) -> Result<String, AdapterError> {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let env = BTreeMap::from([("PATH".to_owned(), self.directory.path().display().to_string())]);
        let tools = Tools {
            runner: &ProcessRunner {
                forward_stderr: false,
            },
            env: &env,
            directory: self.directory.path(),
        };
        let wanted = Fetch {
            account: some(account),
            from: some(from),
            names: names.iter().map(ToString::to_string).collect(),
        };
        fetch(adapter, &wanted, &tools).map(|fetched| Value::Object(fetched).to_string())
    }
}

#[test]
fn one_password_reads_fields_and_whole_items() {
    let programs = Programs::new(&[(
        "op",
        r#"case "$*" in
--version) ;;
"account get --account me") exit 1;;
"signin --account me --force --raw") echo token;;
"item get Item --vault Vault --format json --account me --session token --fields label=one,label=sec.two")
  echo '[{"reference":"op://Vault/Item/one","value":"1"},{"reference":"op://Vault/Item/sec/two","value":"2"}]';;
"item get Other --vault Vault --format json --account me --session token --fields label=password")
  echo '{"reference":"op://Vault/Other/password","value":"p"}';;
"item get Item --vault Vault --format json --account me --session token")
  echo '{"fields":[{"reference":"op://Vault/Item/one","value":"1"},{"id":"no reference"}]}';;
*) echo "unexpected: $*" >&2; exit 9;;
esac"#,
    )]);
    let fetched = programs.fetch(
        "1password",
        "me",
        "op://Vault",
        &["Item/one", "Item/sec/two", "Other"],
    );
    assert_eq!(
        fetched.expect("fetched"),
        r#"{"Vault/Item/one":"1","Vault/Item/sec/two":"2","Vault/Other":"p"}"#
    );
    let all = programs.fetch("one_password", "me", "Vault/Item", &[]);
    assert_eq!(all.expect("fetched"), r#"{"Vault/Item/one":"1"}"#);
    let error = programs
        .fetch("1password", "me", "Vault", &["Gone/x"])
        .expect_err("no such item");
    assert_eq!(
        error.to_string(),
        "Could not read x from Gone in the Vault 1Password vault"
    );
    assert!(error.hint().is_some_and(|hint| hint.starts_with("unexpected: ")));
}

#[test]
fn bitwarden_unlocks_syncs_and_reads() {
    let programs = Programs::new(&[(
        "bw",
        r#"case "$* $BW_SESSION" in
"--version "*) ;;
"status ") echo '{"status":"locked"}';;
"unlock --raw ") echo key;;
"status key") echo '{"status":"unlocked"}';;
"sync key") ;;
"get item login key") echo '{"login":{"password":"p"}}';;
"get item note key") echo '{"login":null,"fields":[{"name":"a","value":"1"},{"name":"b","value":"2"}]}';;
*) exit 9;;
esac"#,
    )]);
    let fetched = programs
        .fetch("bitwarden", "me", "", &["login", "note/b"])
        .expect("fetched");
    assert_eq!(fetched, r#"{"login":"p","note/b":"2"}"#);
    let all = programs.fetch("bitwarden", "me", "", &["note"]).expect("fetched");
    assert_eq!(all, r#"{"note/a":"1","note/b":"2"}"#);
    let error = programs
        .fetch("bitwarden", "me", "", &["note/c"])
        .expect_err("no such field");
    assert_eq!(
        error.to_string(),
        "Could not find field c in item note in Bitwarden"
    );
}

#[test]
fn the_other_adapters_read_what_their_programs_print() {
    let programs = Programs::new(&[
        (
            "lpass",
            r#"case "$*" in "status --color never") echo "Logged in as me.";; "show f/a --json") echo '[{"fullname":"f/a","password":"1"}]';; esac"#,
        ),
        (
            "bws",
            r#"case "$*" in "secret list P") echo '[{"key":"A","value":"1"}]';; "secret get u1") echo '{"key":"B","value":"2"}';; esac"#,
        ),
        (
            "aws",
            r#"case "$*" in *"--secret-id-list app/a app/b --output json --profile prof") echo '{"SecretValues":[{"Name":"app/a","SecretString":"{\"k\":\"1\"}"},{"Name":"app/b","SecretString":"plain"}],"Errors":[]}';; esac"#,
        ),
        (
            "doppler",
            r#"case "$*" in "secrets get A --json -p proj -c conf") echo '{"A":{"computed":"1"}}';; esac"#,
        ),
        (
            "enpass-cli",
            r#"echo '> title: Srv  label: Pass word  login: x  password: p1"' >&2"#,
        ),
        (
            "gcloud",
            r#"case "$*" in --version) ;; "auth list --format=json") echo '[{}]';; "secrets versions access 3 --secret=s --project=proj --account=me@x --impersonate-service-account=sa@y --format=json") echo '{"payload":{"data":"dmFsdWU="}}';; *) exit 9;; esac"#,
        ),
        (
            "passbolt",
            r#"case "$*" in "list folders --filter Name == \"f\" --json") echo '[{"id":"1","name":"f","folder_parent_id":""}]';; "list resources --filter (Name == \"A\" && FolderParentID == \"1\") --folder 1 --json") echo '[{"name":"A","password":"1"}]';; esac"#,
        ),
    ]);
    for (adapter, account, from, names, expect) in [
        ("lastpass", "me", "f", &["a"][..], r#"{"f/a":"1"}"#),
        ("bitwarden-sm", "", "", &["P/all"], r#"{"A":"1"}"#),
        ("bitwarden-sm", "", "", &["u1"], r#"{"B":"2"}"#),
        (
            "aws_secrets_manager",
            "prof",
            "app",
            &["a", "b"],
            r#"{"app/a/k":"1","app/b":"plain"}"#,
        ),
        ("doppler", "", "proj/conf", &["A"], r#"{"A":"1"}"#),
        (
            "enpass",
            "/vault",
            "",
            &["Srv/Pass word"],
            r#"{"Srv/Pass word":"p1"}"#,
        ),
        ("gcp", "me@x|sa@y", "proj", &["s/3"], r#"{"proj/s":"value"}"#),
        ("passbolt", "", "f", &["A"], r#"{"A":"1"}"#),
        ("test", "me", "", &["abc"], r#"{"abc":"cba"}"#),
    ] {
        let fetched = programs.fetch(adapter, account, from, names);
        assert_eq!(
            fetched.unwrap_or_else(|error| panic!("{adapter}: {error:?}")),
            expect,
            "{adapter}"
        );
    }
}

#[test]
fn what_is_missing_is_named() {
    let programs = Programs::new(&[]);
    for (adapter, account, message) in [
        ("1password", "me", "1Password CLI is not installed"),
        ("gcp", "me", "gcloud CLI is not installed"),
        (
            "lastpass",
            "",
            "No value provided for required options '--account'",
        ),
        ("keychain", "me", "Unknown adapter: keychain"),
    ] {
        let error = programs.fetch(adapter, account, "v", &["x"]).expect_err(adapter);
        assert_eq!(error.to_string(), message);
        assert!(error.hint().is_some(), "{adapter}");
    }
}

#[test]
fn extract_takes_the_exact_name_or_the_last_part() {
    let fetched: Fetched = serde_json::from_str(r#"{"v/i/A":"1","A/B":"2","n":3,"x":null}"#).expect("JSON");
    for (name, expect) in [
        ("v/i/A", Some("1")),
        ("A", Some("1")),
        ("B", Some("2")),
        ("n", Some("3")),
        ("x", None),
        ("i", None),
    ] {
        assert_eq!(extract(name, &fetched).as_deref(), expect, "{name}");
    }
}
