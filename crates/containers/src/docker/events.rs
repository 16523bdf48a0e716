//! The daemon's events as one stream that outlives the daemon.
//!
//! ```text
//!            ping answers                       stream ends or breaks
//!   waiting ─────────────► Connected, events… ─────────────────────► Disconnected ─► waiting
//!      ▲  │ no answer
//!      └──┘ 0.1 s, doubled up to 5 s
//! ```

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::errors::Error;
use bollard::models::{EventMessage, EventMessageTypeEnum};
use bollard::query_parameters::EventsOptions;
use futures_util::stream::{self, BoxStream, StreamExt as _};

use super::{Docker, translate};
use crate::engine::{ContainerEvent, ContainerId, Engine as _, Event, Happening};
use crate::error::EngineError;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

enum State {
    Waiting {
        pause: Duration,
    },
    Up {
        messages: BoxStream<'static, Result<EventMessage, Error>>,
    },
}

pub(super) fn stream(docker: Docker, labels: Vec<String>) -> BoxStream<'static, Event> {
    let begin = (
        docker,
        labels,
        State::Waiting {
            pause: Duration::ZERO,
        },
    );
    stream::unfold(begin, |(docker, labels, mut state)| async move {
        loop {
            match state {
                State::Waiting { pause } => {
                    tokio::time::sleep(pause).await;
                    match connect(&docker, &labels).await {
                        Ok(messages) => {
                            return Some((Event::Connected, (docker, labels, State::Up { messages })));
                        }
                        Err(error) => {
                            tracing::debug!(
                                error = &error as &dyn std::error::Error,
                                "docker events: not yet"
                            );
                            let pause = (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
                            state = State::Waiting { pause };
                        }
                    }
                }
                State::Up { mut messages } => match messages.next().await {
                    Some(Ok(message)) => {
                        if let Some(event) = translated(message) {
                            return Some((Event::Container(event), (docker, labels, State::Up { messages })));
                        }
                        state = State::Up { messages };
                    }
                    ended => {
                        let reason = match ended {
                            Some(Err(error)) => {
                                docker.failure("listening to Docker's events", error).to_string()
                            }
                            _ => "Docker closed the stream of events".to_owned(),
                        };
                        // The daemon may be another version when it comes back.
                        *docker.held() = None;
                        let next = State::Waiting { pause: FIRST_PAUSE };
                        return Some((Event::Disconnected { reason }, (docker, labels, next)));
                    }
                },
            }
        }
    })
    .boxed()
}

async fn connect(
    docker: &Docker,
    labels: &[String],
) -> Result<BoxStream<'static, Result<EventMessage, Error>>, EngineError> {
    docker.ping().await?;
    let client = docker.client("listening to Docker's events").await?;
    // The request goes out at the first poll, after the caller has looked around: ask for what happens from now on.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut filters = HashMap::from([("type".to_owned(), vec!["container".to_owned()])]);
    if !labels.is_empty() {
        filters.insert("label".to_owned(), labels.to_vec());
    }
    let since = format!("{}.{:09}", now.as_secs(), now.subsec_nanos());
    let options = EventsOptions {
        since: Some(since),
        until: None,
        filters: Some(filters),
    };
    Ok(client.events(Some(options)).boxed())
}

fn translated(message: EventMessage) -> Option<ContainerEvent> {
    if message.typ != Some(EventMessageTypeEnum::CONTAINER) {
        return None;
    }
    let actor = message.actor?;
    let mut attributes = actor.attributes.unwrap_or_default();
    let action = message.action?;
    let what = match action.as_str() {
        "create" => Happening::Created,
        "start" => Happening::Started,
        "die" => Happening::Died {
            code: attributes
                .get("exitCode")
                .and_then(|code| code.parse().ok())
                .unwrap_or(-1),
        },
        "oom" => Happening::OutOfMemory,
        "kill" => Happening::Signalled,
        "stop" => Happening::Stopped,
        "rename" => Happening::Renamed,
        "destroy" => Happening::Removed,
        other => Happening::Health(translate::verdict(other.strip_prefix("health_status: ")?)),
    };
    let name = attributes.remove("name").unwrap_or_default();
    // The rest are the labels and a few of the daemon's own, which cannot be told apart.
    for own in ["image", "exitCode", "execDuration", "oldName", "signal"] {
        attributes.remove(own);
    }
    Some(ContainerEvent {
        id: ContainerId(actor.id?),
        name,
        labels: attributes.into_iter().collect(),
        at_nanos: message.time_nano.unwrap_or_default(),
        what,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Health;

    fn event(action: &str, attributes: serde_json::Value) -> Option<ContainerEvent> {
        let message = serde_json::json!({
            "Type": "container",
            "Action": action,
            "Actor": { "ID": "abc", "Attributes": attributes },
            "timeNano": 5,
        });
        translated(serde_json::from_value(message).expect("a message"))
    }

    #[test]
    fn actions_become_happenings() {
        let died = event(
            "die",
            serde_json::json!({ "name": "app-web-1", "exitCode": "137", "role": "web" }),
        );
        let died = died.expect("an event");
        assert_eq!(died.what, Happening::Died { code: 137 });
        assert_eq!(died.name, "app-web-1");
        assert_eq!(
            died.labels.into_iter().collect::<Vec<_>>(),
            [("role".to_owned(), "web".to_owned())]
        );
        let healthy = event("health_status: healthy", serde_json::json!({})).expect("an event");
        assert_eq!(healthy.what, Happening::Health(Health::Healthy));
        let signalled = event("kill", serde_json::json!({ "signal": "15" })).expect("an event");
        assert_eq!(signalled.what, Happening::Signalled);
        assert_eq!(event("exec_create: sh", serde_json::json!({})), None);
    }
}
