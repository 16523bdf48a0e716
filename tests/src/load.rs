//! A bounded load: some connections, each asking again as soon as it was answered, and everything counted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::http::{self, Target};

/// How a load is made.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Connections at the same time.
    pub connections: usize,
    /// After this many requests a connection is closed and a new one opened; 0 means never.
    pub per_connection: u64,
    /// Pause after each answer, to bound the load.
    pub pause: Duration,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            connections: 8,
            per_connection: 50,
            pause: Duration::from_millis(5),
        }
    }
}

/// A load under way.
#[derive(Debug)]
pub struct Load {
    stop: watch::Sender<bool>,
    clients: JoinSet<Report>,
    counts: Arc<AtomicU64>,
    progress: watch::Receiver<u64>,
    begun: Instant,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Requests sent, failed ones included.
    pub requests: u64,
    /// Requests that got no whole answer, or one other than 200.
    pub failures: u64,
    /// The first failures, in words.
    pub examples: Vec<String>,
    /// Answers by the version of the demo app.
    pub versions: BTreeMap<String, u64>,
    /// The time of each answered request, in microseconds, unsorted.
    pub micros: Vec<u32>,
    /// From start to stop.
    pub elapsed: Duration,
}

impl Load {
    /// Starts it.
    #[must_use]
    pub fn start(target: &Target, shape: Shape) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (counted, progress) = watch::channel(0);
        let counted = Arc::new(counted);
        let counts = Arc::new(AtomicU64::new(0));
        let mut clients = JoinSet::new();
        for _ in 0..shape.connections {
            let (target, stopped) = (target.clone(), stopped.clone());
            let (counts, counted) = (Arc::clone(&counts), Arc::clone(&counted));
            clients.spawn(async move {
                let tell = move || {
                    counted.send_replace(counts.fetch_add(1, Ordering::Relaxed) + 1);
                };
                client(&target, shape, &stopped, &tell).await
            });
        }
        Self {
            stop,
            clients,
            counts,
            progress,
            begun: Instant::now(),
        }
    }

    /// Waits until so many requests more were made than now.
    pub async fn more(&mut self, requests: u64) {
        let goal = self.counts.load(Ordering::Relaxed) + requests;
        // The sender lives as long as the clients, and they as long as we.
        let _alive = self.progress.wait_for(|count| *count >= goal).await;
    }

    /// Requests made so far.
    #[must_use]
    pub fn made(&self) -> u64 {
        self.counts.load(Ordering::Relaxed)
    }

    /// Ends it: requests under way are waited for.
    pub async fn stop(mut self) -> Report {
        self.stop.send_replace(true);
        let mut report = Report::default();
        while let Some(ended) = self.clients.join_next().await {
            match ended {
                Ok(part) => report.add(part),
                Err(error) => report.fail(format!("a client of the load panicked: {error}")),
            }
        }
        report.elapsed = self.begun.elapsed();
        report
    }
}

async fn client(target: &Target, shape: Shape, stopped: &watch::Receiver<bool>, tell: &impl Fn()) -> Report {
    let mut report = Report::default();
    let mut open = None;
    let mut served = 0;
    while !*stopped.borrow() {
        let begun = Instant::now();
        report.requests += 1;
        let mut connection = match open.take() {
            Some(connection) => connection,
            None => match target.connect().await {
                Ok(connection) => {
                    served = 0;
                    connection
                }
                Err(error) => {
                    report.failed(format!("{error:#}"));
                    tell();
                    tokio::time::sleep(shape.pause.max(Duration::from_millis(1))).await;
                    continue;
                }
            },
        };
        match http::send(&mut connection, target).await {
            Ok(answer) if answer.status == 200 => {
                report
                    .micros
                    .push(u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX));
                if let Some(version) = answer.version() {
                    *report.versions.entry(version.to_owned()).or_default() += 1;
                }
                served += 1;
                let closing = answer
                    .headers
                    .get("connection")
                    .is_some_and(|value| value == "close");
                if !closing && (shape.per_connection == 0 || served < shape.per_connection) {
                    open = Some(connection);
                }
            }
            Ok(answer) => {
                report.failed(format!(
                    "status {}: {}",
                    answer.status,
                    answer.text().chars().take(200).collect::<String>()
                ));
            }
            Err(error) => report.failed(format!("{error:#}")),
        }
        tell();
        tokio::time::sleep(shape.pause).await;
    }
    report
}

impl Report {
    fn failed(&mut self, example: String) {
        self.failures += 1;
        if self.examples.len() < 10 {
            self.examples.push(example);
        }
    }

    /// A failure that is no request's.
    fn fail(&mut self, example: String) {
        self.requests += 1;
        self.failed(example);
    }

    fn add(&mut self, part: Self) {
        self.requests += part.requests;
        self.failures += part.failures;
        let room = 10_usize.saturating_sub(self.examples.len());
        self.examples.extend(part.examples.into_iter().take(room));
        for (version, count) in part.versions {
            *self.versions.entry(version).or_default() += count;
        }
        self.micros.extend(part.micros);
    }

    /// The time within which `percent` of the answered requests were answered; zero if none was.
    #[must_use]
    pub fn percentile(&self, percent: u8) -> Duration {
        let mut sorted = self.micros.clone();
        sorted.sort_unstable();
        let Some(last) = sorted.len().checked_sub(1) else {
            return Duration::ZERO;
        };
        let index = last * usize::from(percent.min(100)) / 100;
        Duration::from_micros(sorted[index].into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_answered_requests() {
        let mut report = Report::default();
        assert_eq!(report.percentile(99), Duration::ZERO);
        report.micros = (1..=100).rev().collect();
        assert_eq!(report.percentile(0), Duration::from_micros(1));
        assert_eq!(report.percentile(50), Duration::from_micros(50));
        assert_eq!(report.percentile(100), Duration::from_micros(100));
    }

    #[tokio::test]
    async fn refused_connections_are_failures() {
        // Nothing listens on port 1 of the loopback.
        let target = Target::http(([127, 0, 0, 1], 1).into(), "demo.test", "/");
        let mut load = Load::start(&target, Shape::default());
        load.more(16).await;
        let report = load.stop().await;
        assert!(report.requests >= 16);
        assert_eq!(report.failures, report.requests);
        assert!(
            report.examples[0].contains("cannot connect"),
            "{:?}",
            report.examples
        );
    }
}
