//! `appliance proxy VERB`: Kamal's verbs for the proxy, which here is a service of the host and not a container.

use super::listing::{self, ListArgs};
use crate::globals::Globals;
use crate::ui;

/// Kamal's verbs for the proxy
#[derive(Debug, clap::Subcommand)]
pub enum ProxyVerb {
    /// Show what the proxy serves
    Details(ListArgs),
    /// (the proxy writes to the host's journal)
    Logs(Ignored),
    /// (bootstrap starts the proxy)
    Boot(Ignored),
    /// (systemd starts the proxy)
    Start(Ignored),
    /// (systemd stops the proxy)
    Stop(Ignored),
    /// (systemd restarts the proxy, without dropping a connection)
    Restart(Ignored),
    /// (nothing to reboot: there is no proxy container)
    Reboot(Ignored),
    /// (removing the app removes its routes)
    Remove(Ignored),
    /// (the host's own settings take the place of Kamal's boot options)
    #[command(name = "boot_config", alias = "boot-config")]
    BootConfig(Ignored),
}

/// Whatever Kamal's command takes
#[derive(Debug, clap::Args)]
pub struct Ignored {
    /// Kamal's arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    rest: Vec<String>,
}

/// Carries it out, or says why it is not needed.
///
/// # Errors
/// When a host cannot be asked.
pub async fn run(verb: &ProxyVerb, globals: &Globals) -> anyhow::Result<()> {
    let sentence = match verb {
        ProxyVerb::Details(args) => return listing::routes(args, globals).await,
        ProxyVerb::Logs(_) => {
            "the proxy writes its log, requests included, to the journal of the host; there: journalctl --unit appliance-proxy --output cat"
        }
        ProxyVerb::Boot(_) => {
            "the proxy is a service of the host that `appliance bootstrap` sets up and systemd keeps running; there is nothing to boot"
        }
        ProxyVerb::Start(_) => {
            "the proxy is a service of the host; on the host: systemctl start appliance-proxy-http.socket appliance-proxy-https.socket"
        }
        ProxyVerb::Stop(_) => {
            "stopping the proxy stops every app of the host: to stop one app, `appliance app maintenance` or `appliance app stop`; the whole proxy, on the host: systemctl stop appliance-proxy.socket appliance-proxy"
        }
        ProxyVerb::Restart(_) | ProxyVerb::Reboot(_) => {
            "no outage is needed: on the host, `systemctl kill --kill-whom=main --signal=USR2 appliance-proxy` starts a new process that takes the sockets over while the old one finishes its requests"
        }
        ProxyVerb::Remove(_) => {
            "routes go with their app: `appliance app remove`; the proxy itself belongs to the host"
        }
        ProxyVerb::BootConfig(_) => {
            "ports, bind addresses and limits of the proxy are the host's: /etc/appliance/host.yml; proxy.run of deploy.yml is checked and otherwise ignored"
        }
    };
    ui::line(sentence);
    Ok(())
}
