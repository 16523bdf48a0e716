//! Services of the proxy that belong to nobody any more, as a removal that was cut short leaves them.
//!
//! One that stays would keep its host names from every other app, and Docker may give its container's address to
//! another app's, which visitors of these names would then see.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use appliance_proxy::names::{ServiceName, UpstreamAddress};
use appliance_proxy::snapshot::Service;
use appliance_state::Outcome;
use jiff::Timestamp;

use super::{Agent, change, container};

/// Removes what has been nobody's in this look and in the one before; `suspects` is what this one found.
///
/// # Errors
/// When it is not certain whose a service is: a ledger cannot be read, or Docker or the proxy do not answer.
pub async fn sweep(agent: &Arc<Agent>, suspects: &mut BTreeSet<ServiceName>) -> anyhow::Result<()> {
    let before = std::mem::take(suspects);
    let listed: Vec<Service> = agent
        .proxy
        .list()
        .await?
        .into_iter()
        .map(|status| status.service)
        .collect();
    // Accessories that were adopted need no record of ours.
    for app in agent.apps.ids()? {
        if agent.apps.read(&app)?.adopted.is_some() {
            return Ok(());
        }
    }
    let owned: BTreeSet<ServiceName> = owners(agent, |_| true)?.into_keys().collect();
    if listed.iter().all(|service| owned.contains(&service.name)) {
        return Ok(());
    }
    *suspects = unowned(&listed, &owned, &addresses(agent).await?);
    for name in suspects.intersection(&before) {
        tracing::warn!("{name}: nothing on this host has this service; it is taken away");
        agent.proxy.remove_service(name).await?;
        let detail = serde_json::json!({ "service": name, "why": "nothing on this host has it" });
        agent
            .gate
            .record("route", name.as_str(), Outcome::Done, detail, Timestamp::now())?;
    }
    Ok(())
}

/// Takes away what an earlier adoption left in the proxy, which did not run any more when that ended.
///
/// # Errors
/// When a ledger cannot be read, or the proxy does not answer.
pub async fn clear(agent: &Agent) -> anyhow::Result<()> {
    let mut adopted = BTreeSet::new();
    for app in agent.apps.ids()? {
        if agent.apps.read(&app)?.adopted.is_some() {
            adopted.insert(app);
        }
    }
    let owners = owners(agent, |app| !adopted.contains(app))?;
    for status in agent.proxy.list().await? {
        if !owners.contains_key(&status.service.name) {
            agent.proxy.remove_service(&status.service.name).await?;
        }
    }
    Ok(())
}

/// The services that accessories and these apps have on record, with whose they are.
///
/// # Errors
/// When a ledger cannot be read.
pub fn owners(agent: &Agent, apps: impl Fn(&str) -> bool) -> anyhow::Result<BTreeMap<ServiceName, String>> {
    let mut owners = BTreeMap::new();
    for name in agent.accessory_services()? {
        owners.insert(name, "an accessory".to_owned());
    }
    for app in agent.apps.ids()?.into_iter().filter(|app| apps(app)) {
        let state = agent.apps.read(&app)?;
        let rollout = state.rollout.as_ref().filter(|rollout| !rollout.is_over());
        let plan = rollout.map(|rollout| rollout.plan());
        let under_way = plan
            .into_iter()
            .flat_map(|plan| plan.old.iter().chain([&plan.new]));
        for deployment in state.numbers.current.iter().chain(under_way) {
            for name in change::services(agent, &app, deployment)? {
                owners.insert(name, app.clone());
            }
        }
    }
    Ok(owners)
}

/// Where containers run, and whether each is an app's.
async fn addresses(agent: &Agent) -> anyhow::Result<BTreeMap<IpAddr, bool>> {
    let mut addresses = BTreeMap::new();
    for found in agent.docker.list(&[]).await? {
        let Some(found) = agent.docker.inspect(&found.id.0).await? else {
            continue;
        };
        let is_app = found.labels.contains_key(container::APP);
        for address in found.networks.values().filter_map(|address| address.ipv4) {
            addresses.insert(address.into(), is_app);
        }
    }
    Ok(addresses)
}

/// Services without an owner that lead nowhere, or to an app that is served under another name.
fn unowned(
    listed: &[Service],
    owned: &BTreeSet<ServiceName>,
    running: &BTreeMap<IpAddr, bool>,
) -> BTreeSet<ServiceName> {
    let leads_nowhere = |upstream: &UpstreamAddress| match upstream {
        UpstreamAddress::Tcp(address) => running.get(&address.ip()).copied().unwrap_or(true),
        UpstreamAddress::Unix(_) => false,
    };
    listed
        .iter()
        .filter(|service| !owned.contains(&service.name))
        .filter(|service| service.every_upstream().all(leads_nowhere))
        .map(|service| service.name.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_has_and_leads_nowhere_is_taken_away() {
        let service = |name: &str, address: &str| {
            let upstream = UpstreamAddress::parse(address).expect("an address");
            Service::new(
                ServiceName::parse(name).expect("a name"),
                Vec::new(),
                vec![upstream],
            )
        };
        let listed = [
            service("shop-web", "10.0.0.2:80"),
            service("gone-web", "10.0.0.9:80"),
            service("lent-web", "10.0.0.2:80"),
            service("kamals-search", "10.0.0.3:80"),
            service("by-hand", "unix:/run/by-hand.sock"),
        ];
        let owned = BTreeSet::from([listed[0].name.clone()]);
        let running = BTreeMap::from([([10, 0, 0, 2].into(), true), ([10, 0, 0, 3].into(), false)]);
        let found = unowned(&listed, &owned, &running);
        let found: Vec<&str> = found.iter().map(ServiceName::as_str).collect();
        assert_eq!(found, ["gone-web", "lent-web"]);
    }
}
