//! What the machine offers, and the container settings that let systemd boot on it.
//!
//! Three shapes are known to work:
//!
//! | machine | shape |
//! |---|---|
//! | cgroup v2, privileged containers allowed | privileged, private cgroup namespace (what kind does) |
//! | cgroup v2, no `CAP_SYS_RESOURCE` to give | all other capabilities; the init wrapper remounts `/sys/fs/cgroup` writable |
//! | cgroup v1 | all capabilities but `SYS_RESOURCE`; the machine's cgroup tree, shared |

use std::collections::HashMap;

use bollard::models::{HostConfig, HostConfigCgroupnsModeEnum, SystemInfo, SystemInfoCgroupVersionEnum};

use crate::image::Distro;

/// Which cgroup hierarchy the machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupVersion {
    /// Legacy or hybrid.
    V1,
    /// Unified.
    V2,
}

/// What decides how a host is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The cgroup hierarchy.
    pub cgroup: CgroupVersion,
    /// Whether Docker may start privileged containers; it may not where it lacks a capability itself.
    pub privileged: bool,
    /// Whether Docker confines containers by AppArmor, which would forbid the mounts that systemd makes.
    pub apparmor: bool,
}

impl Machine {
    /// Reads the machine from what Docker says about itself.
    ///
    /// Docker does not say whether it may start privileged containers: that is assumed, and corrected at the first refusal.
    pub(crate) fn from_info(info: &SystemInfo) -> Self {
        let cgroup = match info.cgroup_version {
            Some(SystemInfoCgroupVersionEnum::_2) => CgroupVersion::V2,
            _ => CgroupVersion::V1,
        };
        let options = info.security_options.as_deref().unwrap_or_default();
        Self {
            cgroup,
            privileged: cgroup == CgroupVersion::V2,
            apparmor: options.iter().any(|option| option.contains("apparmor")),
        }
    }

    /// The command of PID 1.
    pub(crate) fn init(self, distro: Distro) -> Vec<String> {
        let words: &[&str] = match (self.cgroup, self.privileged) {
            (CgroupVersion::V2, true) => &["/sbin/init"],
            (CgroupVersion::V2, false) => &[
                "/bin/sh",
                "-c",
                "mount -o remount,rw /sys/fs/cgroup && exec /sbin/init",
            ],
            // systemd 256 and later refuses cgroup v1 unless told twice; PID 1 of a container reads its
            // arguments as the kernel command line.
            (CgroupVersion::V1, _) if distro.systemd_version() >= 256 => &[
                "/sbin/init",
                "SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1",
                "systemd.unified_cgroup_hierarchy=0",
            ],
            (CgroupVersion::V1, _) => &["/sbin/init"],
        };
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    /// The command of PID 1 for a shell, to stand after other commands.
    #[must_use]
    pub fn init_line(self, distro: Distro) -> String {
        let words: Vec<String> = self
            .init(distro)
            .iter()
            .map(|word| {
                let plain = word
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "/._=".contains(c));
                if plain { word.clone() } else { format!("'{word}'") }
            })
            .collect();
        format!("exec {}", words.join(" "))
    }

    /// The same settings as `docker create` takes them, quoted for a shell: for whoever starts a host without us.
    #[must_use]
    pub fn arguments(self) -> Vec<String> {
        let config = self.host_config();
        let mut arguments = vec!["--stop-signal=SIGRTMIN+3".to_owned()];
        let mut add = |option: &str, values: Option<Vec<String>>| {
            for value in values.into_iter().flatten() {
                arguments.push(format!("'--{option}={value}'"));
            }
        };
        add("cap-add", config.cap_add);
        add("cap-drop", config.cap_drop);
        add("device-cgroup-rule", config.device_cgroup_rules);
        add("security-opt", config.security_opt);
        add("volume", config.binds);
        add(
            "tmpfs",
            config.tmpfs.map(|all| {
                let mut all: Vec<String> = all
                    .into_iter()
                    .map(|(path, options)| format!("{path}:{options}"))
                    .collect();
                all.sort();
                all
            }),
        );
        if config.masked_paths.is_some() {
            add("security-opt", Some(vec!["systempaths=unconfined".to_owned()]));
        }
        if config.privileged == Some(true) {
            arguments.push("--privileged".to_owned());
        }
        arguments.push(match config.cgroupns_mode {
            Some(HostConfigCgroupnsModeEnum::HOST) => "--cgroupns=host".to_owned(),
            _ => "--cgroupns=private".to_owned(),
        });
        arguments
    }

    /// The part of the container's settings that systemd, nftables and a nested engine ask for.
    pub(crate) fn host_config(self) -> HostConfig {
        let mut config = HostConfig {
            tmpfs: Some(HashMap::from([
                // Debian mounts /run without `exec`, and programs are not run from there.
                ("/run".to_owned(), "rw,nosuid,nodev,mode=755".to_owned()),
                (
                    "/run/lock".to_owned(),
                    "rw,nosuid,nodev,noexec,mode=1777".to_owned(),
                ),
                ("/tmp".to_owned(), "rw,nosuid,nodev,exec,mode=1777".to_owned()),
            ])),
            ..HostConfig::default()
        };
        if self.privileged {
            config.privileged = Some(true);
            config.cgroupns_mode = Some(HostConfigCgroupnsModeEnum::PRIVATE);
            return config;
        }
        config.cap_add = Some(vec!["ALL".to_owned()]);
        config.cap_drop = Some(vec!["SYS_RESOURCE".to_owned()]);
        config.device_cgroup_rules = Some(vec!["a *:* rwm".to_owned()]);
        // Empty lists, not absent ones: this is what the client's `systempaths=unconfined` sends.
        config.masked_paths = Some(Vec::new());
        config.readonly_paths = Some(Vec::new());
        let mut security = vec!["seccomp=unconfined".to_owned()];
        if self.apparmor {
            security.push("apparmor=unconfined".to_owned());
        }
        config.security_opt = Some(security);
        match self.cgroup {
            CgroupVersion::V1 => {
                config.cgroupns_mode = Some(HostConfigCgroupnsModeEnum::HOST);
                config.binds = Some(vec!["/sys/fs/cgroup:/sys/fs/cgroup:rw".to_owned()]);
            }
            CgroupVersion::V2 => config.cgroupns_mode = Some(HostConfigCgroupnsModeEnum::PRIVATE),
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: Machine = Machine {
        cgroup: CgroupVersion::V1,
        privileged: false,
        apparmor: false,
    };

    #[test]
    fn cgroup_v1_shares_the_tree_and_gives_no_sys_resource() {
        let config = V1.host_config();
        assert_eq!(config.cap_drop.as_deref(), Some(&["SYS_RESOURCE".to_owned()][..]));
        assert_eq!(config.cgroupns_mode, Some(HostConfigCgroupnsModeEnum::HOST));
        assert_eq!(config.privileged, None);
        assert_eq!(V1.init(Distro::Debian12), ["/sbin/init"]);
        assert_eq!(V1.init_line(Distro::Debian12), "exec /sbin/init");
        let arguments = V1.arguments().join(" ");
        for argument in [
            "'--cap-drop=SYS_RESOURCE'",
            "'--device-cgroup-rule=a *:* rwm'",
            "'--security-opt=systempaths=unconfined'",
            "--cgroupns=host",
        ] {
            assert!(arguments.contains(argument), "{argument} in {arguments}");
        }
        assert_eq!(
            V1.init(Distro::Debian13).len(),
            3,
            "systemd 257 must be told to take cgroup v1"
        );
    }

    #[test]
    fn cgroup_v2_is_private_with_and_without_privilege() {
        let mut machine = Machine {
            cgroup: CgroupVersion::V2,
            privileged: true,
            apparmor: true,
        };
        assert_eq!(machine.host_config().privileged, Some(true));
        assert_eq!(machine.init(Distro::Debian13), ["/sbin/init"]);
        machine.privileged = false;
        let config = machine.host_config();
        assert_eq!(config.cgroupns_mode, Some(HostConfigCgroupnsModeEnum::PRIVATE));
        assert_eq!(config.binds, None, "the machine's tree stays out of sight");
        assert!(
            config
                .security_opt
                .expect("set")
                .contains(&"apparmor=unconfined".to_owned())
        );
        assert!(machine.init(Distro::Debian12)[2].contains("remount,rw"));
    }
}
