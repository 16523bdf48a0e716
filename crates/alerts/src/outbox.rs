//! Notices on their way: in order for each destination, tried until they arrive.
//!
//! A notice leaves the outbox after its destination took it. Between the two the process may die: then it is sent once more,
//! with the same number, so that whoever cannot bear that can tell.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::notice::Notice;

/// Wait after the first failure; doubled from then on.
const FIRST: SignedDuration = SignedDuration::from_secs(5);
/// No wait is longer.
const LONGEST: SignedDuration = SignedDuration::from_mins(10);
/// What could not be delivered for this long is given up.
const PATIENCE: SignedDuration = SignedDuration::from_hours(72);
/// So often a notice that its destination will not have holds up those behind it.
const TRIES: u32 = 3;
/// Most notices on their way; the oldest is given up for a newer one.
const MOST: usize = 1_000;

/// A notice on its way to one destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// Where to; the driver's own name for it.
    pub to: String,
    /// What.
    pub notice: Notice,
    /// How often it failed.
    pub failures: u32,
    /// Not before.
    pub due: Timestamp,
    /// Why it failed last.
    pub why: Option<String>,
    /// The destination will not have it, so later ones may pass it; it is tried on all the same.
    #[serde(default)]
    pub aside: bool,
}

/// All notices on their way, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Outbox(Vec<Delivery>);

impl Outbox {
    /// One notice for each destination; returns those that had to be given up for it.
    pub fn add(&mut self, notice: &Notice, destinations: &[String], now: Timestamp) -> Vec<Delivery> {
        self.0.extend(destinations.iter().map(|to| Delivery {
            to: to.clone(),
            notice: notice.clone(),
            failures: 0,
            due: now,
            why: None,
            aside: false,
        }));
        let surplus = self.0.len().saturating_sub(MOST);
        self.0.drain(..surplus).collect()
    }

    /// Forgets what was on its way to destinations that are no more.
    pub fn keep_only(&mut self, destinations: &[String]) {
        self.0.retain(|delivery| destinations.contains(&delivery.to));
    }

    /// What to send now: the oldest for each destination, if its wait is over.
    pub fn due(&self, now: Timestamp) -> Vec<Delivery> {
        self.heads()
            .filter(|delivery| delivery.due <= now)
            .cloned()
            .collect()
    }

    /// When the next one is due.
    pub fn next(&self) -> Option<Timestamp> {
        self.heads().map(|delivery| delivery.due).min()
    }

    fn heads(&self) -> impl Iterator<Item = &Delivery> {
        self.0.iter().enumerate().filter_map(|(index, delivery)| {
            let first = self.0[..index]
                .iter()
                .all(|before| before.aside || before.to != delivery.to);
            (delivery.aside || first).then_some(delivery)
        })
    }

    /// It arrived.
    pub fn sent(&mut self, id: u64, to: &str) {
        self.0
            .retain(|delivery| delivery.notice.id != id || delivery.to != to);
    }

    /// It did not; returns it if it is given up.
    ///
    /// `lasting`: the destination was reached and will not have this very notice, now or later.
    pub fn failed(
        &mut self,
        id: u64,
        to: &str,
        why: String,
        lasting: bool,
        now: Timestamp,
    ) -> Option<Delivery> {
        let index = self
            .0
            .iter()
            .position(|delivery| delivery.notice.id == id && delivery.to == to)?;
        let delivery = &mut self.0[index];
        delivery.failures += 1;
        delivery.why = Some(why);
        delivery.aside = lasting && delivery.failures >= TRIES;
        if now.duration_since(delivery.notice.at) > PATIENCE {
            return Some(self.0.remove(index));
        }
        let wait = (FIRST * 2_i32.pow((delivery.failures - 1).min(10))).min(LONGEST);
        delivery.due = now.saturating_add(wait).unwrap_or(Timestamp::MAX);
        None
    }

    /// Everything on its way.
    pub fn list(&self) -> &[Delivery] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Book;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("a time")
    }

    #[test]
    fn a_failure_holds_back_its_own_destination_alone() {
        let (mut book, mut outbox) = (Book::default(), Outbox::default());
        let to = ["a".to_owned(), "b".to_owned()];
        let (one, two) = (book.test(at(0)), book.test(at(1)));
        outbox.add(&one, &to, at(0));
        outbox.add(&two, &to, at(1));
        assert_eq!(outbox.due(at(1)).len(), 2, "the older one for each");
        outbox.sent(one.id, "b");
        assert!(
            outbox
                .failed(one.id, "a", "refused".to_owned(), false, at(1))
                .is_none()
        );
        let due: Vec<_> = outbox
            .due(at(2))
            .into_iter()
            .map(|due| (due.to, due.notice.id))
            .collect();
        assert_eq!(due, [("b".to_owned(), two.id)], "a waits, and keeps its order");
        assert_eq!(outbox.due(at(6)).len(), 2);
        let late = at(73 * 3_600);
        let given_up = outbox.failed(one.id, "a", "refused".to_owned(), false, late);
        assert_eq!(given_up.map(|delivery| delivery.failures), Some(2));
        assert_eq!(outbox.list().len(), 2, "and the next one goes on");
        outbox.keep_only(&["b".to_owned()]);
        assert!(outbox.list().iter().all(|delivery| delivery.to == "b"));
    }

    #[test]
    fn a_notice_that_nobody_will_have_holds_up_no_other_for_long() {
        let (mut book, mut outbox) = (Book::default(), Outbox::default());
        let to = ["a".to_owned()];
        let notices: Vec<_> = (0..3).map(|second| book.test(at(second))).collect();
        for notice in &notices {
            outbox.add(notice, &to, at(3));
        }
        let mut now = 3;
        let mut arrived = Vec::new();
        while arrived.len() < 2 {
            now += 60;
            assert!(now < 3_600, "{outbox:?}");
            for due in outbox.due(at(now)) {
                if due.notice.id == notices[0].id {
                    outbox.failed(due.notice.id, "a", "too long".to_owned(), true, at(now));
                } else {
                    arrived.push(due.notice.id);
                    outbox.sent(due.notice.id, "a");
                }
            }
        }
        assert_eq!(arrived, [notices[1].id, notices[2].id], "in their order");
        assert_eq!(outbox.list().len(), 1, "the first is tried on");
    }

    proptest! {
        #[test]
        fn everything_arrives_once_and_in_order_through_failures_and_restarts(
            steps in prop::collection::vec((1_i64..100, any::<bool>(), any::<[bool; 2]>()), 1..60)
        ) {
            let (mut book, mut outbox) = (Book::default(), Outbox::default());
            let to = ["a".to_owned(), "b".to_owned()];
            let mut arrived = [Vec::new(), Vec::new()];
            let mut now = 0;
            let mut turn = |outbox: &mut Outbox, now: i64, answers: [bool; 2]| {
                for due in outbox.due(at(now)) {
                    let index = usize::from(due.to == "b");
                    if answers[index] {
                        arrived[index].push(due.notice.id);
                        outbox.sent(due.notice.id, &due.to);
                    } else {
                        outbox.failed(due.notice.id, &due.to, "no".to_owned(), false, at(now));
                    }
                }
            };
            for (pause, more, answers) in steps {
                now += pause;
                if more {
                    let notice = book.test(at(now));
                    outbox.add(&notice, &to, at(now));
                }
                turn(&mut outbox, now, answers);
                let text = serde_json::to_string(&outbox).expect("serialises");
                outbox = serde_json::from_str(&text).expect("parses");
            }
            for _ in 0..=book.last {
                now += 700;
                turn(&mut outbox, now, [true, true]);
            }
            prop_assert!(outbox.list().is_empty());
            let all: Vec<u64> = (1..=book.last).collect();
            prop_assert_eq!(&arrived[0], &all);
            prop_assert_eq!(&arrived[1], &all);
        }
    }
}
