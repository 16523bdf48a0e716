//! What containers wrote, as frames: reads, never changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use appliance_containers::engine::{LogQuery, Stream};
use appliance_push::session::Frame;
use futures_util::StreamExt as _;
use http::{Response, StatusCode};
use tokio::sync::mpsc;

use super::api::{Body, problem};
use super::exec::frames;
use super::{Agent, chain, container};

/// Pieces that wait for a slow reader.
const QUEUE: usize = 64;

/// Which part of which log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Only this role's container.
    pub role: Option<String>,
    /// This container instead, by name or the beginning of its id.
    pub container: Option<String>,
    /// Which lines.
    pub query: LogQuery,
}

impl Wanted {
    /// From the query part of a request's address.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(query: Option<&str>) -> Result<Self, String> {
        let mut wanted = Self::default();
        for (name, value) in pairs(query) {
            let number = || {
                value
                    .parse::<u32>()
                    .map_err(|_| format!("{name}={value}: {value} is not a number"))
            };
            match name.as_str() {
                "role" => wanted.role = Some(value),
                "container" => wanted.container = Some(value),
                "lines" => wanted.query.tail = Some(u64::from(number()?)),
                "since" => wanted.query.since = Some(i64::from(number()?)),
                "until" => wanted.query.until = Some(i64::from(number()?)),
                "follow" => wanted.query.follow = value == "1",
                "timestamps" => wanted.query.timestamps = value == "1",
                _ => return Err(format!("there is no parameter {name}")),
            }
        }
        Ok(wanted)
    }
}

/// Names and values of a query; values of ours need no percent-encoding.
pub fn pairs(query: Option<&str>) -> BTreeMap<String, String> {
    query
        .unwrap_or_default()
        .split('&')
        .filter(|part| !part.is_empty())
        .map(|part| part.split_once('=').unwrap_or((part, "")))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// The log of one container of an app.
pub async fn of_app(agent: Arc<Agent>, app: &str, wanted: Wanted) -> Response<Body> {
    let found = match find(&agent, app, &wanted).await {
        Ok(Some(found)) => found,
        Ok(None) => {
            let what = wanted.container.as_deref().map_or_else(
                || {
                    format!(
                        "container of the role {}",
                        wanted.role.as_deref().unwrap_or("web")
                    )
                },
                |id| format!("container {id}"),
            );
            return problem(
                StatusCode::NOT_FOUND,
                "no-container",
                &format!(
                    "{app} has no {what} on this host; `appliance app containers` lists those that are there"
                ),
            );
        }
        Err(error) => return problem(StatusCode::INTERNAL_SERVER_ERROR, "logs", &chain(&*error)),
    };
    of_container(agent, found, wanted.query)
}

/// The log of the container of this id.
pub fn of_container(agent: Arc<Agent>, found: String, query: LogQuery) -> Response<Body> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let mut lines = agent.docker.logs(&found, query);
        loop {
            let next = tokio::select! {
                next = lines.next() => next,
                // Nobody reads any more: a followed log would otherwise stay open for ever.
                () = sender.closed() => return,
            };
            let frame = match next {
                None => Frame::Exit(0),
                Some(Err(error)) => Frame::Broken(chain(&error)),
                Some(Ok(line)) => match line.stream {
                    Stream::Stdout => Frame::Output(line.bytes),
                    Stream::Stderr => Frame::Error(line.bytes),
                },
            };
            let last = matches!(frame, Frame::Exit(_) | Frame::Broken(_));
            if sender.send(frame).await.is_err() || last {
                return;
            }
        }
    });
    frames(receiver)
}

/// The named container, else the newest of the current release that plays the role.
async fn find(agent: &Agent, app: &str, wanted: &Wanted) -> anyhow::Result<Option<String>> {
    let containers = agent.containers(app).await?;
    if let Some(id) = &wanted.container {
        let found = containers
            .into_iter()
            .find(|found| found.name == *id || (id.len() >= 4 && found.id.0.starts_with(id.as_str())));
        return Ok(found.map(|found| found.id.0));
    }
    let current = agent.apps.read(app)?.numbers.current;
    let plays = |found: &&appliance_containers::engine::ContainerSummary| {
        found
            .labels
            .get(container::ROLE)
            .is_some_and(|role| wanted.role.as_ref().is_none_or(|wanted| wanted == role))
    };
    let of_current = containers.iter().filter(plays).find(|found| {
        let current = current.as_ref();
        current.is_some_and(|current| container::plays(&found.labels, current))
    });
    Ok(of_current
        .or_else(|| containers.iter().find(plays))
        .map(|found| found.id.0.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_query_says_which_lines_and_mistakes_are_named() {
        let wanted = Wanted::parse(Some("role=web&lines=10&follow=1&since=1700000000")).expect("a query");
        assert_eq!(wanted.role.as_deref(), Some("web"));
        assert_eq!(wanted.query.tail, Some(10));
        assert_eq!(wanted.query.since, Some(1_700_000_000));
        assert!(wanted.query.follow && !wanted.query.timestamps);
        assert_eq!(Wanted::parse(None), Ok(Wanted::default()));
        for bad in ["lines=x", "nonsense=1", "since=-5"] {
            assert!(Wanted::parse(Some(bad)).is_err(), "{bad}");
        }
    }
}
