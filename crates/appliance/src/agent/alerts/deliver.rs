//! Empties the outbox: what is due is sent, what arrived is crossed out, what failed waits.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::destination;
use crate::agent::Agent;

/// A look at the outbox even if nobody told of something new.
const SLOW: Duration = Duration::from_secs(60);

/// However things stand, no look at the outbox is nearer to the one before, unless there is something new.
const SHORTEST: Duration = Duration::from_secs(1);

/// Delivers until `stop`; what was not crossed out is sent after the next start.
pub(super) async fn keep(agent: &Arc<Agent>, stop: &CancellationToken) {
    loop {
        let next = agent.alerts.truth.now().outbox.next();
        let wait = next.map_or(SLOW, |next| {
            Duration::try_from(next.duration_since(Timestamp::now()))
                .unwrap_or(Duration::ZERO)
                .clamp(SHORTEST, SLOW)
        });
        tokio::select! {
            () = stop.cancelled() => return,
            () = agent.alerts.mail.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
        round(agent).await;
    }
}

/// Sends what is due until nothing is.
async fn round(agent: &Arc<Agent>) {
    let (host, _) = agent.alerts.settings();
    let (destinations, _) = agent.alerts.destinations(&host);
    loop {
        let due = agent.alerts.truth.now().outbox.due(Timestamp::now());
        let mut moved = false;
        for delivery in due {
            let Some(to) = destinations.iter().find(|to| to.slot == delivery.to) else {
                continue;
            };
            moved = true;
            let outcome = to.send(&delivery.notice).await;
            let name = destination::shown(&to.key);
            let id = delivery.notice.id;
            let given_up = agent.alerts.truth.change(|written| match &outcome {
                Ok(()) => {
                    written.outbox.sent(id, &delivery.to);
                    None
                }
                Err(error) => {
                    let why = format!("{error:#}");
                    tracing::warn!("{} did not take `{}`: {why}", name, delivery.notice.title());
                    let lasting = destination::is_lasting(error);
                    written
                        .outbox
                        .failed(id, &delivery.to, why, lasting, Timestamp::now())
                }
            });
            super::given_up(given_up.into_iter().collect());
        }
        if !moved {
            return;
        }
    }
}
