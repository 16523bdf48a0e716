//! `appliance details`: routes and containers of every host.

use super::listing::{self, ListArgs};
use crate::failure::{Kind, classify};
use crate::globals::Globals;
use crate::ui;

/// Shows the proxy's routes, where the key may see them, and the app's containers.
///
/// # Errors
/// When a host cannot be asked.
pub async fn run(args: &ListArgs, globals: &Globals) -> anyhow::Result<()> {
    match listing::routes(args, globals).await {
        Err(error) if classify(&error).0 == Kind::Refused => {
            ui::detail("the proxy's routes are shown to keys that may see the whole host");
        }
        other => other?,
    }
    listing::details(args, globals).await
}
