//! An app's directory: configuration and secrets, checked before anything is sent.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use appliance_config::runner::ProcessRunner;
use appliance_config::secrets::{Options, SecretError, Secrets};
use appliance_config::{LoadOptions, Loaded, load};

use super::git;
use super::hooks::Hooks;
use super::reach::SshSettings;
use crate::failure::{Failure, Kind, failure};
use crate::globals::Globals;
use crate::ui;

/// Kamal's default log-in name; whether somebody chose it cannot be told from the resolved configuration.
const KAMAL_USER: &str = "root";

/// Kamal's default port; as with the user, `~/.ssh/config` decides unless somebody chose another.
const SSH_PORT: u16 = 22;
/// Stands for the version where none is needed.
const NO_VERSION: &str = "unversioned";

/// A checked configuration with what surrounds it.
pub struct Project {
    /// Where it is.
    pub directory: PathBuf,
    /// The configuration.
    pub loaded: Loaded,
    /// The destination.
    pub destination: Option<String>,
    /// Who deploys, for people.
    pub performer: String,
    /// Whether `--version` says which version is meant.
    pub version_was_given: bool,
    env: BTreeMap<String, String>,
}

impl Project {
    /// Loads and checks the configuration for a new release; prints warnings.
    ///
    /// # Errors
    /// Every problem at once, each with file, line and column; no version is one.
    pub fn load(globals: &Globals) -> anyhow::Result<Self> {
        let project = Self::read(globals, globals.version.clone())?;
        for warning in &project.loaded.warnings {
            ui::warn(&warning.to_string());
        }
        for section in project.not_acted_on() {
            ui::warn(&format!(
                "x-appliance/{section} is checked, but this version does not act on it yet"
            ));
        }
        Ok(project)
    }

    /// Loads and checks the configuration for a command that brings no version.
    ///
    /// # Errors
    /// Every problem at once, each with file, line and column.
    pub fn open(globals: &Globals) -> anyhow::Result<Self> {
        let version = globals.version.clone().unwrap_or_else(|| NO_VERSION.to_owned());
        Self::read(globals, Some(version))
    }

    fn read(globals: &Globals, version: Option<String>) -> anyhow::Result<Self> {
        let directory = globals.directory()?;
        let env: BTreeMap<String, String> = std::env::vars().collect();
        let mut options = LoadOptions::new(&directory, env.clone(), jiff::Zoned::now());
        options.config_file.clone_from(&globals.config_file);
        options.destination.clone_from(&globals.destination);
        options.version = version;
        let runner = ProcessRunner { forward_stderr: true };
        let loaded = load(&options, &runner).map_err(|problems| {
            let mut failure = failure(Kind::Config, problems.to_string());
            if !directory.join(&globals.config_file).exists() {
                failure = failure.hint("appliance init");
            }
            failure
        })?;
        Ok(Self {
            performer: git::performer(&directory),
            version_was_given: globals.version.is_some(),
            directory,
            loaded,
            destination: globals.destination.clone(),
            env,
        })
    }

    /// Sections of `x-appliance` that are right but have no effect in this version; silence would be a promise.
    fn not_acted_on(&self) -> Vec<&'static str> {
        let extension = &self.loaded.extension;
        let mut sections = Vec::new();
        if !extension.cron.is_empty() {
            sections.push("cron");
        }
        sections
    }

    /// Looks these secrets up; every missing one is reported.
    ///
    /// # Errors
    /// When a file is malformed, a command in it fails, or a name is missing.
    pub fn secrets(&self, names: &BTreeSet<String>) -> anyhow::Result<BTreeMap<String, String>> {
        if names.is_empty() {
            return Ok(BTreeMap::new());
        }
        let secrets = self.load_secrets()?;
        let mut found = BTreeMap::new();
        let mut missing = Vec::new();
        for name in names {
            match secrets.get(name) {
                Ok(value) => {
                    found.insert(name.clone(), value.to_owned());
                }
                Err(error) => missing.push(error.to_string()),
            }
        }
        if missing.is_empty() {
            return Ok(found);
        }
        Err(failure(Kind::Config, missing.join("\n"))
            .hint(format!(
                "add the missing names to {}",
                self.loaded.config.secrets_path
            ))
            .into())
    }

    /// Every secret of the files, for hooks that Kamal hands them to.
    ///
    /// # Errors
    /// When a file is malformed or a command in it fails.
    pub fn every_secret(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let secrets = self.load_secrets()?;
        let values = secrets.values().iter();
        Ok(values
            .map(|(name, value)| (name.clone(), value.expose().to_owned()))
            .collect())
    }

    fn load_secrets(&self) -> anyhow::Result<Secrets> {
        let runner = ProcessRunner { forward_stderr: true };
        let options = Options {
            directory: &self.directory,
            secrets_path: &self.loaded.config.secrets_path,
            destination: self.destination.as_deref(),
            // What `Dotenv.load` in the configuration brought counts here too.
            env: &self.loaded.env,
            shell: self.env.get("APPLIANCE_SECRETS_SHELL").map(String::as_str),
            runner: &runner,
        };
        Ok(Secrets::load(&options).map_err(|error| secret_failure(&error))?)
    }

    /// `ssh:` as far as it concerns us.
    pub fn ssh(&self) -> SshSettings {
        let ssh = &self.loaded.config.ssh;
        let user = ssh.user.to_string();
        SshSettings {
            user: (user != KAMAL_USER).then_some(user),
            port: ssh.port.to_string().parse().ok().filter(|port| *port != SSH_PORT),
            keys: ssh.keys.iter().flatten().map(|key| self.expand(key)).collect(),
            keys_only: ssh.keys_only.unwrap_or(false),
            proxy: ssh.proxy_jump.clone(),
        }
    }

    fn expand(&self, path: &str) -> PathBuf {
        match (path.strip_prefix("~/"), self.env.get("HOME")) {
            (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
            _ => self.directory.join(path),
        }
    }

    /// As [`Project::hosts`], for a command that is about to reach them: the hook `pre-connect` runs first.
    ///
    /// # Errors
    /// As [`Project::hosts`]; when the hook fails.
    pub fn connecting(&self, globals: &Globals) -> anyhow::Result<Vec<String>> {
        let hosts = self.hosts(globals)?;
        Hooks::new(self, globals, &hosts).before_connecting()?;
        Ok(hosts)
    }

    /// The hosts that run roles, those of the primary role first, narrowed by `-h`, `-r` and `-p`.
    ///
    /// # Errors
    /// When a filter matches nothing (Kamal's messages).
    pub fn hosts(&self, globals: &Globals) -> anyhow::Result<Vec<String>> {
        let config = &self.loaded.config;
        let mut roles: Vec<_> = config.roles.iter().collect();
        roles.sort_by_key(|role| !role.primary);
        let mut hosts: Vec<String> = Vec::new();
        for role in roles {
            if !globals.roles.is_empty() && !globals.roles.iter().any(|pattern| glob(pattern, &role.name)) {
                continue;
            }
            for host in &role.hosts {
                if !hosts.contains(host) {
                    hosts.push(host.clone());
                }
            }
        }
        if hosts.is_empty() && !globals.roles.is_empty() {
            return Err(failure(
                Kind::Config,
                format!("No --roles match for {}", globals.roles.join(",")),
            )
            .into());
        }
        if globals.primary {
            hosts.truncate(1);
        }
        if !globals.hosts.is_empty() {
            hosts.retain(|host| globals.hosts.iter().any(|pattern| glob(pattern, host)));
            if hosts.is_empty() {
                return Err(failure(
                    Kind::Config,
                    format!("No --hosts match for {}", globals.hosts.join(",")),
                )
                .into());
            }
        }
        if hosts.is_empty() {
            return Err(failure(Kind::Config, "the configuration names no server").into());
        }
        Ok(hosts)
    }

    /// `service` or `service@destination`.
    pub fn app_id(&self) -> String {
        match &self.destination {
            Some(destination) => format!("{}@{destination}", self.loaded.config.service),
            None => self.loaded.config.service.clone(),
        }
    }
}

fn secret_failure(error: &SecretError) -> Failure {
    let mut message = error.to_string();
    if let SecretError::Command { stderr, .. } = error
        && !stderr.trim().is_empty()
    {
        message = format!("{message}\n{}", stderr.trim());
    }
    failure(Kind::Config, message)
}

/// `*` stands for any run of characters and `{a,b}` for one of several, as in Kamal's `-h` and `-r`.
pub fn glob(pattern: &str, text: &str) -> bool {
    if let Some((head, rest)) = pattern.split_once('{')
        && let Some((choices, tail)) = rest.split_once('}')
    {
        return choices
            .split(',')
            .any(|choice| glob(&format!("{head}{choice}{tail}"), text));
    }
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, rest)) => text.strip_prefix(head).is_some_and(|text| {
            (0..=text.len())
                .filter(|at| text.is_char_boundary(*at))
                .any(|at| glob(rest, &text[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::glob;

    #[test]
    fn host_patterns_match_like_kamals() {
        for (pattern, text, expect) in [
            ("web1", "web1", true),
            ("web*", "web1.example.com", true),
            ("*.example.com", "web1.example.com", true),
            ("web*.org", "web1.example.com", false),
            ("*", "", true),
            ("web{1,2}", "web2", true),
            ("{web,job}*.example.com", "job1.example.com", true),
            ("web{1,2}", "web3", false),
            ("web{1", "web1", false),
        ] {
            assert_eq!(glob(pattern, text), expect, "{pattern} {text}");
        }
    }
}
