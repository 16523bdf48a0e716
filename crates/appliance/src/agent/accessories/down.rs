//! Which accessories are down though they should serve: for alerts and for `appliance doctor`.

use appliance_accessories::Goal;
use appliance_alerts::rules::Away;
use appliance_containers::engine::State;
use jiff::{SignedDuration, Timestamp};

use super::{Live, Which};
use crate::agent::Agent;

/// A server that just started, or is under load, may be not well for so long before anybody is told.
const PATIENCE: SignedDuration = SignedDuration::from_mins(2);

impl Agent {
    /// Accessories that should run and do not, or that are not well; `None` while Docker does not say.
    pub async fn accessories_down(&self) -> Option<Vec<Away>> {
        // A ledger that is damaged is told of as such.
        let (all, _) = self.accessories.records.all().ok()?;
        let mut down = Vec::new();
        for which in all {
            let Ok(record) = self.accessories.records.read(&which) else {
                continue;
            };
            // Somebody is at work on it: that takes what it takes, and says itself how it ends.
            let at_work = self.leases.holder(&format!("accessory {which}")).is_some()
                || (record.upgrade.as_ref()).is_some_and(|moving| moving.state.in_progress());
            if record.goal != Goal::Running || record.made.is_none() || at_work {
                continue;
            }
            let state = self.container_of(&record).await.ok()?.map(|found| found.state);
            let live = self.accessories.live(&which);
            let container = record
                .definition
                .as_ref()
                .map(|definition| definition.container.as_str());
            let next = next(&which, container.unwrap_or_default(), state);
            down.extend(why(state, &live, Timestamp::now()).map(|why| away(&which, &why, next)));
        }
        Some(down)
    }
}

/// What is wrong, if anything is.
fn why(state: Option<State>, live: &Live, now: Timestamp) -> Option<String> {
    let problem = live.problem.as_deref();
    match state {
        Some(State::Running) => {}
        None => return Some(format!("its container is gone{}", because(problem))),
        Some(State::Paused) => return Some("somebody paused it".to_owned()),
        Some(other) => {
            let word = format!("{other:?}").to_lowercase();
            return Some(format!("its container is {word}{}", because(problem)));
        }
    }
    let unwell = live.health.as_ref().filter(|verdict| !verdict.well)?;
    let since = live
        .unwell
        .filter(|since| now.duration_since(*since) > PATIENCE)?;
    let said = because((!unwell.said.is_empty()).then_some(unwell.said.as_str()));
    Some(format!(
        "{} says since {since:.0} that it is not well{said}",
        unwell.by
    ))
}

fn because(why: Option<&str>) -> String {
    why.map(|why| format!(": {why}")).unwrap_or_default()
}

/// What mends it: Docker starts nothing that is paused, and what runs already is not mended by being started.
fn next(which: &Which, container: &str, state: Option<State>) -> String {
    let verb = match state {
        Some(State::Paused) => return format!("docker unpause {container}, on the host"),
        Some(State::Running) => "restart",
        None | Some(_) => "start",
    };
    let Which { app, name } = which;
    format!("appliance accessory logs {name} --app {app}; appliance accessory {verb} {name} --app {app}")
}

fn away(which: &Which, why: &str, next: String) -> Away {
    Away {
        name: which.to_string(),
        why: format!("the accessory {which} does not serve: {why}"),
        next,
    }
}

impl Live {
    /// Notes what a server said of itself, and since when that is bad.
    pub(super) fn judged(&mut self, health: Option<super::health::Verdict>, now: Timestamp) {
        self.unwell = health
            .as_ref()
            .filter(|verdict| !verdict.well)
            .map(|_| self.unwell.unwrap_or(now));
        self.health = health;
    }
}

#[cfg(test)]
mod tests {
    use super::super::health::Verdict;
    use super::*;

    fn verdict(well: bool) -> Option<Verdict> {
        Some(Verdict {
            well,
            by: "pg_isready".to_owned(),
            said: "no response".to_owned(),
        })
    }

    #[test]
    fn what_does_not_run_is_down_and_what_is_not_well_only_after_a_while() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().expect("a time");
        let later = |minutes| now + SignedDuration::from_mins(minutes);
        let mut live = Live::default();
        assert_eq!(why(Some(State::Running), &live, now), None, "nobody can ask it");
        live.judged(verdict(false), now);
        live.judged(verdict(false), later(1));
        assert_eq!(why(Some(State::Running), &live, later(1)), None);
        let told = why(Some(State::Running), &live, later(3)).expect("down");
        assert!(
            told.contains("pg_isready") && told.contains("no response"),
            "{told}"
        );
        live.judged(verdict(true), later(4));
        assert_eq!(why(Some(State::Running), &live, later(5)), None);
        live.judged(verdict(false), later(6));
        assert_eq!(
            why(Some(State::Running), &live, later(7)),
            None,
            "it was well in between"
        );

        live.problem = Some("the port is taken".to_owned());
        let told = why(Some(State::Exited), &live, now).expect("down");
        assert!(told.contains("exited: the port is taken"), "{told}");
        assert!(why(None, &live, now).expect("down").contains("gone"));

        let which = Which {
            app: "shop".to_owned(),
            name: "db".to_owned(),
        };
        let told = |state| next(&which, "shop-db", state);
        assert_eq!(
            told(Some(State::Paused)),
            "docker unpause shop-db, on the host",
            "Docker starts nothing that is paused"
        );
        assert!(told(Some(State::Running)).ends_with("accessory restart db --app shop"));
        assert!(told(Some(State::Exited)).ends_with("accessory start db --app shop"));
    }
}
