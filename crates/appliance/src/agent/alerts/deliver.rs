//! Empties the outbox: what is due is sent, what arrived is crossed out, what failed waits.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::destination;
use crate::agent::{Agent, chain};

/// A look at the outbox even if nobody told of something new.
const SLOW: Duration = Duration::from_secs(60);

/// Delivers until `stop`; what was not crossed out is sent after the next start.
pub(super) async fn keep(agent: &Arc<Agent>, stop: &CancellationToken) {
    loop {
        let next = agent.alerts.written().outbox.next();
        let wait = next.map_or(SLOW, |next| {
            Duration::try_from(next.duration_since(Timestamp::now()))
                .unwrap_or(Duration::ZERO)
                .min(SLOW)
        });
        tokio::select! {
            () = stop.cancelled() => return,
            () = agent.alerts.mail.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
        round(agent).await;
    }
}

async fn round(agent: &Arc<Agent>) {
    let due = agent.alerts.written().outbox.due(Timestamp::now());
    if due.is_empty() {
        return;
    }
    let Ok(host) = agent.alerts.host() else { return };
    let (destinations, _) = agent.alerts.destinations(&host);
    for delivery in due {
        let Some(to) = destinations.iter().find(|to| to.key == delivery.to) else {
            continue;
        };
        let outcome = to.send(&delivery.notice).await;
        let name = destination::shown(&delivery.to);
        let id = delivery.notice.id;
        let written = agent.alerts.ledger.update(|written| match &outcome {
            Ok(()) => {
                written.outbox.sent(id, &delivery.to);
                None
            }
            Err(error) => {
                let why = format!("{error:#}");
                tracing::warn!("{} did not take `{}`: {why}", name, delivery.notice.title());
                written.outbox.failed(id, &delivery.to, why, Timestamp::now())
            }
        });
        match written {
            Ok((given_up, _)) => super::given_up(given_up.into_iter().collect()),
            Err(error) => tracing::error!("a delivery cannot be written down: {}", chain(&error)),
        }
    }
}
