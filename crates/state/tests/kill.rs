//! A process that writes a ledger and an audit log is killed at arbitrary moments: nothing acknowledged is lost, nothing is left broken.
//!
//! The program is its own victim: started with `--victim <directory>` it writes until it is killed, and says after each write what it wrote.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use appliance_state::{AuditLog, Entry, Ledger, Outcome, audit};
use jiff::Timestamp;

const ROUNDS: u64 = 25;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().position(|argument| argument == "--victim") {
        Some(at) => victim(Path::new(&arguments[at + 1])),
        None => kill_and_look(),
    }
}

fn ledger(directory: &Path) -> Ledger<Vec<u64>> {
    Ledger::at(directory.join("numbers.json"), 1)
}

fn entry(number: u64) -> Entry {
    Entry {
        who: "agent".to_owned(),
        verb: "count".to_owned(),
        app: None,
        payload_sha256: None,
        result: Outcome::Done,
        // Long enough for a write to be interrupted.
        detail: serde_json::json!({ "number": number, "padding": "x".repeat(20_000) }),
    }
}

fn victim(directory: &Path) {
    let mut log = AuditLog::open(directory.join("audit.log"), Timestamp::UNIX_EPOCH)
        .expect("the log opens")
        .log;
    let ledger = ledger(directory);
    let mut stdout = std::io::stdout();
    let mut next = ledger.read().expect("the ledger is whole").generation + 1;
    loop {
        let number = next;
        let record = log.append(entry(number), Timestamp::UNIX_EPOCH).expect("append");
        let ((), generation) = ledger.update(|numbers| numbers.push(number)).expect("update");
        writeln!(stdout, "{generation} {}", record.seq)
            .and_then(|()| stdout.flush())
            .expect("somebody listens");
        next = generation + 1;
    }
}

fn kill_and_look() {
    let directory = tempfile::tempdir().expect("a directory");
    let (mut generation, mut seq, mut repairs) = (0, 0, 0);
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .arg("--victim")
            .arg(directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut said = BufReader::new(child.stdout.take().expect("piped")).lines();
        // Another number of writes each round, then somewhere in the middle of the next one.
        for _ in 0..=round % 5 {
            let line = said.next().expect("it writes").expect("a line");
            (generation, seq) = parse(&line);
        }
        std::thread::sleep(std::time::Duration::from_micros(round * 733 % 7000));
        child.kill().expect("kill");
        child.wait().expect("it ends");
        // What it said before the kill took effect is acknowledged, too.
        for line in said {
            (generation, seq) = parse(&line.expect("a line"));
        }

        let held = ledger(directory.path()).read().expect("the ledger is whole");
        assert!(
            held.generation == generation || held.generation == generation + 1,
            "{} {generation}",
            held.generation
        );
        assert!(
            held.data.iter().copied().eq(1..=held.generation),
            "{:?}",
            held.data
        );
        let path = directory.path().join("audit.log");
        let opened = AuditLog::open(&path, Timestamp::UNIX_EPOCH).expect("the log opens");
        repairs += u64::from(opened.repaired.is_some());
        let verified = audit::verify(&path).expect("the log proves itself");
        assert!(
            verified.records >= seq,
            "{} acknowledged, {} there",
            seq,
            verified.records
        );
    }
    let mut left: Vec<String> = std::fs::read_dir(directory.path())
        .expect("list")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        // One unfinished file may be left by the last kill; the next write uses it up.
        .filter(|name| !name.ends_with(".new"))
        .collect();
    left.sort();
    let expected = [
        "audit.log",
        "audit.log.head",
        "audit.log.lock",
        "numbers.json",
        "numbers.json.lock",
        "numbers.json.previous",
    ];
    assert_eq!(left, expected, "no litter");
    assert!(generation >= ROUNDS, "the victim wrote in every round");
    let mut stdout = std::io::stdout();
    writeln!(
        stdout,
        "killed {ROUNDS} times after {generation} writes; {repairs} torn lines repaired"
    )
    .expect("stdout");
}

fn parse(line: &str) -> (u64, u64) {
    let (generation, seq) = line.split_once(' ').expect("two numbers");
    (
        generation.parse().expect("a number"),
        seq.parse().expect("a number"),
    )
}
