//! Our own program and its units.

use super::BINARY;
use crate::facts::Facts;
use crate::item::{Item, Level};
use crate::options::Options;
use crate::want::{FileWant, Handler, Want};

pub(super) fn binary(options: &Options) -> Option<Item> {
    let source = options.binary.clone()?;
    Some(Item {
        id: "binary",
        level: Level::Must,
        title: "This program, where its units look for it",
        reason: "agent, proxy and receiver are the same binary",
        references: &["design: Processes"],
        rollback: "rm /usr/local/bin/appliance",
        wants: vec![Want::Binary {
            source,
            target: BINARY.into(),
            after: vec![
                Handler::Restart("appliance-agent.service".to_owned()),
                Handler::Succeed("appliance-proxy.service".to_owned()),
            ],
        }],
    })
}

pub(super) fn items(options: &Options, facts: &Facts) -> Vec<Item> {
    if options.binary.is_none() {
        return Vec::new();
    }
    let unit = |name: &str, text: &str| FileWant::ours(&format!("/etc/systemd/system/{name}"), text);
    let started = |name: &str| Want::Unit {
        name: name.to_owned(),
    };
    let mut units = vec![started("appliance-agent.service")];
    // While kamal-proxy has the ports, ours cannot listen: `appliance adopt` starts them when it takes the ports over.
    if !facts.kamal_proxy {
        let proxy = [
            "appliance-proxy-http.socket",
            "appliance-proxy-https.socket",
            "appliance-proxy.service",
        ];
        units.splice(0..0, proxy.map(started));
    }
    let mut wants = vec![Want::Files {
        files: vec![
            unit(
                "appliance-proxy-http.socket",
                include_str!("../../../../systemd/appliance-proxy-http.socket"),
            ),
            unit(
                "appliance-proxy-https.socket",
                include_str!("../../../../systemd/appliance-proxy-https.socket"),
            ),
            unit(
                "appliance-proxy.service",
                include_str!("../../../../systemd/appliance-proxy.service"),
            ),
            unit(
                "appliance-agent.service",
                include_str!("../../../../systemd/appliance-agent.service"),
            ),
        ],
        // The proxy takes its new sandbox over when it is next started; restarting it would cut WebSockets.
        after: vec![
            Handler::DaemonReload,
            Handler::Restart("appliance-agent.service".to_owned()),
        ],
    }];
    wants.append(&mut units);
    vec![Item {
        id: "services",
        level: Level::Must,
        title: "Agent and proxy",
        reason: "supervised by systemd, sandboxed; neither needs Docker or the other to be up",
        references: &["M38", "L BOOT-5264"],
        rollback: "systemctl disable --now appliance-agent appliance-proxy appliance-proxy-http.socket appliance-proxy-https.socket",
        wants,
    }]
}
