use super::tree::{Node, Value};
use super::{YamlError, read};

fn load(text: &str) -> Result<Node, YamlError> {
    read(text, 0, &|line, column| (line, column)).map(|document| document.root.expect("one document"))
}

fn value(text: &str) -> Value {
    load(&format!("a: {text}"))
        .expect("valid")
        .get("a")
        .expect("key a")
        .value
        .clone()
}

fn text(value: &str) -> Value {
    Value::Str(value.to_owned())
}

#[test]
fn plain_scalars_mean_what_ruby_takes_them_for() {
    for (written, meaning) in [
        ("017", Value::Int(15)),
        ("0x1F", Value::Int(31)),
        ("-0x1F", Value::Int(-31)),
        ("0b101", Value::Int(5)),
        ("1_000", Value::Int(1000)),
        ("1,000", Value::Int(1000)),
        ("+12", Value::Int(12)),
        ("0", Value::Int(0)),
        ("1.50", Value::Float(1.5)),
        ("1.", Value::Float(1.0)),
        (".5", Value::Float(0.5)),
        ("1.5e+3", Value::Float(1500.0)),
        ("yes", Value::Bool(true)),
        ("On", Value::Bool(true)),
        ("OFF", Value::Bool(false)),
        ("~", Value::Null),
        ("Null", Value::Null),
        ("", Value::Null),
        ("12:30", Value::Int(45000)),
        ("22:22", Value::Int(80520)),
        ("53:53", Value::Int(193_980)),
        ("1:2:3", Value::Int(3723)),
        (":verbose", Value::Symbol("verbose".to_owned())),
        (":\"a b\"", Value::Symbol("a b".to_owned())),
        ("::1", Value::Symbol(":1".to_owned())),
        (":'a'b", Value::Symbol("a".to_owned())),
        (":'a", Value::Symbol("'a".to_owned())),
        (":\"a'", Value::Symbol("\"a'".to_owned())),
        ("2024-01-01", Value::Time("2024-01-01".to_owned())),
        ("2024-0-01 10:00:00", text("2024-0-01 10:00:00")),
        (
            "2024-02-31 10:00:00",
            Value::Time("2024-02-31 10:00:00".to_owned()),
        ),
        (
            "123456789012345678901234567890",
            Value::BigInt("123456789012345678901234567890".to_owned()),
        ),
        (
            "0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF",
            Value::BigInt("5444517870735015415413993718908291383295".to_owned()),
        ),
    ] {
        assert_eq!(value(written), meaning, "{written}");
    }
    for written in [
        "y",
        "n",
        "0o17",
        "1e3",
        "1.5e3",
        "08",
        "3306:3306",
        "80:80",
        "8080:80",
        "1.2.3",
        "10.0.0.1",
        ".",
        "-",
        "_5",
        "2024-02-30",
        "trueish",
        "1__0",
        "v1",
        "5m",
        "a:b",
        "10%",
    ] {
        if written != "-" {
            assert_eq!(value(written), text(written), "{written}");
        }
    }
    for written in ["\"017\"", "'yes'", "!!str 12"] {
        let expected = written.trim_start_matches("!!str ").trim_matches(['"', '\'']);
        assert_eq!(value(written), text(expected), "{written}");
    }
}

#[test]
fn merge_keys_work_as_in_psych() {
    let root =
        load("x: &x {a: 1, b: 2}\ny: &y {b: 3, c: 4}\nm:\n  b: 0\n  <<: [*x, *y]\n  c: 5\nn:\n  <<: text\n")
            .expect("valid");
    let merged = root.get("m").expect("m").to_json();
    assert_eq!(merged, serde_json::json!({"b": 2, "c": 5, "a": 1}));
    assert_eq!(
        root.get("n").expect("n").to_json(),
        serde_json::json!({"<<": "text"})
    );
}

#[test]
fn of_equal_keys_the_last_wins_and_both_are_told() {
    let document = read("a: 1\nb: 2\na: 3\n", 0, &|line, column| (line, column)).expect("valid");
    assert_eq!(
        document.root.expect("root").to_json(),
        serde_json::json!({"a": 3, "b": 2})
    );
    let (first, last) = &document.duplicates[0];
    assert_eq!((first.place.line, last.place.line), (1, 3));
}

#[test]
fn only_the_first_document_counts() {
    assert_eq!(
        load("a: 1\n---\n[broken\n").expect("valid").to_json(),
        serde_json::json!({"a": 1})
    );
}

#[test]
fn bombs_are_refused_with_their_place() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let former = level - 1;
        let repeated = vec![format!("*a{former}"); 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{repeated}]\n"));
    }
    let error = load(&bomb).expect_err("bomb");
    assert!(error.message.contains("16 MiB"), "{error}");
    assert!(error.place.line > 1);
    let error = load("a: &a [*a]").expect_err("never ends");
    assert!(error.message.contains("stands inside"), "{error}");
    let error = load(&"[".repeat(1_000_000)).expect_err("too deep");
    assert!(error.message.contains("deeper than"), "{error}");
    let error = load(&"- ".repeat(1_000_000)).expect_err("too deep");
    assert!(error.message.contains("deeper than"), "{error}");
}

#[test]
fn long_lines_are_read() {
    for long in [
        format!("a: {}", "x".repeat(10 << 20)),
        format!("a: \"{}\"", "x\\n".repeat(3 << 20)),
        format!("# {}\na: 1", "x".repeat(10 << 20)),
        format!("a: [{}]", "b, ".repeat(1 << 20)),
    ] {
        load(&long).expect("valid");
    }
}

#[test]
fn a_block_scalar_may_end_the_file_without_a_line_break() {
    for (written, meaning) in [
        ("a: >\n  one\n  two", "one two"),
        ("a: |\n  one\n  two", "one\ntwo"),
        ("a: |+\n  one", "one"),
        ("a: |-\n  one", "one"),
        ("a: |\n  one\n", "one\n"),
        ("a: one", "one"),
        ("a: 'one'", "one"),
    ] {
        let root = load(written).expect("valid");
        assert_eq!(root.get("a").expect("a").value, text(meaning), "{written:?}");
    }
}

#[test]
fn what_makes_the_library_panic_is_an_error_with_its_place() {
    let error = load("a: 1\nb: [x, !foo, y]\n").expect_err("refused");
    assert_eq!((error.place.line, error.place.column), (2, 6), "{error}");
    assert!(error.hint.is_some());
}
