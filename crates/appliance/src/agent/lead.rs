//! Hears whoever leads this host together with others: words on the connection that carried the signed change.
//!
//! The connection is the proof: nobody else can speak on it, and when it ends or falls silent the leader is gone.

use appliance_push::change::Envelope;
use appliance_rollout::Event;
use bytes::BytesMut;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::wire::{SILENCE, Word};

/// One word is one short line.
const WORD_LIMIT: usize = 8 << 10;

/// A leader on the line.
#[derive(Debug)]
pub struct Lead {
    words: mpsc::Receiver<Word>,
    silent_from: Instant,
    /// Dropped with the leader.
    _there: Option<oneshot::Sender<()>>,
}

impl Lead {
    /// A leader whose words come from there.
    pub fn of(words: mpsc::Receiver<Word>) -> Self {
        Self {
            words,
            silent_from: Instant::now() + SILENCE,
            _there: None,
        }
    }

    /// The leader, and what ends as soon as nobody listens to them any more.
    pub fn watched(mut self) -> (Self, oneshot::Receiver<()>) {
        let (there, gone) = oneshot::channel();
        self._there = Some(there);
        (self, gone)
    }

    /// What the rollout is told next; [`Event::Alone`] once and for all when the leader is gone. Loses nothing when dropped.
    pub async fn next(&mut self) -> Event {
        loop {
            match tokio::time::timeout_at(self.silent_from, self.words.recv()).await {
                Ok(Some(word)) => {
                    self.silent_from = Instant::now() + SILENCE;
                    match word {
                        Word::Pass { gate } => return Event::Pass { gate },
                        Word::Cancel { why } => return Event::Cancel { why },
                        Word::Leave => return Event::Alone,
                        Word::Beat => {}
                    }
                }
                Ok(None) | Err(_) => return Event::Alone,
            }
        }
    }
}

/// Reads the envelope, at most `limit` bytes, and goes on reading words behind the caller's back.
///
/// # Errors
/// In words, when the body does not begin with an envelope.
pub async fn read(mut body: Incoming, limit: usize) -> Result<(Envelope, Lead), String> {
    let mut buffer = BytesMut::new();
    let line = loop {
        if let Some(line) = line(&mut buffer) {
            break line;
        }
        if buffer.len() > limit {
            return Err(format!("the signed change is longer than {limit} bytes"));
        }
        match body.frame().await {
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    buffer.extend_from_slice(&data);
                }
            }
            Some(Err(error)) => return Err(format!("the signed change did not arrive whole: {error}")),
            None => return Err("the body ends before the signed change does; it is one line".to_owned()),
        }
    };
    let envelope = serde_json::from_slice(&line)
        .map_err(|error| format!("the first line is not a signed change: {error}"))?;
    let (sender, words) = mpsc::channel(16);
    tokio::spawn(hear(body, buffer, sender));
    Ok((envelope, Lead::of(words)))
}

async fn hear(mut body: Incoming, mut buffer: BytesMut, sender: mpsc::Sender<Word>) {
    loop {
        while let Some(line) = line(&mut buffer) {
            match serde_json::from_slice(&line) {
                Ok(word) => {
                    if sender.send(word).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!("a leader said something we do not understand: {error}");
                    return;
                }
            }
        }
        if buffer.len() > WORD_LIMIT {
            tracing::warn!("a leader said a word of more than {WORD_LIMIT} bytes");
            return;
        }
        let frame = tokio::select! {
            frame = body.frame() => frame,
            () = sender.closed() => return,
        };
        match frame {
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    buffer.extend_from_slice(&data);
                }
            }
            Some(Err(_)) | None => return,
        }
    }
}

fn line(buffer: &mut BytesMut) -> Option<BytesMut> {
    let end = buffer.iter().position(|byte| *byte == b'\n')?;
    Some(buffer.split_to(end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use appliance_rollout::Gate;

    #[tokio::test]
    async fn a_leader_who_is_silent_or_gone_is_no_leader() {
        let (sender, words) = mpsc::channel(4);
        let mut lead = Lead {
            words,
            silent_from: Instant::now(),
            _there: None,
        };
        sender.send(Word::Beat).await.expect("heard");
        sender
            .send(Word::Pass { gate: Gate::Switch })
            .await
            .expect("heard");
        assert_eq!(lead.next().await, Event::Pass { gate: Gate::Switch });
        assert!(lead.silent_from > Instant::now(), "a word ends the silence");
        lead.silent_from = Instant::now();
        assert_eq!(lead.next().await, Event::Alone, "silent for too long");
        let mut lead = Lead::of(lead.words);
        drop(sender);
        assert_eq!(lead.next().await, Event::Alone, "gone");
    }
}
