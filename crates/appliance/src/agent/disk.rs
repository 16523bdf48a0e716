//! The disk guard: how full it is, when it will be, and who fills it without bound.
//!
//! Room for an upload is checked before it begins (`agent/change`), and old images of an app go after each rollout (`agent/world`);
//! this page looks at the rest: the trend, and containers whose logs nobody bounds.
//! Where Docker keeps its data on a file system of its own, that is looked at as well: it is the one that fills.
//! Only images of our apps that no release at hand names are ever removed: what a rollback needs stays.

use std::collections::VecDeque;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use appliance_bootstrap::Local;
use appliance_bootstrap::host::{Command, Host as _};
use appliance_state::{Key, Ledger, Store};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{Agent, chain, images};

/// Layout of the ledger.
const SCHEMA: u32 = 1;
/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(300);
/// Seconds that the trend looks back.
const WINDOW: u64 = 24 * 3_600;
/// Seconds of history below which nothing is foretold.
const SHORTEST: u64 = 2 * 3_600;
/// Seconds until the disk is full, below which somebody is told.
const SOON: u64 = 3 * 24 * 3_600;

/// Gives up what can be had again, and nothing that a rollback or an app needs; then shows what takes the room.
const ROOM: &str = "apt-get clean; journalctl --vacuum-size=200M; docker builder prune --all --force; docker system df; du -xh --max-depth=2 /var | sort -h | tail";

/// Free bytes over time, as `(Unix seconds, bytes)`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Trend(VecDeque<(u64, u64)>);

impl Trend {
    /// One look: `free` bytes at `now` (Unix seconds).
    pub fn see(&mut self, now: u64, free: u64) {
        // Of a clock that was put back, what lies ahead says nothing.
        self.0.retain(|(time, _)| *time < now);
        self.0.push_back((now, free));
        while self.0.front().is_some_and(|(time, _)| time + WINDOW < now) {
            self.0.pop_front();
        }
    }

    /// Seconds until nothing is left if it goes on like this; `None` if it does not shrink, or too little was seen.
    ///
    /// A straight line through all looks: one large upload moves it less than a log that grows all day.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )]
    pub fn full_in(&self) -> Option<u64> {
        let (first, last) = (self.0.front()?, self.0.back()?);
        if last.0.saturating_sub(first.0) < SHORTEST {
            return None;
        }
        let count = self.0.len() as f64;
        let at = |time: u64| (time - first.0) as f64;
        let mean_time = self.0.iter().map(|(time, _)| at(*time)).sum::<f64>() / count;
        let mean_free = self.0.iter().map(|(_, free)| *free as f64).sum::<f64>() / count;
        let (mut above, mut below) = (0.0, 0.0);
        for (time, free) in &self.0 {
            above += (at(*time) - mean_time) * (*free as f64 - mean_free);
            below += (at(*time) - mean_time).powi(2);
        }
        let slope = above / below;
        (slope < 0.0).then(|| (last.1 as f64 / -slope) as u64)
    }
}

/// A file system, and how it went.
#[derive(Debug)]
struct Followed {
    /// What is written of the trend: an agent that was updated goes on foretelling.
    ledger: Ledger<Trend>,
    trend: Mutex<Trend>,
}

impl Followed {
    /// With the trend as it was written down; one that cannot be read begins anew.
    fn open(store: &Store, name: &str) -> Self {
        let ledger = store.single(&Key::new(name).expect("our own names are good keys"), SCHEMA);
        let trend = ledger.read().map(|snapshot| snapshot.data).unwrap_or_default();
        Self {
            ledger,
            trend: Mutex::new(trend),
        }
    }

    fn see(&self, now: u64, free: u64) {
        let mut trend = held(&self.trend);
        trend.see(now, free);
        // A full disk keeps nothing, and this least of all.
        if let Err(error) = self.ledger.update(|written| written.clone_from(&trend)) {
            tracing::debug!("the trend of the disk is not written down: {}", chain(&error));
        }
    }

    fn full_in(&self) -> Option<u64> {
        held(&self.trend).full_in()
    }
}

fn held<T>(lock: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Free and all bytes of a file system.
pub type Room = (u64, u64);

/// What the agent holds of the disk.
#[derive(Debug)]
pub struct Guard {
    /// Where our state lies.
    ours: Followed,
    /// Where Docker keeps its data, if that is another file system.
    docker: Followed,
    /// As last seen of the latter.
    docker_room: Mutex<Option<Room>>,
    /// Where Docker last said that it keeps its data: a disk that is full may well be why it says nothing.
    docker_root: Mutex<Option<PathBuf>>,
    unbounded: Mutex<Vec<String>>,
}

impl Guard {
    /// With the trends as they were written down.
    pub fn open(store: &Store) -> Self {
        Self {
            ours: Followed::open(store, "disk"),
            docker: Followed::open(store, "disk-docker"),
            docker_room: Mutex::default(),
            docker_root: Mutex::default(),
            unbounded: Mutex::default(),
        }
    }

    fn see(&self, now: u64, free: u64, docker: Option<Room>) {
        self.ours.see(now, free);
        if let Some((free, _)) = docker {
            self.docker.see(now, free);
        }
        *held(&self.docker_room) = docker;
    }

    /// Where Docker keeps its data, by what it `said` now, or else before, or else does unless told otherwise.
    fn docker_root(&self, said: Option<String>) -> PathBuf {
        let mut known = held(&self.docker_root);
        if let Some(said) = said {
            *known = Some(PathBuf::from(said));
        }
        known.clone().unwrap_or_else(|| PathBuf::from("/var/lib/docker"))
    }

    /// Of our own file system, as it is, and of Docker's the one with less room, with the seconds until either is full.
    pub fn worst(&self, ours: Room) -> (Room, Option<u64>) {
        let first = self.ours.full_in();
        match *held(&self.docker_room) {
            Some(docker) => {
                let fuller = if share(docker) < share(ours) { docker } else { ours };
                (fuller, first.into_iter().chain(self.docker.full_in()).min())
            }
            None => (ours, first),
        }
    }

    /// What is wrong, one sentence each, with the next command.
    pub fn problems(&self, free: u64, total: u64, reserve: f64) -> Vec<String> {
        let mut problems = Vec::new();
        let docker = held(&self.docker_room).map(|room| (" that holds Docker's data", room, &self.docker));
        for (of, room, followed) in [("", (free, total), &self.ours)].into_iter().chain(docker) {
            if share(room) < reserve {
                problems.push(format!(
                    "only {:.0} % of the disk{of} are free, {:.0} % are wanted: uploads may be refused; next: {ROOM}",
                    share(room) * 100.0,
                    reserve * 100.0
                ));
            }
            if let Some(seconds) = followed.full_in().filter(|seconds| *seconds < SOON) {
                problems.push(format!(
                    "the disk{of} will be full in about {} h if it goes on like in the last day; next: {ROOM}",
                    seconds / 3_600
                ));
            }
        }
        let unbounded = held(&self.unbounded);
        if !unbounded.is_empty() {
            problems.push(format!(
                "nobody bounds the logs of {}: made before Docker's defaults were set; next: appliance push # for apps of ours; others are to be created anew",
                unbounded.join(", ")
            ));
        }
        problems
    }
}

/// The share that is free; all of a file system that cannot be seen.
#[allow(clippy::cast_precision_loss)]
fn share((free, total): Room) -> f64 {
    if total == 0 {
        1.0
    } else {
        free as f64 / total as f64
    }
}

/// Where Docker keeps its data, if that is another file system than `ours`.
pub async fn docker_room(agent: &Agent, ours: &Path) -> Option<Room> {
    let said = agent.docker.info().await.ok().map(|info| info.data_root);
    let root = agent.disk.docker_root(said.filter(|root| !root.is_empty()));
    let device = |path: &Path| std::fs::metadata(path).ok().map(|found| found.dev());
    let room = super::status::disk(&root);
    (device(ours)? != device(&root)? && room.1 > 0).then_some(room)
}

/// Looks again and again, until `stop`.
pub async fn keep(agent: Arc<Agent>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let ours = super::status::disk(&agent.state);
        let docker = docker_room(&agent, &agent.state).await;
        agent.disk.see(Local.now(), ours.0, docker);
        let found = tokio::task::spawn_blocking(unbounded).await.unwrap_or_default();
        *held(&agent.disk.unbounded) = found;
        let reserve = reserve();
        let short = [Some(ours), docker]
            .into_iter()
            .flatten()
            .any(|room| share(room) < reserve);
        if short {
            tidy(&agent).await;
        }
    }
}

/// Gives up what nobody needs any more, to make room.
pub async fn tidy(agent: &Agent) {
    if let Err(error) = agent.images.collect(&agent.apps, images::MIN_AGE_FULL).await {
        tracing::warn!("cannot remove images that nobody needs: {}", chain(&*error));
    }
}

/// The share of the disk that stays free, as `host.yml` says.
pub fn reserve() -> f64 {
    let path = std::path::Path::new(appliance_config::host::PATH);
    let host = fs_err::read_to_string(path)
        .ok()
        .and_then(|text| appliance_config::host::read(appliance_config::host::PATH, &text).ok())
        .unwrap_or_default();
    host.limits.disk_free.0
}

/// Containers with Docker's first log driver and no bound.
fn unbounded() -> Vec<String> {
    let ask = |argv: &[&str]| Local.run(&Command::new(argv.iter().copied())).ok();
    let Some(ids) = ask(&["docker", "ps", "--all", "--quiet"]).filter(|output| output.ok()) else {
        return Vec::new();
    };
    let ids: Vec<&str> = ids.stdout.split_whitespace().collect();
    if ids.is_empty() {
        return Vec::new();
    }
    let format =
        "{{.Name}} {{.HostConfig.LogConfig.Type}} {{index .HostConfig.LogConfig.Config \"max-size\"}}";
    let argv = [&["docker", "inspect", "--format", format], &ids[..]].concat();
    ask(&argv).map_or_else(Vec::new, |output| {
        output.stdout.lines().filter_map(unbounded_name).collect()
    })
}

/// `/db json-file ` or `/db local 10m`.
fn unbounded_name(line: &str) -> Option<String> {
    let mut words = line.split(' ');
    let (name, driver) = (words.next()?, words.next()?);
    let size = words.next().unwrap_or_default();
    (driver == "json-file" && size.is_empty()).then(|| name.trim_start_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_disk_that_shrinks_steadily_is_foretold_and_others_are_not() {
        let trend = |free: &dyn Fn(u64) -> u64, hours: u64| {
            let mut trend = Trend::default();
            for hour in 0..=hours {
                trend.see(hour * 3_600, free(hour));
            }
            trend.full_in().map(|seconds| seconds / 3_600)
        };
        assert_eq!(trend(&|hour| (40 - hour) * GIB, 20), Some(20));
        assert_eq!(trend(&|_| 40 * GIB, 20), None);
        assert_eq!(trend(&|hour| (40 + hour) * GIB, 20), None);
        assert_eq!(trend(&|hour| (40 - hour) * GIB, 1), None, "too little was seen");
        let once = trend(&|hour| if hour < 23 { 40 * GIB } else { 38 * GIB }, 24);
        assert!(
            once.is_none_or(|hours| hours > 72),
            "one upload is no trend: {once:?}"
        );
    }

    #[test]
    fn the_disk_that_holds_dockers_data_is_looked_at_too() {
        let directory = tempfile::tempdir().expect("a directory");
        let guard = Guard::open(&Store::open(directory.path()).expect("opens"));
        for hour in 0..=20 {
            guard.see(hour * 3_600, 40 * GIB, Some(((25 - hour) * GIB, 100 * GIB)));
        }
        assert_eq!(
            guard.worst((40 * GIB, 50 * GIB)),
            ((5 * GIB, 100 * GIB), Some(5 * 3_600))
        );
        let problems = guard.problems(40 * GIB, 50 * GIB, 0.1);
        assert!(
            problems.len() == 2 && problems.iter().all(|problem| problem.contains("Docker's data")),
            "{problems:?}"
        );
        // Which is fuller is told; which is full first is foretold.
        assert_eq!(guard.worst((1, 100)), ((1, 100), Some(5 * 3_600)));
    }

    #[test]
    fn our_own_disk_is_foretold_where_dockers_is_fuller() {
        let directory = tempfile::tempdir().expect("a directory");
        let guard = Guard::open(&Store::open(directory.path()).expect("opens"));
        for hour in 0..=20 {
            guard.see(hour * 3_600, (22 - hour) * GIB, Some((30 * GIB, 100 * GIB)));
        }
        assert_eq!(
            guard.worst((2 * GIB, 5 * GIB)),
            ((30 * GIB, 100 * GIB), Some(2 * 3_600))
        );
    }

    #[test]
    fn where_docker_keeps_its_data_is_known_while_it_is_silent() {
        let directory = tempfile::tempdir().expect("a directory");
        let guard = Guard::open(&Store::open(directory.path()).expect("opens"));
        assert_eq!(guard.docker_root(None), Path::new("/var/lib/docker"));
        guard.docker_root(Some("/mnt/docker".to_owned()));
        assert_eq!(guard.docker_root(None), Path::new("/mnt/docker"));
    }

    #[test]
    fn only_logs_that_nobody_bounds_are_told() {
        assert_eq!(unbounded_name("/db json-file ").as_deref(), Some("db"));
        assert_eq!(unbounded_name("/db json-file 10m"), None);
        assert_eq!(unbounded_name("/db local <no value>"), None);
    }

    #[test]
    fn a_full_disk_a_trend_and_old_containers_are_problems_with_a_next_command() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("opens");
        let guard = Guard::open(&store);
        for hour in 0..=20 {
            guard.see(hour * 3_600, (40 - hour) * GIB, None);
        }
        assert_eq!(
            Guard::open(&store).worst((50, 100)),
            ((50, 100), Some(20 * 3_600)),
            "a restart forgets nothing"
        );
        let guard = Guard::open(&Store::open(directory.path().join("other")).expect("opens"));
        assert!(guard.problems(50, 100, 0.1).is_empty());
        guard.unbounded.lock().expect("whole").push("db".to_owned());
        let problems = guard.problems(5, 100, 0.1);
        assert!(
            problems.len() == 2 && problems.iter().all(|problem| problem.contains("next:")),
            "{problems:?}"
        );
    }
}
