//! Kernel, files, logins, updates: what a server should have whatever runs on it.
//!
//! Each function is one line of the hardening list.
//! What would keep containers, Kamal or the next reboot from working is left out on purpose: no `ip_forward=0`,
//! no `user.max_user_namespaces=0`, no `modules_disabled`, no blocked overlay, squashfs or vfat, no `noexec` on `/tmp`.

use super::MANAGED;
use crate::facts::{Facts, MailServer, Temporary};
use crate::firewall::opening::Protocol;
use crate::host::Owner;
use crate::item::{Item, Level};
use crate::options::{Options, Swap};
use crate::want::{Content, FileWant, Handler, Want};

/// Every item of this page, in order.
pub(super) fn items(options: &Options, facts: &Facts) -> Vec<Item> {
    let mut items = vec![
        forwarding(facts),
        network(),
        limits(facts),
        martians(),
        bbr(facts),
        updates(options, facts),
        time(facts),
        host_keys(),
        modules(),
        legacy(),
        apparmor(facts),
        temporary(facts),
    ];
    items.push(mail(options, facts));
    if facts.container.is_none() {
        items.push(kernel());
        items.push(file_links());
        items.push(swap(options, facts));
    }
    let library_restarts = library_restarts();
    if facts.has_needrestart || library_restarts.is_on(options) {
        items.push(needrestart());
    }
    items.push(library_restarts);
    if facts.sshd.is_some() {
        items.push(moduli());
    }
    if let Some(zone) = &options.timezone {
        items.push(timezone(zone));
    }
    items.extend(super::logins::items(options, facts));
    items.extend(super::optional::items(options, facts));
    items
}

pub(super) fn item(
    id: &'static str,
    level: Level,
    title: &'static str,
    reason: &'static str,
    references: &'static [&'static str],
    rollback: &'static str,
    wants: Vec<Want>,
) -> Item {
    Item {
        id,
        level,
        title,
        reason,
        references,
        rollback,
        wants,
    }
}

fn sysctl(name: &str, settings: &[(&'static str, &'static str)]) -> Vec<Want> {
    vec![Want::Sysctl {
        path: format!("/etc/sysctl.d/60-appliance-{name}.conf").into(),
        settings: settings.to_vec(),
    }]
}

pub(super) fn files(files: Vec<FileWant>, after: Vec<Handler>) -> Vec<Want> {
    vec![Want::Files { files, after }]
}

fn forwarding(facts: &Facts) -> Item {
    // A host that learns its IPv6 route from router advertisements would lose it with forwarding on, unless told to listen on.
    let mut settings = vec![("net.ipv4.ip_forward", "1")];
    if facts.docker_ipv6 {
        settings.extend([
            ("net.ipv6.conf.all.forwarding", "1"),
            ("net.ipv6.conf.all.accept_ra", "2"),
            ("net.ipv6.conf.default.accept_ra", "2"),
        ]);
    }
    item(
        "sysctl-forwarding",
        Level::Must,
        "Packets are passed on to containers",
        "other hardening sets this to 0, and containers lose the network at the next reboot",
        &["M24", "contra U3.3.1"],
        "rm /etc/sysctl.d/60-appliance-forwarding.conf",
        sysctl("forwarding", &settings),
    )
}

fn network() -> Item {
    item(
        "sysctl-network",
        Level::Must,
        "Neighbours cannot redirect or flood the host",
        "redirects and source routes let a neighbour read traffic; loose reverse-path checks keep VPNs working",
        &[
            "M25",
            "M26",
            "M27",
            "U3.3.2",
            "U3.3.3",
            "U3.3.4",
            "U3.3.5",
            "U3.3.6",
            "U3.3.8",
            "U3.3.10",
            "L KRNL-6000",
        ],
        "rm /etc/sysctl.d/60-appliance-network.conf; the next boot has the kernel's own values",
        sysctl(
            "network",
            &[
                ("net.ipv4.conf.all.accept_redirects", "0"),
                ("net.ipv4.conf.default.accept_redirects", "0"),
                ("net.ipv4.conf.all.secure_redirects", "0"),
                ("net.ipv4.conf.default.secure_redirects", "0"),
                ("net.ipv4.conf.all.send_redirects", "0"),
                ("net.ipv4.conf.default.send_redirects", "0"),
                ("net.ipv4.conf.all.accept_source_route", "0"),
                ("net.ipv4.conf.default.accept_source_route", "0"),
                ("net.ipv4.conf.all.rp_filter", "2"),
                ("net.ipv4.conf.default.rp_filter", "2"),
                ("net.ipv6.conf.all.accept_redirects", "0"),
                ("net.ipv6.conf.default.accept_redirects", "0"),
                ("net.ipv6.conf.all.accept_source_route", "0"),
                ("net.ipv6.conf.default.accept_source_route", "0"),
                ("net.ipv4.tcp_syncookies", "1"),
                ("net.ipv4.tcp_rfc1337", "1"),
                ("net.ipv4.icmp_echo_ignore_broadcasts", "1"),
                ("net.ipv4.icmp_ignore_bogus_error_responses", "1"),
            ],
        ),
    )
}

fn kernel() -> Item {
    item(
        "sysctl-kernel",
        Level::Must,
        "The kernel tells strangers nothing about itself",
        "addresses, logs, tracing and BPF are where local exploits begin; unprivileged_bpf_disabled holds until a reboot",
        &["M28", "U1.5.1", "U1.5.2", "L KRNL-6000"],
        "rm /etc/sysctl.d/60-appliance-kernel.conf; reboot",
        sysctl(
            "kernel",
            &[
                ("kernel.kptr_restrict", "2"),
                ("kernel.dmesg_restrict", "1"),
                ("kernel.perf_event_paranoid", "3"),
                ("kernel.yama.ptrace_scope", "1"),
                ("kernel.unprivileged_bpf_disabled", "1"),
                ("net.core.bpf_jit_harden", "2"),
                ("kernel.randomize_va_space", "2"),
                ("kernel.sysrq", "0"),
                ("kernel.kexec_load_disabled", "1"),
                ("kernel.core_uses_pid", "1"),
                ("dev.tty.ldisc_autoload", "0"),
            ],
        ),
    )
}

fn file_links() -> Item {
    item(
        "sysctl-files",
        Level::Must,
        "Links and pipes in shared directories are no trap",
        "the classic way from /tmp to root",
        &["M29", "U1.5.3"],
        "rm /etc/sysctl.d/60-appliance-files.conf",
        sysctl(
            "files",
            &[
                ("fs.protected_hardlinks", "1"),
                ("fs.protected_symlinks", "1"),
                ("fs.protected_fifos", "2"),
                ("fs.protected_regular", "2"),
                ("fs.suid_dumpable", "0"),
            ],
        ),
    )
}

fn limits(facts: &Facts) -> Item {
    let mut settings = vec![
        ("net.core.somaxconn", "4096"),
        ("net.ipv4.tcp_max_syn_backlog", "4096"),
    ];
    if facts.container.is_none() {
        settings.extend([
            ("fs.inotify.max_user_watches", "524288"),
            ("fs.inotify.max_user_instances", "1024"),
            ("fs.aio-max-nr", "1048576"),
            ("net.netfilter.nf_conntrack_max", conntrack(facts.memory)),
        ]);
    }
    item(
        "sysctl-limits",
        Level::Should,
        "Tables are as large as a server needs",
        "a full connection table drops visitors; file watchers run out with a few development tools",
        &["S26", "S27", "K"],
        "rm /etc/sysctl.d/60-appliance-limits.conf",
        sysctl("limits", &settings),
    )
}

/// Connections that are tracked, by memory in bytes: an entry takes about 320 of them.
fn conntrack(memory: u64) -> &'static str {
    match memory >> 30 {
        0 => "65536",
        1..=3 => "131072",
        4..=15 => "262144",
        _ => "524288",
    }
}

fn martians() -> Item {
    item(
        "sysctl-martians",
        Level::Should,
        "Impossible source addresses are logged",
        "somebody on the same network is trying something; the kernel limits how often it says so",
        &["S28", "U3.3.9"],
        "rm /etc/sysctl.d/60-appliance-martians.conf",
        sysctl(
            "martians",
            &[
                ("net.ipv4.conf.all.log_martians", "1"),
                ("net.ipv4.conf.default.log_martians", "1"),
            ],
        ),
    )
}

fn bbr(facts: &Facts) -> Item {
    let settings: &[(&str, &str)] = if facts.has_bbr && facts.container.is_none() {
        &[
            ("net.core.default_qdisc", "fq"),
            ("net.ipv4.tcp_congestion_control", "bbr"),
        ]
    } else {
        &[]
    };
    item(
        "bbr",
        Level::Should,
        "Slow lines are filled without being flooded",
        "BBR where the kernel has it: visitors on mobile networks wait less",
        &["S25"],
        "rm /etc/sysctl.d/60-appliance-bbr.conf",
        if settings.is_empty() {
            Vec::new()
        } else {
            sysctl("bbr", settings)
        },
    )
}

/// What is not upgraded unattended: regular expressions, matched from the beginning of a package's name.
const HELD: [&str; 3] = ["docker", "containerd", "runc$"];

/// `03:30` and so many minutes, around the clock; a time that is none stays as it is.
fn later(time: &str, minutes: u32) -> String {
    let parts = time
        .split_once(':')
        .and_then(|(hours, minutes)| Some((hours.parse::<u32>().ok()?, minutes.parse::<u32>().ok()?)));
    parts.map_or_else(
        || time.to_owned(),
        |(hours, of_hour)| {
            let all = (hours * 60 + of_hour + minutes) % (24 * 60);
            format!("{:02}:{:02}", all / 60, all % 60)
        },
    )
}

fn updates(options: &Options, facts: &Facts) -> Item {
    let on = u8::from(options.security_updates);
    let periodic = format!(
        "// managed by appliance\nAPT::Periodic::Update-Package-Lists \"{on}\";\nAPT::Periodic::Unattended-Upgrade \"{on}\";\nAPT::Periodic::AutocleanInterval \"7\";\n"
    );
    let reboot = match &options.reboot_at {
        None => "Unattended-Upgrade::Automatic-Reboot \"false\";\n".to_owned(),
        Some(time) => format!(
            "Unattended-Upgrade::Automatic-Reboot \"true\";\nUnattended-Upgrade::Automatic-Reboot-Time \"{}\";\n",
            later(time, facts.reboot_delay)
        ),
    };
    let held: String = HELD.iter().map(|pattern| format!("  \"{pattern}\";\n")).collect();
    let what = format!(
        "// managed by appliance\n// An upgrade of Docker restarts the daemon: that is an explicit decision.\n\
         Unattended-Upgrade::Package-Blacklist {{\n{held}}};\n\
         Unattended-Upgrade::Remove-Unused-Kernel-Packages \"true\";\n{reboot}"
    );
    item(
        "updates",
        Level::Must,
        "Security updates install themselves",
        "most break-ins use holes that were closed weeks before; Docker is left out, since its upgrade restarts it",
        &["M30", "M31", "U1.2.2.1", "L PKGS-7420"],
        "rm /etc/apt/apt.conf.d/52appliance-upgrades /etc/apt/apt.conf.d/52appliance-periodic",
        vec![
            Want::Packages {
                names: vec!["unattended-upgrades".to_owned()],
            },
            Want::Files {
                files: vec![
                    FileWant::ours("/etc/apt/apt.conf.d/52appliance-periodic", periodic),
                    FileWant::ours("/etc/apt/apt.conf.d/52appliance-upgrades", what),
                ],
                after: Vec::new(),
            },
        ],
    )
}

/// Without it, a service goes on with the library it started with, holes included, until somebody restarts it.
fn library_restarts() -> Item {
    item(
        "library-restarts",
        // It brings an assembler along, which has no place on most servers.
        Level::Optional,
        "Services take updated libraries over at once",
        "a service keeps the library it started with; what is restarted without asking, the item needrestart says",
        &["M32", "L DEB-0831"],
        "apt-get remove needrestart",
        vec![Want::Packages {
            names: vec!["needrestart".to_owned()],
        }],
    )
}

fn needrestart() -> Item {
    let text = "# managed by appliance\n$nrconf{restart} = 'a';\n$nrconf{kernelhints} = -1;\n\
                $nrconf{override_rc}->{qr(^docker)} = 0;\n$nrconf{override_rc}->{qr(^containerd)} = 0;\n\
                $nrconf{override_rc}->{qr(^appliance-)} = 0;\n$nrconf{override_rc}->{qr(^ssh)} = 0;\n";
    item(
        "needrestart",
        Level::Must,
        "Updates restart services without asking, but not Docker",
        "an upgrade that waits for an answer at night waits for ever",
        &["M32"],
        "rm /etc/needrestart/conf.d/appliance.conf",
        files(
            vec![FileWant::ours("/etc/needrestart/conf.d/appliance.conf", text)],
            Vec::new(),
        ),
    )
}

fn time(facts: &Facts) -> Item {
    let wants = if facts.time_daemon.is_some() {
        Vec::new()
    } else if facts.container.is_some() {
        // A container has the machine's clock, and may not set it.
        Vec::new()
    } else {
        vec![
            Want::Packages {
                names: vec!["systemd-timesyncd".to_owned()],
            },
            Want::Unit {
                name: "systemd-timesyncd.service".to_owned(),
            },
        ]
    };
    item(
        "time",
        Level::Must,
        "The clock is right",
        "certificates, signatures and logs depend on it; a daemon that runs already is kept",
        &["M33", "U2.3", "L TIME-3104"],
        "systemctl disable --now systemd-timesyncd",
        wants,
    )
}

fn timezone(zone: &str) -> Item {
    item(
        "timezone",
        Level::Must,
        "The time zone of host.yml",
        "schedules and logs are read by people",
        &["host.yml"],
        "timedatectl set-timezone Etc/UTC",
        vec![Want::Timezone(zone.to_owned())],
    )
}

fn host_keys() -> Item {
    item(
        "host-keys",
        Level::Must,
        "sshd's own keys are root's alone",
        "whoever reads them can pretend to be this host; they are never made anew",
        &["M13", "U5.1.2", "U5.1.3"],
        "none needed",
        vec![Want::Rights {
            paths: vec![
                ("/etc/ssh/ssh_host_ed25519_key", 0o600),
                ("/etc/ssh/ssh_host_rsa_key", 0o600),
                ("/etc/ssh/ssh_host_ecdsa_key", 0o600),
                ("/etc/ssh/sshd_config", 0o600),
            ],
        }],
    )
}

fn moduli() -> Item {
    item(
        "moduli",
        Level::Must,
        "Small Diffie-Hellman groups are not offered",
        "groups below 3071 bits are within reach of a state; Kamal's client needs group exchange, so large ones stay",
        &["M12", "ssh-audit"],
        "appliance host rollback moduli",
        files(
            vec![FileWant {
                path: "/etc/ssh/moduli".into(),
                content: Content::Moduli,
                mode: 0o644,
                owner: Owner::root(),
                check: None,
                force: false,
            }],
            Vec::new(),
        ),
    )
}

fn modules() -> Item {
    let names = [
        "dccp",
        "sctp",
        "rds",
        "tipc",
        "cramfs",
        "freevxfs",
        "hfs",
        "hfsplus",
        "jffs2",
        "udf",
        "usb-storage",
        "firewire-core",
        "firewire-ohci",
        "firewire-sbp2",
    ];
    let lines: String = names
        .iter()
        .map(|name| format!("install {name} /bin/false\nblacklist {name}\n"))
        .collect();
    item(
        "modules",
        Level::Should,
        "Protocols and file systems nobody uses cannot be loaded",
        "old code that any local user can have loaded; what Docker, snaps and EFI need is not among them",
        &[
            "S19",
            "U1.1.1",
            "U3.2",
            "L USB-1000",
            "L STRG-1846",
            "L NETW-3200",
        ],
        "rm /etc/modprobe.d/50-appliance.conf",
        files(
            vec![FileWant::ours(
                "/etc/modprobe.d/50-appliance.conf",
                format!("{MANAGED}{lines}"),
            )],
            Vec::new(),
        ),
    )
}

/// Services that send passwords in the clear, or send reports elsewhere.
pub(crate) const LEGACY: [&str; 11] = [
    "telnet",
    "telnetd",
    "inetutils-telnet",
    "rsh-client",
    "rsh-server",
    "nis",
    "talk",
    "talkd",
    "ftp",
    "apport",
    "whoopsie",
];

fn legacy() -> Item {
    item(
        "legacy-packages",
        Level::Should,
        "Nothing that speaks in the clear is installed",
        "telnet, rsh, talk and NIS carry passwords in the clear; crash reporters carry memory elsewhere",
        &["S22", "U2.2", "U1.5.5"],
        "apt-get install what is missed",
        vec![Want::Gone {
            packages: LEGACY.map(str::to_owned).to_vec(),
        }],
    )
}

/// AppArmor confines what runs in containers by Docker's profile `docker-default`, which the engine loads itself where it can.
fn apparmor(facts: &Facts) -> Item {
    let wants = if facts.apparmor && facts.container.is_none() {
        vec![
            Want::Packages {
                names: vec!["apparmor".to_owned()],
            },
            Want::Unit {
                name: "apparmor.service".to_owned(),
            },
        ]
    } else {
        // Without the kernel's part there is nothing to switch on; a note says so.
        Vec::new()
    };
    item(
        "apparmor",
        Level::Should,
        "Containers are confined by AppArmor",
        "what breaks out of an app still may not write to the kernel's files; the engine loads its profile when it starts",
        &["S20", "U1.3", "D5.2", "L MACF-6208"],
        "systemctl disable apparmor, and reboot",
        wants,
    )
}

/// A unit with this text, there and started.
fn unit_of_ours(name: &str, text: &str) -> [Want; 2] {
    let file = FileWant::ours(&format!("/etc/systemd/system/{name}"), text);
    [
        Want::Files {
            files: vec![file],
            after: vec![Handler::DaemonReload],
        },
        Want::Unit {
            name: name.to_owned(),
        },
    ]
}

fn temporary(facts: &Facts) -> Item {
    let mut wants = Vec::new();
    if facts.tmp == Temporary::Plain || facts.tmp == Temporary::Ours {
        wants.extend(unit_of_ours(
            "tmp.mount",
            include_str!("../../../../systemd/tmp.mount"),
        ));
    }
    if facts.tmp == Temporary::Fstab {
        // The line is theirs: what it leaves out is added after each boot's mount.
        wants.extend(unit_of_ours(
            "appliance-tmp-flags.service",
            include_str!("../../../../systemd/appliance-tmp-flags.service"),
        ));
    }
    // What another unit mounts is theirs too; its flags are tightened in place, and said.
    wants.extend(["/tmp", "/dev/shm"].map(|path| Want::Mount {
        path,
        flags: &["nosuid", "nodev"],
    }));
    item(
        "temporary-files",
        Level::Should,
        "Directories that everybody may write to hold no devices and grant no rights",
        "a setuid program or a device left there has no effect; programs still run, since packages need that",
        &["S21", "U1.1.2.1", "U1.1.2.2", "L FILE-6374"],
        "systemctl disable tmp.mount appliance-tmp-flags; rm -f /etc/systemd/system/tmp.mount /etc/systemd/system/appliance-tmp-flags.service; reboot",
        wants,
    )
}

/// A mail server that came as a dependency only takes mail of this host; one whose port host.yml opens is meant to.
fn mail(options: &Options, facts: &Facts) -> Item {
    let opened = options
        .firewall
        .openings
        .iter()
        .any(|opening| opening.ports.protocol == Protocol::Tcp && opening.ports.contains(25));
    let settings = facts.mail_server.filter(|_| !opened).map(|server| match server {
        MailServer::Postfix => (
            "/etc/postfix/main.cf",
            Content::MainCf(vec![("inet_interfaces", "loopback-only")]),
            "postfix.service",
        ),
        MailServer::Exim => (
            "/etc/exim4/update-exim4.conf.conf",
            Content::ShellSettings(vec![("dc_local_interfaces", "'127.0.0.1 ; ::1'")]),
            "exim4.service",
        ),
    });
    let wants = settings.map_or_else(Vec::new, |(path, content, unit)| {
        files(
            vec![FileWant {
                path: path.into(),
                content,
                mode: 0o644,
                owner: Owner::root(),
                check: None,
                force: false,
            }],
            vec![Handler::Restart(unit.to_owned())],
        )
    });
    item(
        "mail-local",
        Level::Should,
        "The mail server takes mail of this host alone",
        "it came along with something else, and nobody watches it; host.yml keeps it open where port 25 is opened there",
        &["S24", "U2.1.21", "L MAIL-8818"],
        "appliance host rollback mail-local",
        wants,
    )
}

fn swap(options: &Options, facts: &Facts) -> Item {
    const GIB: u64 = 1 << 30;
    let size = match options.swap {
        Swap::Off => None,
        Swap::Bytes(bytes) => Some(bytes),
        Swap::Auto if facts.memory >= 4 * GIB => None,
        Swap::Auto => Some((facts.memory * 2).clamp(GIB, 4 * GIB) & !0xf_ffff),
    }
    // Somebody else's swap is enough; and a disk that would be full of swap is worse than none.
    .filter(|bytes| !facts.other_swap && facts.disk_free > bytes + (3 << 30));
    let wants = size.map_or_else(Vec::new, |bytes| {
        let mut wants = vec![Want::Swap { bytes }];
        wants.extend(sysctl("swap", &[("vm.swappiness", "10")]));
        wants
    });
    item(
        "swap",
        Level::Must,
        "Memory that runs short does not kill the app",
        "a small server without swap kills the largest process first, which is the app",
        &["M36"],
        "swapoff /swapfile; rm /swapfile; remove its line from /etc/fstab",
        wants,
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_fleet_does_not_reboot_in_one_minute() {
        assert_eq!(super::later("03:30", 0), "03:30");
        assert_eq!(super::later("23:50", 29), "00:19");
    }

    #[test]
    fn every_package_of_docker_is_held_back_and_no_other() {
        let held = |name: &str| {
            super::HELD.iter().any(|pattern| match pattern.strip_suffix('$') {
                Some(whole) => name == whole,
                None => name.starts_with(pattern),
            })
        };
        for name in [
            "docker-ce",
            "docker-ce-cli",
            "docker.io",
            "docker-cli",
            "docker-compose-v2",
        ] {
            assert!(held(name), "{name}");
        }
        assert!(held("containerd.io") && held("containerd") && held("runc"));
        assert!(!held("runcible") && !held("libc6") && !held("openssh-server"));
    }

    #[test]
    fn the_connection_table_grows_with_memory() {
        for (memory, expect) in [
            (512 << 20, "65536"),
            (2 << 30, "131072"),
            (8 << 30, "262144"),
            (64 << 30, "524288"),
        ] {
            assert_eq!(super::conntrack(memory), expect);
        }
    }
}
