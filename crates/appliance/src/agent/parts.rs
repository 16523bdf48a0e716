//! Which release each role of an app comes from.
//!
//! Mostly that is one and the same; somebody who rolls out a part of the roles (Kamal's `-r`) leaves the others as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use appliance_push::change::{self, RoleName};
use appliance_rollout::{Deployment, Instance, Origin, ReleaseNumber, Role, RolloutNumber};

use super::apps::{Accepted, App, Apps, AppsError};

/// A role of a deployment with the release that it came from.
#[derive(Debug, Clone)]
pub struct Part {
    /// The release.
    pub accepted: Arc<Accepted>,
    /// The role.
    pub role: change::Role,
    /// The container that plays it.
    pub instance: Instance,
}

/// What is to run, before it has a rollout's number.
#[derive(Debug, Clone)]
pub struct Wish<'a> {
    /// The release that gives the deployment its number.
    pub release: ReleaseNumber,
    /// Each role and the release it is taken from.
    pub roles: BTreeMap<String, ReleaseNumber>,
    /// Only these roles get new containers; all of them if empty.
    pub only: &'a [RoleName],
}

impl Apps {
    /// The roles of a deployment.
    ///
    /// # Errors
    /// When a release is not at hand, or its ledger is damaged.
    pub fn parts(&self, app: &str, deployment: &Deployment) -> Result<Vec<Part>, AppsError> {
        let mut releases = BTreeMap::new();
        let mut parts = Vec::new();
        for of in &deployment.roles {
            let origin = deployment.origin(of);
            let accepted = match releases.get(&origin.release) {
                Some(known) => Arc::clone(known),
                None => {
                    let read = Arc::new(self.release(app, origin.release)?);
                    releases.insert(origin.release, Arc::clone(&read));
                    read
                }
            };
            let found = accepted.release.roles.iter();
            if let Some(role) = found.into_iter().find(|role| role.name.as_str() == of.name) {
                parts.push(Part {
                    role: role.clone(),
                    instance: Instance {
                        role: of.name.clone(),
                        rollout: origin.rollout,
                    },
                    accepted,
                });
            }
        }
        Ok(parts)
    }

    /// The roles that a release stands for, each with the release to take it from: its own, and for one that brought
    /// only some of them those that it stood beside.
    ///
    /// # Errors
    /// When the release is not at hand, or its ledger is damaged.
    pub fn composition(
        &self,
        app: &str,
        state: &App,
        number: ReleaseNumber,
    ) -> Result<BTreeMap<String, ReleaseNumber>, AppsError> {
        let mut roles = state.beside.get(&number).cloned().unwrap_or_default();
        let own = self.release(app, number)?.release.roles;
        roles.extend(own.into_iter().map(|role| (role.name.to_string(), number)));
        Ok(roles)
    }

    /// The deployment that `wish` describes, as the rollout `rollout`, where `current` runs.
    ///
    /// Roles that get no new container stay as they are.
    ///
    /// # Errors
    /// When a release is not at hand, or its ledger is damaged.
    pub fn deployment(
        &self,
        app: &str,
        wish: &Wish<'_>,
        current: Option<&Deployment>,
        rollout: RolloutNumber,
    ) -> Result<Deployment, AppsError> {
        let asked = |role: &str| wish.only.is_empty() || wish.only.iter().any(|only| only.as_str() == role);
        let mut roles = Vec::new();
        let releases: BTreeSet<ReleaseNumber> = wish.roles.values().copied().collect();
        for number in releases {
            let release = self.release(app, number)?.release;
            let from = (number != wish.release).then_some(Origin {
                release: number,
                rollout,
            });
            let wanted = |name: &str| asked(name) && wish.roles.get(name) == Some(&number);
            let found = release.roles.iter().filter(|role| wanted(role.name.as_str()));
            roles.extend(found.map(|role| (role.primary, fresh(&release, role, from))));
        }
        if !wish.only.is_empty()
            && let Some(current) = current
        {
            for part in self.parts(app, current)? {
                let name = part.role.name.as_str();
                let Some(running) = current.roles.iter().find(|role| role.name == name) else {
                    continue;
                };
                if !asked(name) {
                    let kept = Role {
                        from: Some(current.origin(running)),
                        ..running.clone()
                    };
                    roles.push((part.role.primary, kept));
                }
            }
        }
        // The primary role is the one that the others wait for.
        roles.sort_by_key(|(primary, _)| !primary);
        Ok(Deployment {
            release: wish.release,
            rollout,
            roles: roles.into_iter().map(|(_, role)| role).collect(),
        })
    }
}

/// The roles of a release as a rollout knows them, the primary one first.
pub fn roles(release: &change::Release) -> Vec<Role> {
    let mut roles: Vec<&change::Role> = release.roles.iter().collect();
    roles.sort_by_key(|role| !role.primary);
    roles.into_iter().map(|role| fresh(release, role, None)).collect()
}

fn fresh(release: &change::Release, role: &change::Role, from: Option<Origin>) -> Role {
    Role {
        name: role.name.to_string(),
        proxied: role.proxy.is_some(),
        image: format!("{}@{}", release.image.repository, release.image.digest),
        assets: role.asset_path.is_some() && role.proxy.is_some(),
        from,
    }
}

#[cfg(test)]
mod tests;
