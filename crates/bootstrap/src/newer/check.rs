//! Whether a jump of Docker may be made now: judged from what was seen, nothing is asked here.

use serde::Serialize;

/// Lowest and highest version of Docker's API that somebody speaks, as `(1, 41)`.
pub type ApiRange = ((usize, usize), (usize, usize));

/// Room that downloading and unpacking take, bytes; the packages of an engine are about 100 MB, unpacked 400.
pub(super) const ROOM: u64 = 1 << 30;
/// The newest major whose demands are known here.
const KNOWN: u32 = 29;

/// Why not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Objection {
    /// One sentence.
    pub message: String,
    /// The command that mends it.
    pub next: String,
}

/// What was seen of the engine.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// Containers survive a restart of the daemon.
    pub(super) live_restore: bool,
    /// Such as `overlay2`.
    pub(super) driver: String,
    /// Part of a swarm.
    pub(super) swarm: bool,
    /// Free bytes where packages are unpacked and where Docker's data are, the smaller.
    pub(super) free: u64,
    /// What dpkg left half-done.
    pub(super) half_done: bool,
    /// Containers that speak to Docker themselves, by name.
    pub(super) clients: Vec<String>,
}

/// The lowest API version that an engine of this major still answers.
fn oldest_api(major: u32) -> (usize, usize) {
    match major {
        29.. => (1, 44),
        25..=28 => (1, 24),
        _ => (1, 12),
    }
}

/// Why a jump from major `from` to `to` may not be made.
pub(super) fn objections(seen: &Seen, from: u32, to: u32, ours: ApiRange) -> Vec<Objection> {
    let mut found = Vec::new();
    let mut object = |message: String, next: &str| {
        found.push(Objection {
            message,
            next: next.to_owned(),
        });
    };
    if seen.half_done {
        object(
            "dpkg was interrupted and has packages half installed".to_owned(),
            "dpkg --configure -a",
        );
    }
    if seen.swarm {
        object(
            "this host is part of a swarm, whose containers do not outlive their daemon".to_owned(),
            "docker swarm leave, or upgrade by Docker's own manual",
        );
    } else if !seen.live_restore {
        object(
            "live-restore is off: every container would stop with the daemon".to_owned(),
            "appliance host apply; systemctl reload docker",
        );
    }
    // Removed: aufs and the first overlay with 24.0, devicemapper with 25.0 (Docker's list of deprecated features).
    let gone = match seen.driver.as_str() {
        "aufs" | "overlay" => Some(24),
        "devicemapper" => Some(25),
        _ => None,
    };
    if let Some(since) = gone.filter(|since| to >= *since) {
        object(
            format!(
                "containers and images are kept by the storage driver {}, which Docker {since} and later cannot read",
                seen.driver
            ),
            "docker save what you need; set \"storage-driver\": \"overlay2\" in /etc/docker/daemon.json; appliance push",
        );
    }
    if seen.free < ROOM {
        object(
            format!(
                "only {} MiB are free, {} MiB are needed",
                seen.free >> 20,
                ROOM >> 20
            ),
            "appliance prune all; docker system df",
        );
    }
    if to > KNOWN && to > from {
        object(
            format!("Docker {to} is newer than this program knows ({KNOWN})"),
            "appliance update",
        );
    } else if ours.1 < oldest_api(to) {
        let (major, minor) = oldest_api(to);
        object(
            format!(
                "Docker {to} answers API {major}.{minor} and later, this program speaks up to {}.{}",
                ours.1.0, ours.1.1
            ),
            "appliance update",
        );
    }
    found
}

/// What else to know before saying yes.
pub(super) fn notes(seen: &Seen, from: u32, to: u32) -> Vec<String> {
    let mut notes = Vec::new();
    if from != to {
        notes.push(
            "Docker promises that containers outlive its daemon's restart within a major only; one that does not is started again by its restart policy"
                .to_owned(),
        );
    }
    if oldest_api(to) > oldest_api(from) && !seen.clients.is_empty() {
        let (major, minor) = oldest_api(to);
        notes.push(format!(
            "{} speak to Docker themselves, and have to speak API {major}.{minor} or later from then on",
            seen.clients.join(", ")
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: ApiRange = ((1, 41), (1, 52));

    fn well() -> Seen {
        Seen {
            live_restore: true,
            driver: "overlay2".to_owned(),
            free: ROOM,
            ..Seen::default()
        }
    }

    fn said(seen: &Seen, from: u32, to: u32, ours: ApiRange) -> String {
        let found = objections(seen, from, to, ours);
        found.iter().map(|one| one.message.as_str()).collect()
    }

    #[test]
    fn a_healthy_engine_may_jump_to_every_major_that_is_known() {
        for to in 20..=KNOWN {
            assert_eq!(said(&well(), 20, to, OURS), "", "{to}");
        }
        assert!(said(&well(), 29, 30, OURS).contains("newer than this program knows"));
        assert_eq!(said(&well(), 30, 30, OURS), "", "a patch of what runs already");
    }

    #[test]
    fn what_would_stop_or_lose_containers_is_an_objection() {
        let off = Seen {
            live_restore: false,
            ..well()
        };
        assert!(said(&off, 20, 26, OURS).contains("live-restore is off"));
        let swarm = Seen { swarm: true, ..off };
        assert!(said(&swarm, 20, 26, OURS).contains("swarm"));
        let full = Seen {
            free: ROOM - 1,
            ..well()
        };
        assert!(said(&full, 20, 26, OURS).contains("1023 MiB are free"));
        let broken = Seen {
            half_done: true,
            ..well()
        };
        assert!(said(&broken, 20, 26, OURS).contains("dpkg"));
        for (driver, last) in [("aufs", 23), ("overlay", 23), ("devicemapper", 24)] {
            let old = Seen {
                driver: driver.to_owned(),
                ..well()
            };
            assert_eq!(said(&old, 20, last, OURS), "", "{driver}");
            assert!(said(&old, 20, last + 1, OURS).contains(driver));
        }
    }

    #[test]
    fn an_api_that_is_dropped_is_an_objection_to_us_and_a_note_to_others() {
        let old: ApiRange = ((1, 41), (1, 43));
        assert_eq!(said(&well(), 20, 28, old), "");
        assert!(said(&well(), 28, 29, old).contains("API 1.44 and later"));
        let seen = Seen {
            clients: vec!["watcher".to_owned()],
            ..well()
        };
        assert!(notes(&seen, 28, 29).concat().contains("watcher"));
        assert!(!notes(&seen, 26, 28).concat().contains("watcher"));
        assert!(notes(&seen, 28, 28).is_empty());
    }
}
