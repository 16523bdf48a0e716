//! Flags every command takes, with Kamal's spelling (Kamal 2.12, `cli/base.rs`).

use std::path::PathBuf;
use std::time::Duration;

use crate::developer::turn::PAUSE;

/// Kamal's global flags. `-h` names hosts, as in Kamal; help is `--help` or `appliance help`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Globals {
    /// Say more
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    pub verbose: bool,
    /// Say errors only
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Act on this version of the app
    #[arg(long = "version", value_name = "VERSION", global = true)]
    pub version: Option<String>,
    /// Only the primary host
    #[arg(short, long, global = true)]
    pub primary: bool,
    /// Only these hosts (comma separated, * globs)
    #[arg(short = 'h', long, value_delimiter = ',', global = true)]
    pub hosts: Vec<String>,
    /// Only these roles (comma separated, * globs)
    #[arg(short, long, value_delimiter = ',', global = true)]
    pub roles: Vec<String>,
    /// The configuration file
    #[arg(short, long, default_value = "config/deploy.yml", global = true)]
    pub config_file: PathBuf,
    /// The destination: config/deploy.DEST.yml is merged over the configuration
    #[arg(short, long, global = true)]
    pub destination: Option<String>,
    /// Do not run hooks
    #[arg(short = 'H', long, global = true)]
    pub skip_hooks: bool,
    /// Wait for somebody else's change to end, at most so many seconds (900 where no number is given)
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "900", global = true)]
    pub lock_wait: Option<u32>,
    /// With --lock-wait: the same, as Kamal spells it
    #[arg(long, value_name = "SECONDS", global = true, hide = true)]
    pub lock_wait_timeout: Option<u32>,
    /// With --lock-wait: seconds between two looks
    #[arg(long, value_name = "SECONDS", global = true, hide = true)]
    pub lock_wait_interval: Option<u32>,
    /// The command that was given, such as `app exec`, for hooks.
    #[arg(skip)]
    pub command: String,
}

impl Globals {
    /// The directory configuration paths are relative to: where the command was started.
    ///
    /// # Errors
    /// When the current directory was removed.
    pub fn directory(&self) -> anyhow::Result<PathBuf> {
        use anyhow::Context as _;
        std::env::current_dir().context("cannot tell the current directory; was it removed?")
    }

    /// Puts brace sets together again, which the comma has cut: `web{1,2}` is one pattern.
    pub fn join_braces(&mut self) {
        for list in [&mut self.hosts, &mut self.roles] {
            let mut joined: Vec<String> = Vec::new();
            for part in list.drain(..) {
                match joined.last_mut() {
                    Some(open) if open.matches('{').count() > open.matches('}').count() => {
                        open.push(',');
                        open.push_str(&part);
                    }
                    _ => joined.push(part),
                }
            }
            *list = joined;
        }
    }

    /// How long to wait for somebody else's change; none if a command should be refused at once.
    pub fn lock_patience(&self) -> Option<Duration> {
        let asked = self.lock_wait?;
        let seconds = self.lock_wait_timeout.unwrap_or(asked);
        Some(Duration::from_secs(seconds.into()))
    }

    /// Time between two looks whether it has ended.
    pub fn lock_pause(&self) -> Duration {
        self.lock_wait_interval
            .map_or(PAUSE, |seconds| Duration::from_secs(seconds.max(1).into()))
    }

    /// What [`crate::ui::set_verbosity`] takes.
    pub fn verbosity(&self) -> u8 {
        match (self.quiet, self.verbose) {
            (true, _) => 0,
            (_, true) => 2,
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Globals;
    use std::time::Duration;

    #[test]
    fn waiting_is_asked_for_in_our_words_or_kamals() {
        let globals = |lock_wait, lock_wait_timeout| Globals {
            lock_wait,
            lock_wait_timeout,
            ..Globals::default()
        };
        for (lock_wait, timeout, expect) in [
            (None, None, None),
            // An interval or a time alone asks for nothing, as in Kamal.
            (None, Some(5), None),
            (Some(60), None, Some(60)),
            (Some(900), Some(5), Some(5)),
        ] {
            let found = globals(lock_wait, timeout).lock_patience();
            assert_eq!(
                found,
                expect.map(Duration::from_secs),
                "{lock_wait:?} {timeout:?}"
            );
        }
    }

    #[test]
    fn a_brace_set_is_one_pattern() {
        let parts = |line: &str| line.split(',').map(str::to_owned).collect();
        let mut globals = Globals {
            hosts: parts("web{1,2},db,{a,b}*"),
            ..Globals::default()
        };
        globals.join_braces();
        assert_eq!(globals.hosts, ["web{1,2}", "db", "{a,b}*"]);
    }
}
