//! Alerts, as `GET /v1/alerts` shows them.

use appliance_alerts::{Delivery, Standing};
use serde::{Deserialize, Serialize};

/// What is wrong, and how the messages about it fare.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Alerts {
    /// What is wrong.
    pub standing: Vec<Standing>,
    /// Messages that have not arrived yet.
    pub waiting: Vec<Delivery>,
    /// Who is told, without secrets.
    pub destinations: Vec<String>,
    /// Why somebody cannot be told, or something cannot be seen.
    pub problems: Vec<String>,
}
