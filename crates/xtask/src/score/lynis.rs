//! Lynis: its index, what it is made of, and why points are missing.

use anyhow::Context as _;
use appliance_sandbox::Command;
use appliance_tests::World;

use crate::say;

/// Points that a container cannot have, whatever it is told: test, words of the line before the points, and why.
const CONTAINER: [(&str, &str, &str); 8] = [
    ("KRNL-6000", "sysctl key kernel.", "the machine's kernel"),
    ("KRNL-6000", "sysctl key fs.", "the machine's kernel"),
    ("KRNL-6000", "sysctl key dev.", "the machine's kernel"),
    ("KRNL-6000", "sysctl key net.core.", "the machine's kernel"),
    ("FILE-6374", "/dev ", "the engine mounts /dev"),
    ("FILE-6374", "marked /dev as", "the engine mounts /dev"),
    ("MACF-6290", "", "no AppArmor of its own"),
    ("ACCT-9628", "", "the kernel gives its audit log to no container"),
];
/// Points that we do without on purpose: test, words of the line before, and why.
const DECLINED: [(&str, &str, &str); 17] = [
    (
        "USB-3000",
        "",
        "USBGuard: a server's console keyboard is a USB device",
    ),
    (
        "SSH-7408",
        "",
        "forwarding, ten sessions, port 22 and six attempts: Kamal, jump hosts and key agents need them",
    ),
    (
        "SSH-7440",
        "",
        "allow_users of host.yml: nobody is locked out by default",
    ),
    ("FILE-6344", "", "hidepid breaks polkit and monitoring"),
    ("FILE-6310", "", "a running server is not partitioned anew"),
    ("MALW-3280", "", "no commercial scanner"),
    (
        "HRDN-7230",
        "",
        "malware scanners report much that is none: item malware-scanner, by name",
    ),
    (
        "DEB-0880",
        "",
        "bans are the agent's own; Lynis looks for fail2ban",
    ),
    (
        "TOOL-5190",
        "",
        "bans are the agent's own; Lynis looks for fail2ban",
    ),
    (
        "FIRE-4508",
        "",
        "Lynis reads iptables' chains, where Docker's policy stands; ours is a table of nftables",
    ),
    (
        "AUTH-9286",
        "",
        "the longest password age would lock accounts that have a key and no password",
    ),
    (
        "FILE-6374",
        "marked /tmp",
        "packages and installers run programs from /tmp",
    ),
    (
        "LOGG-2154",
        "",
        "logs.ship_to of host.yml: only an administrator knows where to",
    ),
    (
        "DEB-0280",
        "",
        "libpam-tmpdir: who becomes another user keeps a directory that is closed to that user",
    ),
    ("DEB-0810", "", "apt-listbugs stops upgrades to ask, at night too"),
    (
        "AUTH-9408",
        "",
        "failed log-ins are in sshd's journal, where the bans are made from",
    ),
    (
        "KRNL-6000",
        "sysctl key net.ipv4",
        "containers need forwarding, VPNs loose reverse paths",
    ),
];

/// What Lynis says of a host.
#[derive(Debug)]
pub(super) struct Found {
    /// Its index, of 100.
    pub index: u32,
    /// The index without the points that no container can have: about what a virtual machine gets at the least.
    pub outside: u32,
    /// Its warnings.
    pub warnings: Vec<String>,
}

/// One result of a test that gave fewer points than it could.
#[derive(Debug, PartialEq, Eq)]
struct Lost {
    test: String,
    context: String,
    points: u32,
}

/// Runs Lynis, and prints the index with its reasons.
///
/// # Errors
/// When Lynis does not do its part.
pub(super) async fn score(world: &World, profile: &str) -> anyhow::Result<Found> {
    let run = Command::new(["lynis", "audit", "system", "--quick", "--no-colors", "--quiet"])
        .timeout(std::time::Duration::from_secs(600));
    world.host.exec(&run).await?;
    let report = world.run(&["cat", "/var/log/lynis-report.dat"]).await?;
    let values = |key: &str| -> Vec<String> {
        report
            .lines()
            .filter_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .map(str::to_owned)
            .collect()
    };
    let index: u32 = values("hardening_index")
        .first()
        .and_then(|index| index.parse().ok())
        .context("Lynis gives no index")?;
    let warnings = values("warning[]");
    let version = values("lynis_version").concat();
    let log = world.run(&["cat", "/var/log/lynis.log"]).await?;
    let (points, possible, lost) = points(&log);
    let sum = |list: &[(&str, &str, &str)]| -> u32 {
        lost.iter()
            .filter(|lost| reason(lost, list).is_some())
            .map(|lost| lost.points)
            .sum()
    };
    let (container, declined) = (sum(&CONTAINER), sum(&DECLINED));
    let share = |of: u32| (points * 100).checked_div(of).unwrap_or(0);
    say::line(&format!(
        "  Lynis {version}, {profile:<15} {index} ({points} of {possible} points), {} warnings",
        warnings.len()
    ));
    say::line(&format!(
        "    {} without the {container} points that no container can have, {} also without the {declined} declined on purpose",
        share(possible - container),
        share(possible - container - declined)
    ));
    for (list, why) in [(&CONTAINER[..], "container"), (&DECLINED[..], "declined")] {
        for entry in list {
            let points: u32 = lost
                .iter()
                .filter(|lost| reason(lost, list) == Some(entry))
                .map(|lost| lost.points)
                .sum();
            if points > 0 {
                say::line(&format!(
                    "    {why}: {points} of {} {}({})",
                    entry.0, entry.1, entry.2
                ));
            }
        }
    }
    for lost in lost
        .iter()
        .filter(|lost| reason(lost, &CONTAINER).or(reason(lost, &DECLINED)).is_none())
    {
        say::line(&format!(
            "    left: {} of {}: {}",
            lost.points, lost.test, lost.context
        ));
    }
    for text in &warnings {
        say::line(&format!("    warning: {text}"));
    }
    Ok(Found {
        index,
        outside: share(possible - container),
        warnings,
    })
}

fn reason<'a, 'b>(
    lost: &Lost,
    list: &'a [(&'b str, &'b str, &'b str)],
) -> Option<&'a (&'b str, &'b str, &'b str)> {
    list.iter()
        .find(|(test, words, _)| lost.test == *test && lost.context.contains(words))
}

/// Points had, points possible, and where the rest went, from Lynis' log.
fn points(log: &str) -> (u32, u32, Vec<Lost>) {
    let (mut had, mut possible, mut lost) = (0, 0, Vec::new());
    let (mut test, mut context) = (String::new(), String::new());
    for line in log.lines() {
        // `2026-01-31 12:00:00 text`
        let text = line.get(20..).unwrap_or_default();
        if let Some(rest) = text.strip_prefix("Performing test ID ") {
            rest.split(' ').next().unwrap_or_default().clone_into(&mut test);
        }
        let Some(rest) = text.strip_prefix("Hardening: assigned ") else {
            if text.starts_with("Result:") {
                text.trim_start_matches("Result:").trim().clone_into(&mut context);
            }
            continue;
        };
        let number = |text: Option<&str>| text.and_then(|text| text.trim().parse::<u32>().ok());
        let inside = rest
            .split_once('(')
            .and_then(|(_, rest)| rest.split_once(')'))
            .map(|(inside, _)| inside);
        if let Some((got, most)) = inside.and_then(|inside| inside.split_once(" of "))
            && let (Some(got), Some(most)) = (number(Some(got)), number(Some(most)))
            && got < most
        {
            lost.push(Lost {
                test: test.clone(),
                context: context.chars().take(100).collect(),
                points: most - got,
            });
        }
        let current = rest.split_once("Currently having ").map(|(_, rest)| rest);
        if let Some(current) = current {
            had = number(current.split(' ').next()).unwrap_or(had);
            possible = number(
                current
                    .split("out of ")
                    .nth(1)
                    .map(|rest| rest.trim_end_matches(')')),
            )
            .unwrap_or(possible);
        }
    }
    (had, possible, lost)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_points_are_counted_with_their_test_and_what_it_saw() {
        let log = "2026-01-31 12:00:00 Performing test ID KRNL-6000 (Check sysctl key pairs in scan profile)\n\
                   2026-01-31 12:00:00 Result: sysctl key kernel.kptr_restrict has a different value\n\
                   2026-01-31 12:00:00 Hardening: assigned partial number of hardening points (0 of 1). Currently having 5 points (out of 9)\n\
                   2026-01-31 12:00:00 Result: sysctl key net.ipv4.conf.all.forwarding has a different value\n\
                   2026-01-31 12:00:00 Hardening: assigned partial number of hardening points (1 of 3). Currently having 6 points (out of 12)\n\
                   2026-01-31 12:00:00 Hardening: assigned maximum number of hardening points for this item (2). Currently having 8 points (out of 14)\n";
        let (had, possible, lost) = points(log);
        assert_eq!((had, possible), (8, 14));
        assert_eq!(lost.iter().map(|lost| lost.points).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(
            reason(&lost[0], &CONTAINER).map(|found| found.2),
            Some("the machine's kernel")
        );
        assert!(reason(&lost[1], &CONTAINER).is_none() && reason(&lost[1], &DECLINED).is_some());
    }
}
