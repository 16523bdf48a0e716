//! Does what the group decides, until all hosts have ended.
//!
//! Everything here waits beside the hosts' followers and never blocks them: a leader who is busy with a hook still
//! tells the hosts that it is there, and still hears when one of them fails.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use appliance_rollout::{Action, Group, Heard};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::ui;
use crate::wire::Word;

/// How leading ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Led {
    /// With the last host.
    Through,
    /// Whoever led had enough.
    Left,
}

/// Who and what is led.
pub struct Leading<'a> {
    /// Names of the hosts, in the group's order.
    pub names: &'a [String],
    /// `boot.wait`: time between two slices.
    pub wait: Duration,
    /// What each host is told.
    pub words: &'a [mpsc::Sender<Word>],
    /// What the hosts tell; closed when the last of them has ended.
    pub hears: &'a mut mpsc::Receiver<(usize, Heard)>,
    /// Each Ctrl-C.
    pub interrupts: &'a mut mpsc::Receiver<()>,
}

/// What follows a hook that went well.
#[derive(Debug, Clone, Copy)]
enum Then {
    Opened,
    /// Close after this time.
    Close(Duration),
}

impl Leading<'_> {
    /// Leads to the end; `hook` runs a hook about some of the hosts.
    pub async fn lead<F>(&mut self, group: &mut Group, hook: impl Fn(&'static str, Vec<String>) -> F) -> Led
    where
        F: Future<Output = anyhow::Result<()>>,
    {
        let mut queue = VecDeque::new();
        let mut running: Option<(Then, Pin<Box<F>>)> = None;
        let mut closes: Option<Instant> = None;
        let mut interrupted = false;
        let mut all_ended = false;
        loop {
            while let Some(action) = queue.pop_front() {
                match action {
                    Action::Open(slice) => {
                        running = Some((Then::Opened, Box::pin(hook("pre-app-boot", self.some(&slice)))));
                    }
                    Action::Close(slice) => {
                        let last = slice.last().is_some_and(|index| index + 1 == self.names.len());
                        let wait = if last { Duration::ZERO } else { self.wait };
                        let hook = hook("post-app-boot", self.some(&slice));
                        running = Some((Then::Close(wait), Box::pin(hook)));
                    }
                    Action::Pass(index, gate) => self.say(index, Word::Pass { gate }).await,
                    Action::Cancel(index, why) => self.say(index, Word::Cancel { why }).await,
                    Action::Leave(index) => self.say(index, Word::Leave).await,
                }
            }
            // A hook is let come to its end: nobody knows what half of it leaves behind.
            if all_ended && running.is_none() {
                return Led::Through;
            }
            tokio::select! {
                heard = self.hears.recv(), if !all_ended => match heard {
                    Some((index, heard)) => queue.extend(group.heard(index, heard)),
                    None => all_ended = true,
                },
                (then, ended) = end_of(&mut running), if running.is_some() => {
                    running = None;
                    match (ended, then) {
                        (Err(error), _) => queue.extend(group.cancel(&format!("{error:#}"))),
                        (Ok(()), Then::Opened) => queue.extend(group.opened()),
                        (Ok(()), Then::Close(wait)) => closes = Some(Instant::now() + wait),
                    }
                }
                () = tokio::time::sleep_until(closes.unwrap_or_else(Instant::now)), if closes.is_some() => {
                    closes = None;
                    queue.extend(group.closed());
                }
                Some(()) = self.interrupts.recv() => {
                    if interrupted {
                        return Led::Left;
                    }
                    interrupted = true;
                    ui::note("taking every host back; once more to leave them to themselves");
                    queue.extend(group.cancel("interrupted by whoever led it"));
                }
            }
        }
    }

    fn some(&self, slice: &[usize]) -> Vec<String> {
        slice.iter().map(|index| self.names[*index].clone()).collect()
    }

    async fn say(&self, index: usize, word: Word) {
        if let Some(host) = self.words.get(index) {
            let _ended = host.send(word).await;
        }
    }
}

async fn end_of<F>(running: &mut Option<(Then, Pin<Box<F>>)>) -> (Then, anyhow::Result<()>)
where
    F: Future<Output = anyhow::Result<()>>,
{
    match running {
        Some((then, hook)) => (*then, hook.await),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
