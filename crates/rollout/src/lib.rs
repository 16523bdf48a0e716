//! The rollout as a state machine without I/O.
//!
//! A [`Deployment`] is one run of a release on this host: its roles, primary first.
//! A [`Rollout`] leads from the deployment that serves to another one.
//! [`Rollout::step`] takes an [`Event`] and the time and gives the next state and the [`Order`]s to carry out.
//!
//! The driver (in the `appliance` crate) does three things, in this order, and nothing else:
//! it writes the new state down, it carries out the orders, and it reports each one's end as an event.
//! After a restart it looks at the containers and the proxy and calls [`Rollout::resume`].
//!
//! Several hosts go together by their gates: a [`Group`] decides for whoever leads them which host may pass which gate when.
//!
//! Invariants, which the property tests check with a simulated world that is killed before and after every single effect:
//!
//! - The proxy never points at a container that is not running, as long as one of the two deployments can run.
//! - The old deployment's proxied containers are stopped only after the new ones took the traffic and the watch window has passed.
//! - A rollout that is left alone ends in `settled` or `reverted`.
//!
//! Deliberately absent: images, configuration, secrets, the proxy's settings. The driver finds them by release number and role.

pub mod effect;
pub mod group;
pub mod numbers;
pub mod plan;
pub mod rollout;

pub use effect::{Effect, Event, Observed, Order, Route, Seen, Ticket};
pub use group::{Action, Group, Heard, Member};
pub use numbers::Numbers;
pub use plan::{
    Canary, Deployment, Gate, Instance, Origin, Plan, PlanError, ReleaseNumber, Role, RolloutNumber, Timing,
};
pub use rollout::{Failure, Phase, Rollout};
