//! After a reboot: addresses of containers may have been given to others, so what the stored snapshot says of them is
//! not believed yet.
//!
//! ```text
//!  stored in another boot ──► held ──put again by the agent──► unproven ──first 2xx of an upstream──► open
//! ```
//!
//! Requests to a service that is held or unproven wait, at most as long as they would for an answer ([`LONGEST`] and
//! the service's `response_timeout`), then get 503 with `Retry-After`.
//! Passing a health check alone does not open a service, because whoever has the address now may pass it as well.
//!
//! The boot is told by a file beside the control socket: its directory is emptied by a reboot, and by nothing else.
//! Without a control socket nobody could confirm anything, so nothing waits.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::durable;
use crate::snapshot::Snapshot;

/// Longest wait of a request.
pub(crate) const LONGEST: Duration = Duration::from_secs(30);
/// When clients are told to come back, in seconds.
pub(crate) const RETRY_AFTER: u16 = 5;

/// The id of this boot, kept in `directory`; `fresh` becomes it when there is none yet.
///
/// # Errors
/// When it can neither be read nor written.
pub(crate) fn boot(directory: &Path, fresh: &str) -> io::Result<String> {
    let path = directory.join("boot");
    match fs_err::read_to_string(&path) {
        Ok(boot) if !boot.is_empty() => Ok(boot),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => {
            durable::write(&path, fresh.as_bytes(), 0o600)?;
            Ok(fresh.to_owned())
        }
    }
}

/// Holds what was stored in another boot than `boot`.
pub(crate) fn hold(snapshot: &mut Snapshot, boot: Option<String>) {
    match (&snapshot.boot, &boot) {
        (_, None) => snapshot.held = BTreeSet::new(),
        (Some(stored), Some(boot)) if stored != boot => {
            snapshot.held = snapshot
                .services
                .iter()
                .map(|service| service.name.clone())
                .collect();
        }
        _ => {}
    }
    snapshot.boot = boot;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::ServiceName;
    use crate::snapshot::Service;

    #[test]
    fn only_another_boot_holds_and_a_restart_forgets_no_hold() {
        let name = ServiceName::parse("web").unwrap();
        let snapshot = |boot: Option<&str>| Snapshot {
            boot: boot.map(str::to_owned),
            services: vec![Service::new(name.clone(), vec![], vec![])],
            ..Snapshot::default()
        };
        for (stored, now, held) in [
            (None, Some("b"), 0),
            (Some("b"), Some("b"), 0),
            (Some("a"), Some("b"), 1),
            (Some("a"), None, 0),
        ] {
            let mut snapshot = snapshot(stored);
            hold(&mut snapshot, now.map(str::to_owned));
            assert_eq!(snapshot.held.len(), held, "{stored:?} then {now:?}");
            hold(&mut snapshot, now.map(str::to_owned));
            assert_eq!(snapshot.held.len(), held, "after a restart in the same boot");
        }
    }

    #[test]
    fn a_boot_keeps_its_id() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(boot(home.path(), "one").unwrap(), "one");
        assert_eq!(boot(home.path(), "two").unwrap(), "one");
    }
}
