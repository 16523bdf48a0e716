//! The proxy's log, requests included: what its unit wrote to the host's journal, as frames.

use std::process::Stdio;

use anyhow::Context as _;
use appliance_containers::engine::LogQuery;
use appliance_push::session::Frame;
use bytes::Bytes;
use http::{Response, StatusCode};
use jiff::Timestamp;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::sync::mpsc;

use super::api::{Body, problem};
use super::exec::frames;

/// The unit whose journal is read.
const UNIT: &str = "appliance-proxy.service";
/// Lines that wait for a slow reader.
const QUEUE: usize = 64;

/// The log from and as far as `query` says.
pub fn answer(query: &LogQuery) -> Response<Body> {
    let child = tokio::process::Command::new("journalctl")
        .args(arguments(query))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let child = match child {
        Ok(child) => child,
        Err(error) => {
            let why = format!("cannot run journalctl: {error}");
            return problem(StatusCode::INTERNAL_SERVER_ERROR, "logs", &why);
        }
    };
    let (sender, receiver) = mpsc::channel(QUEUE);
    let timestamps = query.timestamps;
    tokio::spawn(async move {
        let last = tokio::select! {
            carried = carry(child, timestamps, &sender) => match carried {
                Ok(code) => Frame::Exit(code),
                Err(error) => Frame::Broken(super::chain(&*error)),
            },
            // Whoever followed has left; with nothing to tell them that would be noticed only much later.
            () = sender.closed() => return,
        };
        let _left = sender.send(last).await;
    });
    frames(receiver)
}

fn arguments(query: &LogQuery) -> Vec<String> {
    let mut arguments = vec![
        format!("--unit={UNIT}"),
        "--output=json".to_owned(),
        "--quiet".to_owned(),
        "--no-pager".to_owned(),
    ];
    let lines = query
        .tail
        .map_or_else(|| "all".to_owned(), |lines| lines.to_string());
    arguments.push(format!("--lines={lines}"));
    arguments.extend(query.since.map(|second| format!("--since=@{second}")));
    arguments.extend(query.until.map(|second| format!("--until=@{second}")));
    arguments.extend(query.follow.then(|| "--follow".to_owned()));
    arguments
}

/// Sends what journalctl prints; it is ended when nobody reads any more.
async fn carry(
    mut child: tokio::process::Child,
    timestamps: bool,
    sender: &mpsc::Sender<Frame>,
) -> anyhow::Result<i32> {
    let stdout = child.stdout.take().context("journalctl has an output")?;
    let mut complaints = child.stderr.take().context("journalctl has an error output")?;
    let mut records = BufReader::new(stdout).split(b'\n');
    loop {
        let record = tokio::select! {
            record = records.next_segment() => record.context("cannot read from journalctl")?,
            // A followed log would otherwise stay open for ever.
            () = sender.closed() => return Ok(0),
        };
        let Some(record) = record else { break };
        let Some(line) = line(&record, timestamps) else {
            continue;
        };
        if sender.send(Frame::Output(line)).await.is_err() {
            return Ok(0);
        }
    }
    let status = child.wait().await.context("cannot wait for journalctl")?;
    if status.success() {
        return Ok(0);
    }
    let mut why = String::new();
    complaints
        .read_to_string(&mut why)
        .await
        .context("cannot read why journalctl failed")?;
    anyhow::bail!("journalctl ended with {status}: {}", why.trim());
}

/// One record of the journal as Docker would show it: the time, then what was written.
fn line(record: &[u8], timestamps: bool) -> Option<Bytes> {
    let record: Value = serde_json::from_slice(record).ok()?;
    let mut line = Vec::new();
    if timestamps {
        let micros = record.get("__REALTIME_TIMESTAMP")?.as_str()?.parse().ok()?;
        let time = Timestamp::from_microsecond(micros).ok()?;
        line.extend_from_slice(format!("{time:.6} ").as_bytes());
    }
    match record.get("MESSAGE")? {
        Value::String(text) => line.extend_from_slice(text.as_bytes()),
        // The journal shows what is no UTF-8 as a list of its bytes.
        Value::Array(bytes) => line.extend(bytes.iter().filter_map(|byte| u8::try_from(byte.as_u64()?).ok())),
        _ => return None,
    }
    line.push(b'\n');
    Some(line.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_becomes_a_line_with_or_without_its_time() {
        let record = br#"{"__REALTIME_TIMESTAMP":"1700000000000001","MESSAGE":"{\"status\":200}"}"#;
        let shown = |timestamps| line(record, timestamps).expect("a line");
        assert_eq!(shown(false), "{\"status\":200}\n");
        assert_eq!(shown(true), "2023-11-14T22:13:20.000001Z {\"status\":200}\n");
        let bytes = br#"{"MESSAGE":[104,255,105]}"#;
        assert_eq!(line(bytes, false).expect("bytes"), &b"h\xffi\n"[..]);
        assert_eq!(line(br#"{"MESSAGE":null}"#, false), None);
        assert_eq!(line(b"no json", false), None);
    }

    #[test]
    fn journalctl_is_asked_for_what_was_wanted() {
        let query = LogQuery {
            tail: Some(5),
            since: Some(1_700_000_000),
            follow: true,
            ..LogQuery::default()
        };
        let asked = arguments(&query);
        for argument in ["--lines=5", "--since=@1700000000", "--follow"] {
            assert!(
                asked.iter().any(|found| found == argument),
                "{argument}: {asked:?}"
            );
        }
        let asked = arguments(&LogQuery::default());
        assert!(asked.iter().any(|found| found == "--lines=all"), "{asked:?}");
    }
}
