//! Whether our key may do something behind the door it opens, and the line an administrator runs where it may not.

use appliance_push::sign::PublicKey;

use crate::developer::link::Link;
use crate::developer::reach::{ReachArgs, SshSettings};
use crate::wire;
use crate::wire::doctor::{Area, Complaint};
use crate::wire::finding::Id;

/// Who enrols keys.
pub(super) const ADMINISTRATOR: &str = "an administrator";

/// Compares our keys with those the host obeys; `app` is the one of this directory.
pub(super) async fn look(link: &Link, reach: &ReachArgs, app: Option<&str>) -> Area {
    let keys: Vec<wire::Key> = match link.get("/v1/keys").await {
        Ok(keys) => keys,
        Err(error) => {
            let message = format!("the host does not say which keys it obeys: {error:#}");
            let next = "appliance keys list; journalctl -u appliance-agent --lines 50 --no-pager";
            let blind = Complaint::new(Id::NotSeen, message, next).by("on the host");
            return Area::of("ssh", vec![blind]);
        }
    };
    let offered = reach.offered(link, &SshSettings::default()).await;
    Area::of(
        "ssh",
        judged(&link.name(), &keys, &offered, app).into_iter().collect(),
    )
}

/// What is wrong with our keys, in view of those that `host` obeys.
fn judged(host: &str, keys: &[wire::Key], offered: &[PublicKey], app: Option<&str>) -> Option<Complaint> {
    let Some(first) = offered.first() else {
        return Some(Complaint::new(
            Id::NoKey,
            "there is no key to sign with, and --identity FILE names none",
            "ssh-keygen -t ed25519 -f ~/.ssh/id_ed25519",
        ));
    };
    let known: Vec<(&PublicKey, &wire::Key)> = offered
        .iter()
        .filter_map(|key| {
            let entry = keys.iter().find(|entry| entry.fingerprint == key.fingerprint())?;
            Some((key, entry))
        })
        .collect();
    let only_looks = |entry: &wire::Key| entry.permissions.iter().all(|words| words.starts_with("read"));
    if known.iter().any(|(_, entry)| !only_looks(entry)) {
        return None;
    }
    let wrong = match known.first() {
        Some((key, entry)) => Complaint::new(
            Id::OnlyLooks,
            format!(
                "{} may only look ({})",
                key.fingerprint(),
                entry.permissions.join(", ")
            ),
            enrol(host, key, &entry.permissions, "read", "deploy"),
        ),
        None => Complaint::new(
            Id::UnknownKey,
            format!("{} signs nothing that this host obeys", first.fingerprint()),
            enrol(
                host,
                first,
                &[format!("deploy {}", app.unwrap_or("*"))],
                "deploy",
                "deploy",
            ),
        ),
    };
    Some(wrong.by(ADMINISTRATOR))
}

/// The command that lets our key look at the whole host, and takes nothing from it.
pub(super) async fn to_see_all(link: &Link, reach: &ReachArgs) -> Option<String> {
    let keys: Vec<wire::Key> = link.get("/v1/keys").await.ok()?;
    let offered = reach.offered(link, &SshSettings::default()).await;
    let (key, entry) = offered.iter().find_map(|key| {
        let entry = keys.iter().find(|entry| entry.fingerprint == key.fingerprint())?;
        Some((key, entry))
    })?;
    let mut permissions: Vec<String> = entry
        .permissions
        .iter()
        .filter(|words| !words.starts_with("read"))
        .cloned()
        .collect();
    permissions.push("read *".to_owned());
    Some(enrol(&link.name(), key, &permissions, "", ""))
}

/// Enrols `key` with these permissions, of which those called `from` become `to`.
fn enrol(host: &str, key: &PublicKey, permissions: &[String], from: &str, to: &str) -> String {
    let line = key.to_string();
    let bare: Vec<&str> = line.split(' ').take(2).collect();
    let mut command = format!("appliance keys add '{}'", bare.join(" "));
    for words in permissions {
        let (power, apps) = words.split_once(' ').unwrap_or((words, ""));
        let power = if power == from { to } else { power };
        command.push_str(&format!(" --{power}"));
        if !apps.is_empty() {
            command.push_str(&format!(" '{}'", apps.replace(", ", ",")));
        }
    }
    command.push_str(&format!(" --on {host}"));
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f ann's";
    const BARE: &str = "'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f'";

    fn found(permissions: Option<&[&str]>, app: Option<&str>) -> Option<(String, String)> {
        let key = PublicKey::parse(KEY).expect("a key");
        let keys: Vec<wire::Key> = permissions
            .into_iter()
            .map(|words| wire::Key {
                fingerprint: key.fingerprint(),
                permissions: words.iter().map(|&words| words.to_owned()).collect(),
                comment: String::new(),
            })
            .collect();
        judged("deploy@h", &keys, &[key], app).map(|complaint| (complaint.id, complaint.next))
    }

    #[test]
    fn a_key_that_may_do_nothing_is_told_with_the_line_that_enrols_it() {
        assert_eq!(found(Some(&["deploy shop"]), None), None);
        assert_eq!(found(Some(&["admin"]), None), None);
        let line = |rest: &str| format!("appliance keys add {BARE} {rest} --on deploy@h");
        assert_eq!(
            found(None, Some("shop")),
            Some(("unknown-key".to_owned(), line("--deploy 'shop'")))
        );
        assert_eq!(
            found(Some(&["read shop, blog@x"]), Some("shop")),
            Some(("only-looks".to_owned(), line("--deploy 'shop,blog@x'")))
        );
        let none = judged("deploy@h", &[], &[], None).expect("a finding");
        assert_eq!(none.id, "no-key");
    }
}
