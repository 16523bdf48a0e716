//! Which apps a peer may look at.
//!
//! Reads carry no signature; what counts is the key that sshd let in, which `appliance receive` names.
//! A process of this host that may open the socket may look at everything: it is root, or an administrator in the group.

use appliance_push::change::{AppName, Destination, Power};
use appliance_push::trust::{AppPattern, KeyEntry, Permission};

use super::Agent;
use super::server::Peer;

/// What a peer may look at.
#[derive(Debug, Clone)]
pub enum Sight {
    /// The host and every app.
    All,
    /// What this key may.
    Of(Box<KeyEntry>),
}

impl Agent {
    /// What `peer` may look at; `None` for a key that is not enrolled (any more).
    pub fn sight(&self, peer: &Peer) -> Option<Sight> {
        match peer {
            Peer::Local { .. } => Some(Sight::All),
            Peer::Remote { fingerprint } => {
                let ring = self.gate.keys();
                let mut found = ring.keys.into_iter();
                found
                    .find(|entry| entry.fingerprint.as_str() == fingerprint)
                    .map(|entry| Sight::Of(Box::new(entry)))
            }
        }
    }
}

impl Sight {
    /// Whether `app` (`service` or `service@destination`) may be looked at.
    pub fn app(&self, app: &str) -> bool {
        let Sight::Of(entry) = self else { return true };
        let (name, destination) = match app.split_once('@') {
            Some((name, destination)) => (name, Some(destination)),
            None => (app, None),
        };
        let Ok(name) = AppName::parse(name) else {
            return false;
        };
        let Ok(destination) = destination.map(Destination::parse).transpose() else {
            return false;
        };
        entry.allows(Power::Read, Some(&name), destination.as_ref())
    }

    /// Whether the images of a repository may be looked at: those of an app that may be.
    pub fn repository(&self, agent: &Agent, repository: &str) -> bool {
        if self.host() {
            return true;
        }
        let Ok(apps) = agent.apps.ids() else { return false };
        apps.iter().filter(|app| self.app(app)).any(|app| {
            let releases = agent
                .apps
                .read(app)
                .map(|state| state.releases)
                .unwrap_or_default();
            releases.iter().any(|number| {
                agent
                    .apps
                    .release(app, *number)
                    .is_ok_and(|accepted| accepted.release.image.repository.as_str() == repository)
            })
        })
    }

    /// Whether what concerns the whole host may be looked at: the proxy's log, records of other apps, other keys.
    pub fn host(&self) -> bool {
        let Sight::Of(entry) = self else { return true };
        entry.permissions.iter().any(|permission| match permission {
            Permission::Admin => true,
            Permission::Deploy { apps } | Permission::Operate { apps } | Permission::Read { apps } => {
                apps.contains(&AppPattern::Any)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f test";

    fn sight(permissions: Vec<Permission>) -> Sight {
        Sight::Of(Box::new(
            KeyEntry::new(KEY, permissions, "", "bootstrap").expect("an entry"),
        ))
    }

    #[test]
    fn a_key_sees_its_own_apps_only() {
        let apps = |names: &[&str]| names.iter().map(|name| name.parse().expect("pattern")).collect();
        let shop = sight(vec![Permission::Deploy {
            apps: apps(&["shop"]),
        }]);
        let staging = sight(vec![Permission::Read {
            apps: apps(&["shop@staging"]),
        }]);
        let everything = sight(vec![Permission::Operate { apps: apps(&["*"]) }]);
        let admin = sight(vec![Permission::Admin]);
        for (sight, app, expect) in [
            (&shop, "shop", true),
            (&shop, "shop@staging", true),
            (&shop, "blog", false),
            (&staging, "shop", false),
            (&staging, "shop@staging", true),
            (&everything, "blog", true),
            (&admin, "blog@x", true),
            (&Sight::All, "blog", true),
            (&shop, "../shop", false),
        ] {
            assert_eq!(sight.app(app), expect, "{sight:?} {app}");
        }
        assert!(!shop.host() && !staging.host());
        assert!(everything.host() && admin.host() && Sight::All.host());
    }
}
