use std::io;
use std::sync::Mutex;

use super::*;
use crate::runner::{Outcome, ProcessRunner};

/// Answers `sh -c TEXT` with TEXT in brackets; `fail` fails.
#[derive(Default)]
struct Echo {
    seen: Mutex<Vec<Vec<String>>>,
}

impl Runner for Echo {
    fn run(&self, invocation: &Invocation) -> io::Result<Outcome> {
        self.seen
            .lock()
            .expect("no test panics here")
            .push(invocation.argv.clone());
        let text = invocation.argv.last().cloned().unwrap_or_default();
        Ok(Outcome {
            code: Some(i32::from(text == "fail")),
            stdout: format!("[{text}]\n").into_bytes(),
            stderr: "it said no".to_owned(),
        })
    }
}

fn load_with(file: &str, shell: Option<&str>, runner: &dyn Runner) -> Result<Secrets, SecretError> {
    let directory = tempfile::tempdir().expect("a directory");
    write(&directory, ".kamal/secrets", file);
    let env = [
        ("FROM_ENV", "env value"),
        ("BOTH", "from env"),
        ("PATH", "/usr/bin:/bin"),
    ];
    Secrets::load(&Options {
        directory: directory.path(),
        secrets_path: ".kamal/secrets",
        destination: None,
        env: &env
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        shell,
        runner,
    })
}

fn write(directory: &tempfile::TempDir, name: &str, text: &str) {
    use std::io::Write as _;
    let path = directory.path().join(name);
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("created");
    let mut file = std::fs::File::create(path).expect("created");
    file.write_all(text.as_bytes()).expect("written");
}

/// The rules of dotenv 3.2 as Kamal uses it: a file, and what `A` is after it (`None`: not set).
#[test]
fn the_dotenv_grammar() {
    for (file, expect) in [
        ("A=v", Some("v")),
        (" A = v ", Some("v")),
        ("A: v", Some("v")),
        ("export A=v", Some("v")),
        ("A", Some("")),
        ("A=", Some("")),
        ("A=v # c", Some("v")),
        ("A=pa#ss", Some("pa")),
        (r#"A="pa#ss""#, Some("pa#ss")),
        ("A='pa#ss' # c", Some("pa#ss")),
        ("A='l1\nl2'", Some("l1\nl2")),
        ("A=\"l1\nl2\"", Some("l1\nl2")),
        (r"A='$FROM_ENV $(x) \n'", Some(r"$FROM_ENV $(x) \n")),
        (r#"A="say \"x\"""#, Some(r#"say "x""#)),
        (r#"A="a\nb""#, Some(r"a\nb")),
        ("DOTENV_LINEBREAK_MODE=legacy\nA=\"a\\nb\"", Some("a\nb")),
        (r"A=a\\b\x", Some(r"a\bx")),
        (r"A=\$FROM_ENV", Some("$FROM_ENV")),
        ("A=$FROM_ENV", Some("env value")),
        ("A=${FROM_ENV}s", Some("env values")),
        ("BOTH=file\nA=$BOTH", Some("file")),
        ("A=$NOWHERE.", Some(".")),
        ("A=${NOWHERE:-d}", Some(":-d}")),
        ("A=a$", Some("a$")),
        ("A=$$x", Some("$")),
        ("A=`date`", Some("`date`")),
        ("A=$(cmd a)", Some("[cmd a]")),
        ("A=x$(a)y$(b)z", Some("x[a]y[b]z")),
        ("A=$(echo (a) b)", Some("[echo (a) b]")),
        ("A=$(echo $FROM_ENV)", Some("[echo env value]")),
        (r"A=\$(cmd)", Some("$(cmd)")),
        ("A=$()", Some("$()")),
        ("A=$(open", Some("$(open")),
        // Command output is literal, though dotenv 3.2 would look for variables in it.
        ("A=$(echo \\$FROM_ENV)", Some("[echo $FROM_ENV]")),
        ("\u{feff}A=v", Some("v")),
        ("B=1\r\nA=v\r\n", Some("v")),
        ("B=1\rA=v\r", Some("v")),
        ("A=1\nA=2", Some("2")),
        ("A.b=1", None),
        ("# A=v", None),
        ("- A=v", None),
        ("A==v", Some("=v")),
        ("A=a b  c", Some("a b  c")),
        ("A=it's", Some("it's")),
        ("A=", Some("")),
    ] {
        let secrets = load_with(file, None, &Echo::default()).expect(file);
        let found = secrets.values().get("A").map(Secret::expose);
        assert_eq!(found, expect, "{file:?}");
    }
}

#[test]
fn an_export_without_a_value_needs_one_above() {
    let secrets = load_with("A=1\nexport A", None, &Echo::default()).expect("set above");
    assert_eq!(secrets.get("A").expect("set"), "1");
    let error = load_with("B=1\nexport A\n", None, &Echo::default()).expect_err("not set");
    assert!(matches!(error, SecretError::Format { line: 2, .. }), "{error:?}");
}

#[test]
fn a_failing_command_is_an_error_that_shows_no_value() {
    let error =
        load_with("X=topsecret\nA=\"$(fail $X)\"\nB=$(fail)", None, &Echo::default()).expect_err("it fails");
    let shown = format!("{error} {error:?}");
    assert_eq!(
        error.to_string(),
        ".kamal/secrets:3: the command for B failed with exit code 1: $(fail)"
    );
    assert_eq!(error.hint().as_deref(), Some("it said no"));
    assert!(!shown.contains("topsecret"), "{shown}");
}

#[test]
fn commands_run_in_a_real_shell_and_their_output_is_literal() {
    let runner = ProcessRunner {
        forward_stderr: false,
    };
    let file = "A=$(printf 'pa%sFROM_ENV\"x' '$')\nB=$(echo \"$FROM_ENV\" | tr a-z A-Z)\nC=$A";
    let secrets = load_with(file, None, &runner).expect("valid");
    assert_eq!(secrets.get("A").expect("set"), "pa$FROM_ENV\"x");
    assert_eq!(secrets.get("B").expect("set"), "ENV VALUE");
    assert_eq!(secrets.get("C").expect("set"), "pa$FROM_ENV\"x");
}

#[test]
fn kamal_secrets_runs_in_this_process_unless_a_shell_is_given() {
    let file = "ALL=$(kamal secrets fetch --adapter test --account a --from v ONE 'T W')\n\
                A=$(kamal secrets extract ONE $ALL)\nB=$(appliance secrets extract \"v/T W\" ${ALL})";
    let runner = Echo::default();
    let secrets = load_with(file, None, &runner).expect("valid");
    assert_eq!(secrets.get("A").expect("set"), "ENO/v");
    assert_eq!(secrets.get("B").expect("set"), "W T/v");
    assert!(runner.seen.into_inner().expect("no test panics here").is_empty());
    let runner = Echo::default();
    let secrets = load_with("A=$(kamal secrets extract ONE x)", Some("stub"), &runner).expect("valid");
    assert_eq!(secrets.get("A").expect("set"), "[kamal secrets extract ONE x]");
    let seen = runner.seen.into_inner().expect("no test panics here");
    assert_eq!(seen, [["stub", "-c", "kamal secrets extract ONE x"]]);
}

#[test]
fn inline_commands_say_what_is_wrong() {
    for (file, message) in [
        ("A=$(kamal secrets extract ONE {})", "Could not find secret ONE"),
        (
            "A=$(kamal secrets extract ONE x)",
            "the second argument of extract is not the JSON object that fetch prints",
        ),
        (
            "A=$(kamal secrets fetch --adapter vault X)",
            "Unknown adapter: vault",
        ),
        (
            "A=$(kamal secrets fetch X)",
            "No value provided for required options '--adapter'",
        ),
        (
            "A=$(kamal secrets fetch -a test X)",
            "No value provided for required options '--account'",
        ),
        (
            "A=$(kamal secrets fetch -a test --acount x X)",
            "`kamal secrets fetch` has no flag --acount",
        ),
    ] {
        match load_with(file, None, &Echo::default()) {
            Err(SecretError::Inline { source, .. }) => assert_eq!(source.to_string(), message, "{file}"),
            other => panic!("{file}: {other:?}"),
        }
    }
}

#[test]
fn extract_says_what_there_is_to_extract() {
    let all = "ALL=$(kamal secrets fetch -a test --account a --from v/x API_TOKEN OTHER)\n";
    for (line, message, hint) in [
        (
            "A=$(kamal secrets extract API_TOKNE $ALL)",
            "Could not find secret API_TOKNE",
            Some("did you mean API_TOKEN?"),
        ),
        (
            "A=$(kamal secrets extract THIRD $ALL)",
            "Could not find secret THIRD",
            Some("fetched were: v/x/API_TOKEN, v/x/OTHER; add THIRD to the line with fetch"),
        ),
        (
            "A=$(kamal secrets extract THIRD $AL)",
            "`kamal secrets extract THIRD` has nothing to extract from: the variable after it is empty, or not set in a line above",
            None,
        ),
    ] {
        match load_with(&format!("{all}{line}"), None, &Echo::default()) {
            Err(error @ SecretError::Inline { .. }) => {
                assert_eq!(error.hint().as_deref(), hint, "{line}");
                let source = std::error::Error::source(&error).expect("it has a cause");
                assert_eq!(source.to_string(), message, "{line}");
            }
            other => panic!("{line}: {other:?}"),
        }
    }
}

#[test]
fn files_are_chosen_and_overridden_as_kamal_does() {
    let directory = tempfile::tempdir().expect("a directory");
    write(
        &directory,
        ".kamal/secrets-common",
        "A=common\nB=common\nD=$KAMAL_DESTINATION",
    );
    write(&directory, ".kamal/secrets", "A=plain\nC=plain");
    write(&directory, ".kamal/secrets.prod", "A=prod");
    let env = BTreeMap::from([("KAMAL_DESTINATION".to_owned(), "stray".to_owned())]);
    let runner = Echo::default();
    let load = |destination, path| {
        Secrets::load(&Options {
            directory: directory.path(),
            secrets_path: path,
            destination,
            env: &env,
            shell: None,
            runner: &runner,
        })
        .expect("valid")
    };
    let base = load(None, ".kamal/secrets");
    assert_eq!(base.files(), [".kamal/secrets-common", ".kamal/secrets"]);
    assert_eq!(
        (
            base.get("A").expect("set"),
            base.get("B").expect("set"),
            base.get("D").expect("set")
        ),
        ("plain", "common", "")
    );
    let prod = load(Some("prod"), ".kamal/secrets");
    assert_eq!(
        (prod.get("A").expect("set"), prod.get("D").expect("set")),
        ("prod", "prod")
    );
    assert_eq!(
        prod.get("C").expect_err("only in the plain file").to_string(),
        "Secret 'C' not found in .kamal/secrets-common, .kamal/secrets.prod"
    );
    assert_eq!(
        load(Some("qa"), "elsewhere")
            .get("X")
            .expect_err("no files")
            .to_string(),
        "Secret 'X' not found, no secret files (elsewhere-common, elsewhere.qa) provided"
    );
}

#[test]
fn a_secret_is_not_shown_by_debug() {
    let secrets = load_with("A=topsecret", None, &Echo::default()).expect("valid");
    assert!(!format!("{secrets:?}").contains("topsecret"));
}

proptest::proptest! {
    /// No file makes the reader panic, and only commands that the file names are run.
    #[test]
    fn any_text_is_read_without_a_panic(file in "([A-C]=|export |\\$\\(|\\)|\\$[A-C]|\\$\\{|[ \"'#\\\\\n\r:=.a-c]){0,40}") {
        let runner = Echo::default();
        let result = load_with(&file, None, &runner);
        let ran = runner.seen.into_inner().expect("no test panics here");
        proptest::prop_assert!(ran.is_empty() || file.contains("$("));
        if let Ok(secrets) = result {
            for name in secrets.values().keys() {
                proptest::prop_assert!(file.contains(name.as_str()));
            }
        }
    }
}

#[test]
fn lines_that_double_each_other_are_refused_before_memory_runs_out() {
    use std::fmt::Write as _;
    let mut file = "A0=0123456789\n".to_owned();
    for number in 1..60 {
        let before = number - 1;
        writeln!(file, "A{number}=$A{before}$A{before}").expect("a String takes it");
    }
    let error = load_with(&file, None, &Echo::default()).expect_err("refused");
    assert!(error.to_string().contains("longer than 16 MiB"), "{error}");
    assert!(error.to_string().starts_with(".kamal/secrets:2"), "{error}");
}
