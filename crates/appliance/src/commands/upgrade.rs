//! `appliance upgrade`: what Kamal 1 and 2 called so, and what it is here.

use crate::ui;

/// Kamal's flags
#[derive(Debug, clap::Args)]
pub struct UpgradeArgs {
    /// Do not ask
    #[arg(short = 'y', long)]
    confirmed: bool,
    /// One host after the other
    #[arg(long)]
    rolling: bool,
}

/// Says what to do; there is no state of Kamal 1 to convert.
pub fn run(_: &UpgradeArgs) {
    ui::line(
        "Kamal's upgrade moves hosts from Traefik (Kamal 1) to kamal-proxy (Kamal 2). Nothing has to be moved here:\n\
         - configurations of Kamal 1: `appliance config` names every key that is spelled differently now;\n\
         - a newer appliance: run `appliance update` on each host. The proxy hands its sockets over, and no request is dropped.",
    );
}
