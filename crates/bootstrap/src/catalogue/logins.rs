//! Who logs in, as whom, and what they are shown.

use super::MANAGED;
use super::hardening::{files, item};
use crate::facts::Facts;
use crate::host::Owner;
use crate::item::{Item, Level};
use crate::options::Options;
use crate::want::{Check, Content, FileWant, Want};

/// Every item of this page, in order.
pub(super) fn items(options: &Options, facts: &Facts) -> Vec<Item> {
    let mut items = vec![
        coredumps(),
        login_defs(options),
        banner(),
        cron(),
        accounts_files(),
        homes(),
        su(facts),
    ];
    if facts.has_sudo {
        items.push(sudo());
    }
    items.extend([root_lock(), shell_timeout(options), password_quality()]);
    items
}

fn coredumps() -> Item {
    item(
        "core-dumps",
        Level::Should,
        "Crashes leave no memory on disk",
        "a core dump of an app holds its secrets",
        &["S14", "U1.5.3", "L KRNL-5820"],
        "rm /etc/security/limits.d/50-appliance.conf /etc/systemd/coredump.conf.d/50-appliance.conf /etc/profile.d/50-appliance-core.sh",
        files(
            vec![
                FileWant::ours(
                    "/etc/security/limits.d/50-appliance.conf",
                    format!("{MANAGED}* hard core 0\n* soft core 0\n"),
                ),
                FileWant::ours(
                    "/etc/systemd/coredump.conf.d/50-appliance.conf",
                    format!("{MANAGED}[Coredump]\nStorage=none\nProcessSizeMax=0\n"),
                ),
                // Limits of PAM do not reach every shell.
                FileWant::ours(
                    "/etc/profile.d/50-appliance-core.sh",
                    format!("{MANAGED}ulimit -c 0\n"),
                ),
            ],
            Vec::new(),
        ),
    )
}

fn login_defs(options: &Options) -> Item {
    let mut settings = vec![
        ("UMASK", "027"),
        // What `useradd` and `adduser` make.
        ("HOME_MODE", "0750"),
        ("SHA_CRYPT_MIN_ROUNDS", "10000"),
        ("SHA_CRYPT_MAX_ROUNDS", "65536"),
    ];
    if options.strict {
        // Not the longest age: it would lock accounts that have a key and no password.
        settings.extend([("PASS_MIN_DAYS", "1"), ("PASS_WARN_AGE", "7")]);
    }
    item(
        "login-defs",
        Level::Should,
        "New files of people are not for everybody",
        "umask 027 for log-in shells; accounts with a key and no password do not age",
        &["S15", "U5.4.1", "L AUTH-9230", "L AUTH-9286", "L AUTH-9328"],
        "appliance host rollback login-defs",
        files(
            vec![FileWant {
                path: "/etc/login.defs".into(),
                content: Content::LoginDefs(settings),
                mode: 0o644,
                owner: Owner::root(),
                check: None,
                force: false,
            }],
            Vec::new(),
        ),
    )
}

/// What `/etc/issue.net` says before a log-in.
pub(super) const BANNER: &str = "/etc/issue.net";

fn banner() -> Item {
    const TEXT: &str = "Authorized access only. All activity is monitored, logged and reported.\nDisconnect now if you are not an authorized user.\n";
    const GREETING: &str =
        "This host is an appliance.  What runs: appliance status   What it should be: appliance host audit\n";
    item(
        "banner",
        Level::Should,
        "A notice before the log-in, and no advertisement after it",
        "some courts ask for it; neither notice names the system, and nothing is fetched from elsewhere to greet somebody",
        &["S16", "U1.6", "L BANN-7126", "L BANN-7130"],
        "appliance host rollback banner",
        vec![
            Want::Files {
                files: [(BANNER, TEXT), ("/etc/issue", TEXT), ("/etc/motd", GREETING)]
                    .map(|(path, text)| FileWant {
                        path: path.into(),
                        content: Content::Instead(text.to_owned()),
                        mode: 0o644,
                        owner: Owner::root(),
                        check: None,
                        force: false,
                    })
                    .to_vec(),
                after: Vec::new(),
            },
            // Scripts that name the kernel, advertise, or ask a server of Ubuntu's at every log-in.
            Want::Rights {
                paths: vec![
                    ("/etc/update-motd.d/10-uname", 0o644),
                    ("/etc/update-motd.d/10-help-text", 0o644),
                    ("/etc/update-motd.d/50-motd-news", 0o644),
                    ("/etc/update-motd.d/88-esm-announce", 0o644),
                    ("/etc/update-motd.d/91-contract-ua-esm-status", 0o644),
                ],
            },
        ],
    )
}

fn cron() -> Item {
    item(
        "cron-files",
        Level::Should,
        "Schedules are root's to read",
        "they say when which job runs as whom, and often hold passwords",
        &["S17", "U2.4.1"],
        "chmod 644 /etc/crontab; chmod 755 /etc/cron.{hourly,daily,weekly,monthly,d}",
        vec![Want::Rights {
            paths: vec![
                ("/etc/crontab", 0o600),
                ("/etc/cron.hourly", 0o700),
                ("/etc/cron.daily", 0o700),
                ("/etc/cron.weekly", 0o700),
                ("/etc/cron.monthly", 0o700),
                ("/etc/cron.d", 0o700),
            ],
        }],
    )
}

fn accounts_files() -> Item {
    item(
        "account-files",
        Level::Should,
        "Accounts can be read, their secrets cannot",
        "whoever writes these is root",
        &["S18", "U7.1"],
        "none needed: these are Debian's own modes",
        vec![Want::Rights {
            paths: vec![
                ("/etc/passwd", 0o644),
                ("/etc/passwd-", 0o644),
                ("/etc/group", 0o644),
                ("/etc/group-", 0o644),
                ("/etc/shadow", 0o640),
                ("/etc/shadow-", 0o640),
                ("/etc/gshadow", 0o640),
                ("/etc/gshadow-", 0o640),
                ("/etc/shells", 0o644),
            ],
        }],
    )
}

fn sudo() -> Item {
    const TEXT: &str =
        "Defaults use_pty\nDefaults logfile=\"/var/log/appliance/sudo.log\"\nDefaults timestamp_timeout=15\n";
    item(
        "sudo",
        Level::Must,
        "sudo leaves a record",
        "commands run in a terminal of their own, and are written down; nobody gets more rights by it",
        &["M04", "M05", "S29", "U5.2.2", "U5.2.3", "U5.2.6"],
        "rm /etc/sudoers.d/50-appliance",
        files(
            vec![
                FileWant::ours("/etc/sudoers.d/50-appliance", format!("{MANAGED}{TEXT}"))
                    .mode(0o440)
                    .checked(Check(&["visudo", "--check", "--quiet", "--file", "{}"])),
            ],
            Vec::new(),
        ),
    )
}

/// The users whose home directories are ours to close.
fn homes() -> Item {
    item(
        "home-directories",
        Level::Should,
        "The deploy user's home is its own",
        "keys and histories lie there; homes of others are theirs to close",
        &["U7.2.9", "L HOME-9304"],
        "chmod 755 /home/deploy",
        vec![Want::Rights {
            paths: vec![("/home/deploy", 0o750)],
        }],
    )
}

fn su(facts: &Facts) -> Item {
    // Who becomes root by su alone would never again.
    let locks_out = !facts.su_users.is_empty();
    item(
        "su",
        Level::Should,
        "Only who may use sudo may use su",
        "an account that was broken into cannot try root's password; root itself, and services that start as root, use su as before",
        &["S29", "U5.2.7"],
        "appliance host rollback su",
        if locks_out {
            Vec::new()
        } else {
            files(
                vec![FileWant {
                    path: "/etc/pam.d/su".into(),
                    content: Content::PamSu,
                    mode: 0o644,
                    owner: Owner::root(),
                    check: None,
                    force: false,
                }],
                Vec::new(),
            )
        },
    )
}

fn root_lock() -> Item {
    item(
        "root-lock",
        Level::Chosen,
        "Root has no password",
        "nobody guesses it; the provider's console then needs another account",
        &["S30", "U5.4.2"],
        "passwd --unlock root, or passwd root",
        vec![Want::Locked {
            user: "root".to_owned(),
        }],
    )
}

/// Seconds that a shell waits: an hour, and what CIS asks for in the profile `strict`.
fn shell_timeout(options: &Options) -> Item {
    let seconds = if options.strict { 900 } else { 3_600 };
    item(
        "shell-timeout",
        Level::Should,
        "A shell that nobody uses ends: after an hour, in the profile strict after a quarter",
        "a forgotten terminal is an open door; a program that runs in it is not cut off, nor is what waits in tmux or screen",
        &["U5.4.3.2", "L SHLL-6220"],
        "rm /etc/profile.d/50-appliance-timeout.sh",
        files(
            vec![FileWant::ours(
                "/etc/profile.d/50-appliance-timeout.sh",
                // Set twice, a variable that is read-only would be an error at every nested log-in.
                format!(
                    "{MANAGED}if [ -z \"$TMOUT$TMUX$STY\" ]; then\n    TMOUT={seconds}\n    readonly TMOUT\n    export TMOUT\nfi\n"
                ),
            )],
            Vec::new(),
        ),
    )
}

fn password_quality() -> Item {
    item(
        "password-quality",
        Level::Should,
        "A password that somebody sets is a good one",
        "only for accounts that have one; nobody is locked out by failed attempts, since that could be done to others on purpose",
        &["O05", "U5.3.3.2", "L AUTH-9262"],
        "apt-get remove libpam-pwquality; rm /etc/security/pwquality.conf.d/50-appliance.conf",
        vec![
            Want::Packages {
                names: vec!["libpam-pwquality".to_owned()],
            },
            Want::Files {
                files: vec![FileWant::ours(
                    "/etc/security/pwquality.conf.d/50-appliance.conf",
                    format!("{MANAGED}minlen = 14\nmaxrepeat = 3\ndictcheck = 1\n"),
                )],
                after: Vec::new(),
            },
        ],
    )
}
