//! Observing.

use std::collections::BTreeMap;
use std::path::Path;

use super::file::{Content, FileWant};
use super::{FileSeen, Seen, Want, WantError};
use crate::firewall;
use crate::host::{Command, Host, HostError, Kind, must};
use crate::sshd;
use crate::written::Written;

impl Want {
    /// Looks at what is there now, changing nothing.
    ///
    /// # Errors
    /// When the host cannot be asked.
    pub fn observe(&self, host: &dyn Host) -> Result<Seen, WantError> {
        Ok(match self {
            Want::Packages { names } => packages(host, names)?,
            Want::Accounts { groups, users } => {
                let known = Accounts::read(host)?;
                let missing = users
                    .iter()
                    .filter(|user| !known.has_user(user))
                    .map(|user| format!("user {user}"));
                let missing = missing.chain(
                    groups
                        .iter()
                        .filter(|group| !known.has_group(group))
                        .map(|group| format!("group {group}")),
                );
                Seen::Accounts {
                    missing: missing.collect(),
                }
            }
            Want::Login { user, groups, .. } => {
                let known = Accounts::read(host)?;
                let missing_groups = groups
                    .iter()
                    .filter(|group| !known.is_member(user, group))
                    .cloned()
                    .collect();
                Seen::Login {
                    exists: known.has_user(user),
                    missing_groups,
                }
            }
            Want::Directory { path, .. } => Seen::Directory(host.entry(path)?),
            Want::Files { files, .. } => Seen::Files(
                files
                    .iter()
                    .map(|wanted| ours(host, wanted))
                    .collect::<Result<_, _>>()?,
            ),
            Want::Binary { source, target, .. } => Seen::Binary {
                same: host.same(source, target)?,
                entry: host.entry(target)?,
            },
            Want::Unit { name } => {
                let ask = |verb: &str| -> Result<String, HostError> {
                    Ok(host
                        .run(&Command::new(["systemctl", verb, name]))?
                        .stdout
                        .trim()
                        .to_owned())
                };
                Seen::Unit {
                    enabled: ask("is-enabled")?,
                    active: ask("is-active")?,
                }
            }
            Want::Firewall(_) => Seen::Firewall {
                confirmed: file(host, Path::new(firewall::CONFIRMED))?,
                pending: file(host, Path::new(firewall::PENDING))?,
                kernel: firewall::state(host)?,
            },
            Want::Sysctl { path, settings } => {
                let mut effective = BTreeMap::new();
                for (name, _) in settings {
                    // The kernel's own view: a file of somebody else may come later and win.
                    let place = Path::new("/proc/sys").join(name.replace('.', "/"));
                    if let Some(bytes) = host.read(&place)? {
                        let value = String::from_utf8_lossy(&bytes).trim().to_owned();
                        effective.insert((*name).to_owned(), value);
                    }
                }
                Seen::Sysctl {
                    drop_in: file(host, path)?,
                    effective,
                }
            }
            Want::Rights { paths } => {
                let mut seen = Vec::new();
                for (path, widest) in paths {
                    if let Some(entry) = host.entry(Path::new(path))?
                        && entry.kind != Kind::Symlink
                    {
                        seen.push(((*path).to_owned(), entry.mode, *widest));
                    }
                }
                Seen::Rights(seen)
            }
            Want::Owned { paths } => {
                let mut seen = Vec::new();
                for path in paths {
                    if let Some(entry) = host.entry(Path::new(path))?
                        && entry.kind != Kind::Symlink
                        && entry.owner.user != "root"
                    {
                        seen.push(((*path).to_owned(), entry.owner.user));
                    }
                }
                Seen::Owned(seen)
            }
            Want::Gone { packages: names } => match packages(host, names)? {
                Seen::Packages { missing, .. } => Seen::Gone(
                    names
                        .iter()
                        .filter(|name| !missing.contains(name))
                        .cloned()
                        .collect(),
                ),
                other => other,
            },
            Want::Swap { .. } => {
                let is = must(
                    host,
                    &Command::new(["swapon", "--show=NAME,SIZE", "--noheadings"]),
                )?;
                let fstab = host.read(Path::new("/etc/fstab"))?.unwrap_or_default();
                let mounted = String::from_utf8_lossy(&fstab).contains(super::act::SWAP_FILE);
                let is = is.trim().to_owned();
                Seen::Plain {
                    right: !is.is_empty() && (mounted || !is.contains(super::act::SWAP_FILE)),
                    is,
                }
            }
            Want::Timezone(zone) => {
                let is = must(
                    host,
                    &Command::new(["timedatectl", "show", "--property=Timezone", "--value"]),
                )?;
                Seen::Plain {
                    right: is.trim() == zone,
                    is: is.trim().to_owned(),
                }
            }
            Want::Mount { path, flags } => {
                let mounts = host.read(Path::new(MOUNTS))?.unwrap_or_default();
                let is = mount_flags(&String::from_utf8_lossy(&mounts), path);
                Seen::Plain {
                    right: is
                        .as_deref()
                        .is_none_or(|is| flags.iter().all(|flag| is.split(',').any(|found| found == *flag))),
                    is: is.unwrap_or_default(),
                }
            }
            Want::Made { path, .. } => {
                let right = host.entry(Path::new(path))?.is_some();
                Seen::Plain {
                    is: if right { "there" } else { "missing" }.to_owned(),
                    right,
                }
            }
            Want::Locked { user } => {
                let shadow = host.read(Path::new("/etc/shadow"))?.unwrap_or_default();
                let shadow = String::from_utf8_lossy(&shadow);
                let field = shadow
                    .lines()
                    .filter_map(|line| line.split_once(':'))
                    .find(|(name, _)| name == user)
                    .and_then(|(_, rest)| rest.split(':').next())
                    .unwrap_or("*");
                let right = field.starts_with(['!', '*']);
                Seen::Plain {
                    is: if right { "locked" } else { "usable" }.to_owned(),
                    right,
                }
            }
            Want::Sshd { .. } => Seen::Sshd {
                drop_in: file(host, Path::new(sshd::DROP_IN))?,
                effective: sshd::observe(host)?
                    .map(|sshd| sshd.effective)
                    .unwrap_or_default(),
            },
        })
    }
}

/// What is mounted where (proc_pid_mountinfo(5)).
pub(crate) const MOUNTS: &str = "/proc/self/mountinfo";

/// The flags of the mount on top at this path, such as `rw,nosuid`; `None` if nothing is mounted there.
pub(crate) fn mount_flags(mountinfo: &str, path: &str) -> Option<String> {
    mountinfo
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .filter(|fields| fields.get(4) == Some(&path))
        .filter_map(|fields| fields.get(5).map(|flags| (*flags).to_owned()))
        .next_back()
}

/// Whether a line of fstab mounts `path` without `nosuid` or without `nodev` (fstab(5): the fourth field).
pub(crate) fn is_loose(fstab: &str, path: &str) -> bool {
    fstab
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.get(1) == Some(&path))
        .any(|fields| {
            let options: Vec<&str> = fields.get(3).map_or("", |options| options).split(',').collect();
            ["nosuid", "nodev"].iter().any(|flag| !options.contains(flag))
        })
}

/// A wanted file as found, and whether somebody edited it. A path that several programs share is nobody's alone.
fn ours(host: &dyn Host, wanted: &FileWant) -> Result<FileSeen, HostError> {
    let mut seen = file(host, &wanted.path)?;
    if let (Content::Exactly(text), Some(contents), false) = (&wanted.content, &seen.contents, wanted.force)
        && contents != text.as_bytes()
    {
        seen.edited = Written::read(host)?.is_edited(&wanted.path, contents);
    }
    Ok(seen)
}

pub(super) fn file(host: &dyn Host, path: &Path) -> Result<FileSeen, HostError> {
    let entry = host.entry(path)?;
    let contents = match &entry {
        Some(entry) if entry.kind == Kind::File => host.read(path)?,
        _ => None,
    };
    Ok(FileSeen {
        entry,
        contents,
        edited: false,
    })
}

fn packages(host: &dyn Host, names: &[String]) -> Result<Seen, HostError> {
    // dpkg-query exits with 1 when it does not know one of them, and still prints the others.
    let argv = [
        "dpkg-query",
        "--show",
        "--showformat=${Package} ${db:Status-Status}\\n",
    ];
    let known = host
        .run(&Command::new(
            argv.into_iter().map(str::to_owned).chain(names.iter().cloned()),
        ))?
        .stdout;
    let installed = |name: &String| known.lines().any(|line| line == format!("{name} installed"));
    let missing: Vec<String> = names.iter().filter(|name| !installed(name)).cloned().collect();
    let interrupted =
        !missing.is_empty() && !must(host, &Command::new(["dpkg", "--audit"]))?.trim().is_empty();
    Ok(Seen::Packages { missing, interrupted })
}

/// `/etc/passwd` and `/etc/group`: names only.
#[derive(Debug)]
pub(crate) struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    pub(crate) fn read(host: &dyn Host) -> Result<Self, HostError> {
        let text = |path: &str| -> Result<String, HostError> {
            Ok(String::from_utf8_lossy(&host.read(Path::new(path))?.unwrap_or_default()).into_owned())
        };
        Ok(Self {
            passwd: text("/etc/passwd")?,
            group: text("/etc/group")?,
        })
    }

    pub(crate) fn has_user(&self, user: &str) -> bool {
        self.passwd
            .lines()
            .any(|line| line.split(':').next() == Some(user))
    }

    /// The user's home directory.
    pub(crate) fn home(&self, user: &str) -> Option<&str> {
        self.passwd
            .lines()
            .find(|line| line.split(':').next() == Some(user))?
            .split(':')
            .nth(5)
    }

    pub(crate) fn has_group(&self, group: &str) -> bool {
        self.group
            .lines()
            .any(|line| line.split(':').next() == Some(group))
    }

    pub(crate) fn is_member(&self, user: &str, group: &str) -> bool {
        self.group
            .lines()
            .filter(|line| line.split(':').next() == Some(group))
            .filter_map(|line| line.split(':').nth(3))
            .any(|members| members.split(',').any(|member| member == user))
    }
}

#[cfg(test)]
mod tests {
    use super::{is_loose, mount_flags};

    #[test]
    fn a_line_of_fstab_that_leaves_a_flag_out_is_loose() {
        let line =
            |options: &str| format!("# /tmp\nUUID=1 / ext4 defaults 0 1\ntmpfs /tmp tmpfs {options} 0 0\n");
        assert!(is_loose(&line("defaults"), "/tmp") && is_loose(&line("nosuid,size=1g"), "/tmp"));
        assert!(!is_loose(&line("size=1g,nodev,nosuid"), "/tmp") && !is_loose(&line("defaults"), "/var"));
        assert!(!is_loose("# tmpfs /tmp tmpfs defaults 0 0\n", "/tmp"));
    }

    #[test]
    fn the_flags_of_the_mount_on_top_count() {
        let text = "22 1 8:1 / / rw,relatime - ext4 /dev/vda1 rw\n\
                    30 22 8:1 /tmp /tmp rw,relatime - ext4 /dev/vda1 rw\n\
                    31 30 8:1 /tmp /tmp rw,nosuid,nodev - ext4 /dev/vda1 rw\n";
        assert_eq!(mount_flags(text, "/tmp").as_deref(), Some("rw,nosuid,nodev"));
        assert_eq!(mount_flags(text, "/").as_deref(), Some("rw,relatime"));
        assert_eq!(mount_flags(text, "/dev/shm"), None);
    }
}
