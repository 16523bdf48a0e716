//! A canary on several hosts gets all visitors on all of them, or on none.
//!
//! The hosts are led as a push leads them, from the gate where their canaries wait: workers start, then all switch, and no
//! old release goes before every host is good. Hooks ran when the canary was pushed.

use appliance_push::change::Verb;

use super::outcome::{Outcome, Turned};
use super::{Host, Order, Way, interrupts, take_back, together};
use crate::ui;

/// Promotes the canary of several hosts together.
///
/// # Errors
/// When any host refused, failed or went back. As long as none was promoted, every canary stays as it is; after that all
/// hosts go back to what they served.
pub async fn promote(way: &Way<'_>, hosts: Vec<Host>) -> anyhow::Result<()> {
    let order = Order::of(&way.project.loaded.config);
    let changes: Vec<(Host, Verb)> = hosts.into_iter().map(|host| (host, Verb::Promote)).collect();
    let mut interrupts = interrupts::interrupts()?;
    match together(way, &order, None, &changes, &mut interrupts).await? {
        Turned::Through => Ok(()),
        Turned::Away(refused) => Err(refused),
    }
}

/// How a host ended whose group was not promoted: one that was lost may still have its canary.
pub(super) async fn undone(
    way: &Way<'_>,
    host: &Host,
    outcome: Outcome,
    begun: bool,
    goes_on: bool,
) -> Outcome {
    let Outcome::Lost(why) = outcome else {
        return outcome;
    };
    if !begun {
        return Outcome::Canary(why);
    }
    if goes_on {
        return Outcome::Lost(why);
    }
    let back = async {
        let again = way.connect_one(&host.name).await?;
        take_back(way, &again).await
    };
    match back.await {
        Ok(message) => Outcome::TakenBack(message),
        Err(error) => {
            ui::warn(&format!(
                "{}: {error:#}; it may still have its canary: appliance abort",
                host.name
            ));
            Outcome::Lost(why)
        }
    }
}
