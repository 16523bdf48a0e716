//! The maintenance page: for the whole app, or for some of its roles.

use std::collections::BTreeSet;
use std::sync::Arc;

use appliance_proxy::names::ServiceName;
use appliance_push::change::RoleName;
use appliance_rollout::Deployment;

use super::Agent;
use super::apps::App;
use super::change::{done, not_deployed};
use crate::wire::End;

impl App {
    /// Message of the maintenance page that visitors of a role get, if they do.
    pub fn closed(&self, role: &str) -> Option<&str> {
        let role = self.stopped_roles.get(role);
        role.or(self.stopped.as_ref()).map(String::as_str)
    }

    /// Closes roles, or the app with whatever roles it will have.
    fn close(&mut self, roles: &[RoleName], message: &str) {
        if roles.is_empty() {
            self.stopped = Some(message.to_owned());
            self.stopped_roles.clear();
        }
        for role in roles {
            self.stopped_roles.insert(role.to_string(), message.to_owned());
        }
    }

    /// Opens roles, or the app; `all` are the roles that the app has behind the proxy.
    fn open(&mut self, roles: &[RoleName], all: &BTreeSet<String>) {
        if roles.is_empty() {
            self.stopped_roles.clear();
        }
        // What was closed as a whole is from now on closed role by role.
        if let Some(message) = self.stopped.take().filter(|_| !roles.is_empty()) {
            for role in all {
                self.stopped_roles
                    .entry(role.clone())
                    .or_insert_with(|| message.clone());
            }
        }
        for role in roles {
            self.stopped_roles.remove(role.as_str());
        }
    }
}

/// The services of the roles that are asked for, and all roles that have one.
fn services(
    agent: &Agent,
    app: &str,
    current: &Deployment,
    roles: &[RoleName],
) -> anyhow::Result<(Vec<ServiceName>, BTreeSet<String>)> {
    let parts = agent.apps.parts(app, current)?;
    let behind = parts.iter().filter_map(|part| {
        let spec = part.role.proxy.as_ref()?;
        Some((&part.role.name, spec.service_name.as_str()))
    });
    chosen(app, behind, roles)
}

/// Of roles and their services, those that are asked for, and all roles.
///
/// A host may well run none of them, where the app as a whole is meant: one with jobs alone is no obstacle.
fn chosen<'a>(
    app: &str,
    behind: impl Iterator<Item = (&'a RoleName, &'a str)>,
    roles: &[RoleName],
) -> anyhow::Result<(Vec<ServiceName>, BTreeSet<String>)> {
    let (mut names, mut all) = (Vec::new(), BTreeSet::new());
    for (role, service) in behind {
        all.insert(role.to_string());
        if roles.is_empty() || roles.contains(role) {
            names.push(ServiceName::parse(service)?);
        }
    }
    anyhow::ensure!(
        roles.is_empty() || !names.is_empty(),
        "{app} has no role behind the proxy on this host among these"
    );
    Ok((names, all))
}

fn what(app: &str, roles: &[RoleName]) -> String {
    let names: Vec<&str> = roles.iter().map(RoleName::as_str).collect();
    match names.as_slice() {
        [] => app.to_owned(),
        names => format!("{app} ({})", names.join(", ")),
    }
}

/// Lets the proxy answer 503 with `message`, now and for later releases.
///
/// # Errors
/// When the app has no such role behind the proxy, or the proxy does not answer.
pub async fn close(agent: &Arc<Agent>, app: &str, message: &str, roles: &[RoleName]) -> anyhow::Result<End> {
    let state = agent.apps.read(app)?;
    let Some(current) = &state.numbers.current else {
        return Ok(not_deployed(app));
    };
    let (names, _) = services(agent, app, current, roles)?;
    for name in &names {
        agent.proxy.stop(name, message).await?;
    }
    agent.apps.update(app, |state| state.close(roles, message))?;
    if names.is_empty() {
        return Ok(done(format!("{app} has no role behind the proxy here")));
    }
    Ok(done(format!(
        "{} answers 503 until `appliance app live`",
        what(app, roles)
    )))
}

/// Lets requests through again.
///
/// # Errors
/// When the app has no such role behind the proxy, or the proxy does not answer.
pub async fn open(agent: &Arc<Agent>, app: &str, roles: &[RoleName]) -> anyhow::Result<End> {
    let state = agent.apps.read(app)?;
    let Some(current) = &state.numbers.current else {
        return Ok(not_deployed(app));
    };
    let (names, all) = services(agent, app, current, roles)?;
    for name in &names {
        agent.proxy.resume(name).await?;
    }
    agent.apps.update(app, |state| state.open(roles, &all))?;
    if names.is_empty() {
        return Ok(done(format!("{app} has no role behind the proxy here")));
    }
    Ok(done(format!("{} is live", what(app, roles))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_a_role_behind_the_proxy_is_no_obstacle_to_the_whole_app() {
        let role = |name: &str| RoleName::parse(name).expect("a role");
        let web = role("web");
        let (names, all) = chosen("shop", std::iter::empty(), &[]).expect("nothing to do");
        assert!(names.is_empty() && all.is_empty());
        assert!(chosen("shop", std::iter::empty(), std::slice::from_ref(&web)).is_err());
        let behind = || [(&web, "shop-web")].into_iter();
        let (names, all) = chosen("shop", behind(), &[]).expect("a service");
        assert_eq!((names.len(), all.len()), (1, 1));
        assert!(chosen("shop", behind(), &[role("jobs")]).is_err());
    }

    #[test]
    fn roles_are_closed_and_opened_by_themselves_and_together() {
        let role = |name: &str| RoleName::parse(name).expect("a role");
        let all = BTreeSet::from(["web".to_owned(), "admin".to_owned()]);
        let mut app = App::default();
        app.close(&[role("admin")], "painting");
        assert_eq!((app.closed("web"), app.closed("admin")), (None, Some("painting")));
        app.open(&[role("web")], &all);
        assert_eq!(app.closed("admin"), Some("painting"), "another role was opened");
        app.open(&[], &all);
        assert_eq!((app.closed("web"), app.closed("admin")), (None, None));

        app.close(&[], "moving");
        assert_eq!(app.closed("a role that comes later"), Some("moving"));
        app.open(&[role("web")], &all);
        assert_eq!((app.closed("web"), app.closed("admin")), (None, Some("moving")));
        app.open(&[role("admin")], &all);
        assert_eq!((app.closed("web"), app.closed("admin")), (None, None));
    }
}
