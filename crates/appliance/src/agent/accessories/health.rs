//! Whether an accessory's server is well: Docker's health check where there is one, else the server's own client.

use std::collections::BTreeMap;
use std::time::Duration;

use appliance_accessories::Kind;
use appliance_containers::engine::{ContainerInfo, Health, LogQuery, State};
use appliance_containers::ready;
use futures_util::StreamExt as _;

use crate::agent::{Agent, chain};

/// One question to a server.
const QUESTION: Duration = Duration::from_secs(10);
/// Between two questions while somebody waits.
const PAUSE: Duration = Duration::from_millis(500);
/// Lines of a log that say why a server ended.
const LAST_WORDS: u64 = 8;
/// A server that nobody can ask has to stay up this long.
const STEADY: Duration = Duration::from_secs(3);

/// The verdict on a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it is well.
    pub well: bool,
    /// By what: `health check`, `pg_isready`.
    pub by: String,
    /// What it said, when it is not well.
    pub said: String,
}

/// A container's environment.
pub fn env_of(container: &ContainerInfo) -> BTreeMap<String, String> {
    container
        .env
        .iter()
        .filter_map(|entry| entry.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

impl Agent {
    /// Asks a running server; `None` if there is no way to.
    pub(super) async fn verdict(&self, container: &ContainerInfo) -> Option<Verdict> {
        if container.state != State::Running {
            return None;
        }
        if container.health != Health::None {
            return Some(Verdict {
                well: container.health == Health::Healthy,
                by: "health check".to_owned(),
                said: match container.health {
                    Health::Starting => "still starting".to_owned(),
                    _ => container
                        .health_log
                        .last()
                        .map(|said| said.trim().to_owned())
                        .unwrap_or_default(),
                },
            });
        }
        let env = env_of(container);
        let kind = Kind::of(&container.image, &env);
        let command = kind.probe(&env)?;
        let by = command.first().cloned().unwrap_or_default();
        match self.ask(&container.id.0, command, Vec::new(), QUESTION).await {
            // 126 and 127: the image lacks the program, so it cannot be asked.
            Ok(said) if matches!(said.code, 126 | 127) => None,
            Ok(said) => Some(Verdict {
                well: kind.well(said.code, &said.out),
                by,
                said: format!("{}{}", said.out, said.err).trim().to_owned(),
            }),
            Err(error) => Some(Verdict {
                well: false,
                by,
                said: chain(&error),
            }),
        }
    }

    /// Waits until a container just started is well.
    ///
    /// # Errors
    /// A sentence: it ended, or is not well within `limit`.
    pub(super) async fn await_well(&self, id: &str, limit: Duration) -> Result<(), String> {
        let well = async {
            let found = self
                .docker
                .inspect(id)
                .await
                .map_err(|error| chain(&error))?
                .ok_or("it was removed")?;
            if found.health == Health::None && self.verdict(&found).await.is_some() {
                return self.poll(id).await;
            }
            ready::wait(&*self.docker, id, STEADY)
                .await
                .map_err(|why| chain(&why))
        };
        let outcome = tokio::select! {
            outcome = tokio::time::timeout(limit, well) => match outcome {
                Ok(outcome) => outcome,
                Err(_) => {
                    let said = match self.docker.inspect(id).await {
                        Ok(Some(found)) => self.verdict(&found).await,
                        _ => None,
                    };
                    Err(match said {
                        Some(verdict) if !verdict.said.is_empty() => {
                            format!("not well after {} s: {}", limit.as_secs(), verdict.said)
                        }
                        _ => format!("not well after {} s", limit.as_secs()),
                    })
                }
            },
            exit = self.docker.wait_exit(id) => Err(match exit {
                Ok(exit) => {
                    let said = self.last_words(id).await;
                    format!("it ended with exit code {}{said}", exit.code)
                }
                Err(error) => chain(&error),
            }),
        };
        outcome
    }

    /// The last lines that a container wrote, as the end of a sentence; empty where it wrote none.
    pub(in crate::agent) async fn last_words(&self, id: &str) -> String {
        let query = LogQuery {
            tail: Some(LAST_WORDS),
            ..LogQuery::default()
        };
        let mut lines = self.docker.logs(id, query);
        let mut said = Vec::new();
        while let Ok(Some(Ok(line))) = tokio::time::timeout(QUESTION, lines.next()).await {
            let text = String::from_utf8_lossy(&line.bytes).trim().to_owned();
            if !text.is_empty() {
                said.push(text);
            }
        }
        if said.is_empty() {
            return String::new();
        }
        format!("; it said: {}", said.join(" / "))
    }

    /// A server does not tell when it begins to answer, so it is asked again.
    async fn poll(&self, id: &str) -> Result<(), String> {
        loop {
            let found = self
                .docker
                .inspect(id)
                .await
                .map_err(|error| chain(&error))?
                .ok_or("it was removed")?;
            match self.verdict(&found).await {
                Some(verdict) if verdict.well => return Ok(()),
                None if found.state == State::Running => return Ok(()),
                _ => {}
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
