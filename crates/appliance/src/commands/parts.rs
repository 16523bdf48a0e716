//! Kamal's hidden verbs, each of which takes away or lays out one part of what another verb does whole.
//!
//! Scripts call them; here the parts belong together, so each says what does the same.

use crate::ui;

/// Whatever Kamal's command takes
#[derive(Debug, clap::Args)]
pub struct Ignored {
    /// Kamal's arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _rest: Vec<String>,
}

/// Parts of an app.
pub fn of_app() {
    ui::line(
        "nothing was done: containers, images and directories belong to releases here; \
         `appliance prune all` removes what no release needs, `appliance app remove` everything of the app",
    );
}

/// Parts of an accessory.
pub fn of_accessory() {
    ui::line(
        "nothing was done: files, directories, container and image belong to the accessory here; \
         `appliance accessory reboot NAME` makes them as configured, `appliance accessory remove NAME` takes them away",
    );
}

/// Parts of the proxy.
pub fn of_proxy() {
    ui::line(
        "nothing was done: the proxy is part of the appliance, without a container or an image; \
         a newer one comes with a newer appliance: `appliance update` on the host",
    );
}
