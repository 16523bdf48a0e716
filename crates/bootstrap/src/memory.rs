//! A machine in memory: files, packages, units and a kernel firewall that behave as far as bootstrap can tell.
//!
//! It can lose its power before any single effect, which is how tests cut a run off everywhere.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::host::{Command, Entry, Host, HostError, Kind, Output, Owner};
use crate::want::Secrets;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) bytes: Vec<u8>,
    pub(crate) entry: Entry,
}

#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) files: RefCell<BTreeMap<PathBuf, Node>>,
    pub(crate) packages: RefCell<BTreeSet<String>>,
    /// Unit → (enabled, active).
    pub(crate) units: RefCell<BTreeMap<String, (bool, bool)>>,
    /// The script the kernel holds.
    pub(crate) kernel: RefCell<Option<String>>,
    /// Effective sshd settings that no file of ours decides.
    pub(crate) sshd: RefCell<BTreeMap<String, String>>,
    /// Everything that changed something.
    pub(crate) effects: RefCell<Vec<String>>,
    /// Effects left until the power goes; none means it stays.
    pub(crate) power: Cell<Option<usize>>,
    pub(crate) docker_repository: Cell<bool>,
    /// Times apt finds its lock taken.
    pub(crate) locked: Cell<u32>,
    /// The script of the table that stands in for UFW's rules.
    pub(crate) stead: RefCell<Option<String>>,
    /// Whether UFW's rules are in the kernel, for IPv4 and IPv6.
    pub(crate) ufw: Cell<(bool, bool)>,
    /// What `ss` says about connections to sshd.
    pub(crate) sockets: RefCell<String>,
}

pub(crate) struct Fixed;

impl Secrets for Fixed {
    fn host_identity(&self) -> String {
        "AGE-SECRET-KEY-1TEST".to_owned()
    }

    fn nonce(&self) -> String {
        "nonce".to_owned()
    }
}

impl Memory {
    /// A bare server as a provider hands it over.
    pub(crate) fn bare(id: &str, version: &str) -> Self {
        let host = Self::default();
        let release = format!(
            "ID={id}\nVERSION_ID=\"{version}\"\nVERSION_CODENAME=name\nPRETTY_NAME=\"{id} {version}\"\n"
        );
        for (path, text) in [
            ("/etc/os-release", release.as_str()),
            ("/proc/1/comm", "systemd\n"),
            ("/proc/sys/kernel/osrelease", "6.1.0-18-amd64\n"),
            ("/sys/fs/cgroup/cgroup.controllers", "cpu memory\n"),
            ("/proc/meminfo", "MemTotal:        8388608 kB\n"),
            ("/etc/login.defs", "UMASK\t\t022\n"),
            ("/etc/sudoers.d", ""),
            ("/etc/passwd", "root:x:0:0:root:/root:/bin/bash\n"),
            ("/etc/group", "root:x:0:\n"),
            ("/etc/ssh/sshd_config", "Include /etc/ssh/sshd_config.d/*.conf\n"),
        ] {
            host.put(path, text);
        }
        for package in ["iproute2", "ca-certificates"] {
            host.packages.borrow_mut().insert(package.to_owned());
        }
        for (keyword, value) in [
            ("permitrootlogin", "yes"),
            ("passwordauthentication", "yes"),
            ("kbdinteractiveauthentication", "yes"),
            ("permitemptypasswords", "no"),
            ("x11forwarding", "yes"),
        ] {
            host.sshd
                .borrow_mut()
                .insert(keyword.to_owned(), value.to_owned());
        }
        host.units
            .borrow_mut()
            .insert("ssh.service".to_owned(), (true, true));
        host.units
            .borrow_mut()
            .insert("systemd-journald.service".to_owned(), (true, true));
        host.units
            .borrow_mut()
            .insert("systemd-timesyncd.service".to_owned(), (true, true));
        host.put("/root/download", "the program");
        host
    }

    pub(crate) fn put(&self, path: &str, text: &str) {
        let entry = Entry {
            kind: Kind::File,
            mode: 0o644,
            owner: Owner::root(),
        };
        self.files.borrow_mut().insert(
            path.into(),
            Node {
                bytes: text.as_bytes().to_vec(),
                entry,
            },
        );
    }

    pub(crate) fn text(&self, path: &str) -> Option<String> {
        self.files
            .borrow()
            .get(Path::new(path))
            .map(|node| String::from_utf8_lossy(&node.bytes).into_owned())
    }

    fn effect(&self, what: String) -> Result<(), HostError> {
        if let Some(left) = self.power.get() {
            if left == 0 {
                return Err(HostError::NoOwner("power".to_owned()));
            }
            self.power.set(Some(left - 1));
        }
        self.effects.borrow_mut().push(what);
        Ok(())
    }

    fn append(&self, path: &str, line: &str) {
        let text = self.text(path).unwrap_or_default();
        self.put(path, &format!("{text}{line}\n"));
    }

    fn unit(&self, name: &str) -> Option<(bool, bool)> {
        let known = self.units.borrow().get(name).copied();
        let file = self.text(&format!("/etc/systemd/system/{name}")).is_some();
        known.or_else(|| file.then_some((false, false)))
    }

    fn systemctl(&self, argv: &[&str]) -> Result<Output, HostError> {
        let name = argv.last().copied().unwrap_or_default();
        match argv[0] {
            "is-enabled" => Ok(say(match self.unit(name) {
                Some((true, _)) => "enabled",
                Some(_) => "disabled",
                None => "not-found",
            })),
            "is-active" => Ok(say(if matches!(self.unit(name), Some((_, true))) {
                "active"
            } else {
                "inactive"
            })),
            "show" => Ok(say("ActiveState=inactive")),
            "reset-failed" => Ok(say("")),
            "daemon-reload" => self.effect("daemon-reload".to_owned()).map(|()| say("")),
            verb => {
                self.effect(format!("{verb} {name}"))?;
                let Some((enabled, active)) = self.unit(name) else {
                    return Ok(no(5, "Unit not found."));
                };
                let after = match verb {
                    "enable" => (true, active),
                    "start" => (enabled, true),
                    _ => (enabled, active),
                };
                self.units.borrow_mut().insert(name.to_owned(), after);
                Ok(say(""))
            }
        }
    }

    fn effective(&self) -> String {
        let mut settings = self.sshd.borrow().clone();
        for line in self
            .text(crate::sshd::DROP_IN)
            .unwrap_or_default()
            .lines()
            .filter(|line| !line.starts_with('#'))
        {
            if let Some((keyword, value)) = line.split_once(' ') {
                settings.insert(keyword.to_ascii_lowercase(), value.to_owned());
            }
        }
        settings
            .iter()
            .map(|(keyword, value)| format!("{keyword} {value}\n"))
            .collect::<String>()
            + "port 22\n"
    }
}

fn say(text: &str) -> Output {
    Output {
        status: 0,
        stdout: format!("{text}\n"),
        stderr: String::new(),
    }
}

fn no(status: i32, why: &str) -> Output {
    Output {
        status,
        stdout: String::new(),
        stderr: why.to_owned(),
    }
}

impl Host for Memory {
    fn run(&self, command: &Command) -> Result<Output, HostError> {
        let argv: Vec<&str> = command.argv.iter().map(String::as_str).collect();
        let package = |name: &str| self.packages.borrow().contains(name);
        Ok(match argv[0] {
            "id" => say("0"),
            "dpkg" if argv[1] == "--print-architecture" => say("amd64"),
            "dpkg" => say(""),
            "systemd-detect-virt" => no(1, ""),
            "df" => say("1B-blocks Avail\n53687091200 42949672960"),
            "ss" if argv.contains(&"established") => say(&self.sockets.borrow()),
            "ss" | "who" | "visudo" | "sysctl" => say(""),
            "chmod" => {
                self.effect(format!("chmod {}", argv[2]))?;
                let mode = u32::from_str_radix(argv[1], 8).unwrap_or(0);
                if let Some(node) = self.files.borrow_mut().get_mut(Path::new(argv[2])) {
                    node.entry.mode = mode;
                }
                say("")
            }
            "systemd-run" => self.effect("systemd-run".to_owned()).map(|()| say(""))?,
            "sshd" if argv[1] == "-T" => say(&self.effective()),
            "sshd" | "logrotate" => say(""),
            "ip" if argv.contains(&"link") => say(r#"[{"ifname":"eth0"}]"#),
            "ip" if argv.contains(&"-json") => say(r#"[{"dev":"eth0"}]"#),
            "ip" => say("default via 192.0.2.1 dev eth0"),
            "nft" if !package("nftables") => no(127, ""),
            "nft" if argv.last() == Some(&"appliance_stead") => match argv[1] {
                "list" if self.stead.borrow().is_none() => no(1, "No such file or directory"),
                "list" => say(""),
                _ => {
                    *self.stead.borrow_mut() = None;
                    say("")
                }
            },
            "iptables" if self.ufw.get().0 => say("-P INPUT DROP\n-A INPUT -j ufw-before-input"),
            "ip6tables" if self.ufw.get().1 => say("-P INPUT DROP\n-A INPUT -j ufw6-before-input"),
            "iptables" | "ip6tables" => say("-P INPUT ACCEPT"),
            "nft" if argv[1] == "--check" => say(""),
            "nft" if argv[1] == "-j" => match self.kernel.borrow().as_ref() {
                None => no(1, "No such file or directory"),
                Some(script) => say(&serde_json::json!({ "nftables": [{ "rule": script }] }).to_string()),
            },
            "nft" => {
                self.effect("nft".to_owned())?;
                let script = String::from_utf8_lossy(&command.stdin).into_owned();
                if script.contains("table inet appliance_stead") {
                    *self.stead.borrow_mut() = Some(script);
                } else if !script.starts_with("add element") {
                    // Elements of sets are no rules.
                    *self.kernel.borrow_mut() = Some(script);
                }
                say("")
            }
            "dockerd" if !package("docker.io") && !package("docker-ce") => no(127, ""),
            "dockerd" => say("Docker version 20.10.24+dfsg1, build 5d6db84"),
            "/usr/lib/apt/apt-helper" if self.docker_repository.get() => say(""),
            "/usr/lib/apt/apt-helper" => no(100, "E: Failed to fetch"),
            "dpkg-query" => {
                let known = argv[3..].iter().filter(|name| package(name));
                let lines: Vec<String> = known.map(|name| format!("{name} installed")).collect();
                say(&lines.join("\n"))
            }
            "apt-get" if self.locked.get() > 0 => {
                self.locked.set(self.locked.get() - 1);
                no(
                    100,
                    "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7",
                )
            }
            "apt-get" if argv[1] == "update" => say(""),
            "apt-get" => {
                for name in argv.iter().skip(2).filter(|name| !name.starts_with("--")) {
                    self.effect(format!("install {name}"))?;
                    self.packages.borrow_mut().insert((*name).to_owned());
                    if matches!(*name, "docker.io" | "docker-ce") {
                        self.units
                            .borrow_mut()
                            .insert("docker.service".to_owned(), (true, true));
                    }
                }
                say("")
            }
            "systemd-sysusers" => {
                self.effect("sysusers".to_owned())?;
                self.append("/etc/passwd", "appliance-proxy:x:900:900::/:/usr/sbin/nologin");
                self.append("/etc/group", "appliance-proxy:x:900:\nappliance:x:901:");
                say("")
            }
            "systemd-tmpfiles" => say(""),
            "useradd" => {
                self.effect("useradd".to_owned())?;
                self.append("/etc/passwd", "deploy:x:1000:1000::/home/deploy:/bin/bash");
                self.append("/etc/group", "deploy:x:1000:");
                say("")
            }
            "usermod" => {
                self.effect("usermod".to_owned())?;
                let text = self.text("/etc/group").unwrap_or_default();
                self.put(
                    "/etc/group",
                    &text.replace("appliance:x:901:\n", "appliance:x:901:deploy\n"),
                );
                say("")
            }
            "systemctl" => self.systemctl(&argv[1..])?,
            other => no(127, other),
        })
    }

    fn entry(&self, path: &Path) -> Result<Option<Entry>, HostError> {
        Ok(self.files.borrow().get(path).map(|node| node.entry.clone()))
    }

    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, HostError> {
        Ok(self.files.borrow().get(path).map(|node| node.bytes.clone()))
    }

    fn write(&self, path: &Path, contents: &[u8], mode: u32, owner: &Owner) -> Result<(), HostError> {
        self.effect(format!("write {}", path.display()))?;
        let entry = Entry {
            kind: Kind::File,
            mode,
            owner: owner.clone(),
        };
        self.files.borrow_mut().insert(
            path.to_owned(),
            Node {
                bytes: contents.to_vec(),
                entry,
            },
        );
        Ok(())
    }

    fn directory(&self, path: &Path, mode: u32, owner: &Owner) -> Result<(), HostError> {
        self.effect(format!("directory {}", path.display()))?;
        let entry = Entry {
            kind: Kind::Directory,
            mode,
            owner: owner.clone(),
        };
        self.files.borrow_mut().insert(
            path.to_owned(),
            Node {
                bytes: Vec::new(),
                entry,
            },
        );
        Ok(())
    }

    fn same(&self, a: &Path, b: &Path) -> Result<bool, HostError> {
        let files = self.files.borrow();
        Ok(matches!((files.get(a), files.get(b)), (Some(a), Some(b)) if a.bytes == b.bytes))
    }

    fn copy(&self, from: &Path, to: &Path, mode: u32) -> Result<(), HostError> {
        let bytes = self.read(from)?.unwrap_or_default();
        self.write(to, &bytes, mode, &Owner::root())
    }

    fn remove(&self, path: &Path) -> Result<(), HostError> {
        self.files.borrow_mut().remove(path);
        Ok(())
    }

    fn now(&self) -> u64 {
        1_800_000_000
    }

    fn pause(&self, _time: Duration) {}
}
