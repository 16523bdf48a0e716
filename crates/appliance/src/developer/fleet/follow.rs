//! Hears one host of a group until its end, and keeps telling it that its leader is there.

use appliance_push::change::Verb;
use appliance_rollout::{Heard, Phase};
use tokio::sync::{mpsc, oneshot};

use super::outcome::Outcome;
use super::{Host, Way};
use crate::developer::change::{seal, show};
use crate::developer::lead::{self, Led};
use crate::ui;
use crate::wire::{BEAT, End, Event, Word};

/// A host's place in the order in which changes are submitted.
///
/// Every push submits to its hosts one after the other and in the same order, the next when the one before has taken
/// the change: of two pushes that meet, one is refused before it holds anything, and the other is not disturbed.
pub struct Turn {
    mine: oneshot::Receiver<bool>,
    next: oneshot::Sender<bool>,
}

/// As many turns as hosts; the first may begin at once.
pub fn turns(count: usize) -> Vec<Turn> {
    let (first, mut mine) = oneshot::channel();
    let mut turns = Vec::with_capacity(count);
    for _ in 0..count {
        let (next, after) = oneshot::channel();
        turns.push(Turn {
            mine: std::mem::replace(&mut mine, after),
            next,
        });
    }
    let _nobody_takes_part = first.send(true);
    turns
}

/// One host of a group, from the leader's side.
pub struct Follow<'a> {
    /// How it is reached again.
    pub way: &'a Way<'a>,
    /// The host.
    pub host: &'a Host,
    /// Its place among the others.
    pub index: usize,
    /// Where what is heard of it goes.
    pub told: mpsc::Sender<(usize, Heard)>,
}

impl Follow<'_> {
    /// Submits `verb` when it is this host's turn, and follows it to its end.
    pub async fn run(
        self,
        verb: Verb,
        turn: Turn,
        (says, said): (mpsc::Sender<Word>, mpsc::Receiver<Word>),
    ) -> Outcome {
        // A turn that is dropped is one that never comes.
        if turn.mine.await != Ok(true) {
            let _nobody_waits = turn.next.send(false);
            self.tell(Heard::Bad("was not begun".to_owned())).await;
            return Outcome::Untouched;
        }
        let promotes = verb == Verb::Promote;
        let begun = async {
            let envelope = seal(&self.host.signer, self.way.subject(self.host)?, verb).await?;
            let mut led = lead::submit(&self.host.link, &envelope, said).await?;
            let first = led.next().await?;
            anyhow::Ok((led, first))
        };
        let (led, first) = match begun.await {
            Ok(begun) => begun,
            Err(error) => {
                let why = format!("{error:#}");
                self.tell(Heard::Lost(why.clone())).await;
                let _nobody_waits = turn.next.send(false);
                return Outcome::Lost(why);
            }
        };
        let taken = !matches!(first, Event::End(_));
        if taken {
            let _nobody_waits = turn.next.send(true);
            return self.hear(led, first, says, promotes).await;
        }
        // Why it refuses is heard before those who do not begin because of it.
        let outcome = self.hear(led, first, says, promotes).await;
        let _nobody_waits = turn.next.send(false);
        outcome
    }

    async fn hear(&self, mut led: Led, first: Event, says: mpsc::Sender<Word>, promotes: bool) -> Outcome {
        // Of a canary nothing is found out before its switch: it stays what it is.
        let from = if promotes { Phase::Switched } else { Phase::Healthy };
        let mut beat = tokio::time::interval(BEAT);
        let mut may_serve = false;
        let mut event = Ok(first);
        loop {
            match event {
                Ok(Event::End(end)) => {
                    self.tell(heard(&end)).await;
                    return Outcome::Ended(end);
                }
                Ok(Event::Phase { phase, detail }) => {
                    ui::note(&format!("  {}: {phase:<16} {detail}", self.host.name));
                    if let Some(phase) = phase_of(&phase) {
                        may_serve |= phase >= from;
                        self.tell(Heard::Reached(phase)).await;
                    }
                }
                Ok(Event::Waiting { gate }) => self.tell(Heard::Waits(gate)).await,
                Ok(Event::Output { source, line }) => show(Event::Output {
                    source: format!("{}: {source}", self.host.name),
                    line,
                }),
                Ok(Event::Warning { message }) => ui::warn(&format!("{}: {message}", self.host.name)),
                Err(error) => {
                    // Before its switch it goes back by itself; after that only it can tell.
                    return self.lost(format!("{error:#}"), may_serve).await;
                }
            }
            event = loop {
                tokio::select! {
                    event = led.next() => break event,
                    _ = beat.tick() => {
                        // A host that does not read is noticed by its silence in the other direction.
                        let _full = says.try_send(Word::Beat);
                    }
                }
            };
        }
    }

    async fn lost(&self, why: String, may_serve: bool) -> Outcome {
        ui::warn(&format!("{}: {why}", self.host.name));
        let found = if may_serve {
            ui::note(&format!("{}: asking what became of it", self.host.name));
            self.way.find_out(self.host).await
        } else {
            None
        };
        match found {
            Some(true) => {
                self.tell(Heard::Good).await;
                Outcome::FoundNew
            }
            Some(false) => {
                self.tell(Heard::Bad("it went back".to_owned())).await;
                Outcome::FoundOld(why)
            }
            None => {
                self.tell(Heard::Lost(why.clone())).await;
                Outcome::Lost(why)
            }
        }
    }

    async fn tell(&self, heard: Heard) {
        let _leader_left = self.told.send((self.index, heard)).await;
    }
}

fn heard(end: &End) -> Heard {
    match end {
        End::Done { .. } | End::Token { .. } | End::Session { .. } => Heard::Good,
        End::Refused { message, .. } | End::Failed { message, .. } => Heard::Bad(message.clone()),
        End::Reverted { why, .. } => Heard::Bad(why.clone()),
    }
}

fn phase_of(name: &str) -> Option<Phase> {
    serde_json::from_value(serde_json::Value::String(name.replace('-', "_"))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_next_begins_when_the_one_before_was_taken_and_not_at_all_otherwise() {
        let mut turns = turns(3).into_iter();
        let mut next = || turns.next().expect("there are three");
        let (first, second, third) = (next(), next(), next());
        assert_eq!(first.mine.await, Ok(true), "the first waits for nobody");
        let mut mine = second.mine;
        assert!(mine.try_recv().is_err(), "the second waits for the first");
        first.next.send(true).expect("somebody waits");
        assert_eq!(mine.await, Ok(true));
        drop(second.next);
        assert!(
            third.mine.await.is_err(),
            "the third does not begin when the second is gone"
        );
    }
}
