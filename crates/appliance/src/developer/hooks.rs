//! Hooks: programs of the project that run here, with Kamal's environment (Kamal 2.12, `commands/hook.rb`, `tags.rb`).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;

use super::project::Project;
use crate::failure::{Kind, failure};
use crate::globals::Globals;
use crate::ui;

/// Hooks that get every secret in their environment, as in Kamal.
const WITH_SECRETS: [&str; 3] = ["pre-connect", "pre-deploy", "post-deploy"];

/// The hooks of one command.
pub struct Hooks<'a> {
    project: &'a Project,
    path: PathBuf,
    skip: bool,
    env: BTreeMap<String, String>,
}

impl<'a> Hooks<'a> {
    /// The hooks of the command that was given, on these hosts.
    pub fn new(project: &'a Project, globals: &Globals, hosts: &[String]) -> Self {
        let config = &project.loaded.config;
        let mut env = BTreeMap::from([
            ("KAMAL_PERFORMER".to_owned(), project.performer.clone()),
            ("KAMAL_VERSION".to_owned(), config.version.clone()),
            (
                "KAMAL_SERVICE_VERSION".to_owned(),
                service_version(&config.service, &config.version),
            ),
            ("KAMAL_SERVICE".to_owned(), config.service.clone()),
            ("KAMAL_HOSTS".to_owned(), hosts.join(",")),
            ("KAMAL_LOCK".to_owned(), "false".to_owned()),
        ]);
        let mut words = globals.command.split_whitespace();
        env.insert(
            "KAMAL_COMMAND".to_owned(),
            words.next().unwrap_or_default().to_owned(),
        );
        if let Some(subcommand) = words.next() {
            env.insert("KAMAL_SUBCOMMAND".to_owned(), subcommand.to_owned());
        }
        if let Some(destination) = &project.destination {
            env.insert("KAMAL_DESTINATION".to_owned(), destination.clone());
        }
        if !globals.roles.is_empty() {
            env.insert("KAMAL_ROLES".to_owned(), globals.roles.join(","));
        }
        Self {
            project,
            path: project.directory.join(&config.hooks_path),
            skip: globals.skip_hooks,
            env,
        }
    }

    /// Runs `pre-connect`, before the first host is reached; once a process, as in Kamal.
    ///
    /// # Errors
    /// As [`Hooks::run`].
    pub fn before_connecting(&self) -> anyhow::Result<()> {
        static RAN: AtomicBool = AtomicBool::new(false);
        if RAN.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        self.run("pre-connect")
    }

    /// Says in `KAMAL_LOCK` that the app is held by this command.
    pub fn locked(&mut self) {
        self.env.insert("KAMAL_LOCK".to_owned(), "true".to_owned());
    }

    /// The version that the command turned out to be about.
    pub fn about(&mut self, version: &str) {
        let service = &self.project.loaded.config.service;
        self.env.insert("KAMAL_VERSION".to_owned(), version.to_owned());
        self.env.insert(
            "KAMAL_SERVICE_VERSION".to_owned(),
            service_version(service, version),
        );
    }

    /// Runs a hook if the project has it.
    ///
    /// # Errors
    /// When it cannot be run or ends with another code than 0; what it wrote has been shown.
    pub fn run(&self, hook: &str) -> anyhow::Result<()> {
        self.run_with(hook, &[])
    }

    /// Runs a hook about a part of the hosts, while others are heard and answered: it may take as long as it likes.
    /// Whoever stops waiting for it ends it.
    ///
    /// # Errors
    /// As [`Hooks::run`].
    pub async fn run_for(&self, hook: &str, hosts: &[String]) -> anyhow::Result<()> {
        let Some(call) = self.call(hook, &[("KAMAL_HOSTS", hosts.join(","))])? else {
            return Ok(());
        };
        // Left alone, a hook that was to come before something would go on after it was called off.
        let output = tokio::process::Command::from(call.command)
            .kill_on_drop(true)
            .output()
            .await;
        self.conclude(hook, call.step, output.with_context(|| call.complaint))
    }

    /// Runs `post-deploy`, which learns how long it took; the app is not held any more, as in Kamal.
    ///
    /// # Errors
    /// As [`Hooks::run`].
    pub fn run_after(&self, hook: &str, runtime: Duration) -> anyhow::Result<()> {
        let more = [
            ("KAMAL_RUNTIME", runtime.as_secs().to_string()),
            ("KAMAL_LOCK", "false".to_owned()),
        ];
        self.run_with(hook, &more)
    }

    fn run_with(&self, hook: &str, more: &[(&str, String)]) -> anyhow::Result<()> {
        let Some(mut call) = self.call(hook, more)? else {
            return Ok(());
        };
        let output = call.command.output().with_context(|| call.complaint);
        self.conclude(hook, call.step, output)
    }

    /// A hook about to be run; none if the project has none of that name, or hooks are left out.
    fn call(&self, hook: &str, more: &[(&str, String)]) -> anyhow::Result<Option<Call>> {
        let file = self.path.join(hook);
        if self.skip || !file.is_file() {
            return Ok(None);
        }
        let mut command = Command::new(&file);
        command
            .current_dir(&self.project.directory)
            .stdin(Stdio::null())
            .env("KAMAL_RECORDED_AT", recorded_at(Timestamp::now()))
            .envs(&self.env)
            .envs(more.iter().map(|(name, value)| (name, value)));
        if WITH_SECRETS.contains(&hook) {
            command.envs(self.project.every_secret()?);
        }
        Ok(Some(Call {
            command,
            step: ui::step(&format!("hook {hook}")),
            complaint: format!("cannot run {}; is it executable?", file.display()),
        }))
    }

    fn conclude(&self, hook: &str, step: ui::Step, output: anyhow::Result<Output>) -> anyhow::Result<()> {
        let output = output?;
        let good = output.status.success();
        if !good || self.loud(hook) {
            for line in [output.stdout, output.stderr].iter().flat_map(|bytes| {
                String::from_utf8_lossy(bytes)
                    .lines()
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            }) {
                // What a failing hook said is the reason; `--quiet` does not hide it.
                if good {
                    ui::note(&format!("  {hook} | {line}"));
                } else {
                    ui::complaint(&format!("  {hook} | {line}"));
                }
            }
        }
        if good {
            step.done("");
            return Ok(());
        }
        step.failed();
        Err(
            failure(Kind::Other, format!("Hook `{hook}` failed: {}", output.status))
                .hint("mend the hook, or leave hooks out: --skip-hooks")
                .into(),
        )
    }

    /// `hooks_output`: `quiet`, `verbose`, or a level for each hook.
    fn loud(&self, hook: &str) -> bool {
        let level = match &self.project.loaded.config.hooks_output {
            Some(serde_json::Value::Object(levels)) => levels.get(hook).and_then(|level| level.as_str()),
            Some(serde_json::Value::String(level)) => Some(level.as_str()),
            _ => None,
        };
        level.map(|level| level.trim_start_matches(':')) != Some("quiet")
    }
}

/// A hook about to be run.
struct Call {
    command: Command,
    step: ui::Step,
    /// What is said if it cannot be started.
    complaint: String,
}

/// `service@` and seven characters of the version; all of it if there is an underscore (`_uncommitted_…`).
fn service_version(service: &str, version: &str) -> String {
    let short: String = if version.contains('_') {
        version.to_owned()
    } else {
        version.chars().take(7).collect()
    };
    format!("{service}@{short}")
}

/// UTC in ISO 8601 with whole seconds.
fn recorded_at(now: Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_as_kamal_shows_them() {
        assert_eq!(service_version("app", "0123456789abcdef"), "app@0123456");
        assert_eq!(
            service_version("app", "0123456789_uncommitted_ab"),
            "app@0123456789_uncommitted_ab"
        );
        let at = Timestamp::from_second(1_800_000_000).expect("in range");
        assert_eq!(recorded_at(at), "2027-01-15T08:00:00Z");
    }
}
