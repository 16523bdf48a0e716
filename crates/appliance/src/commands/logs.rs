//! `appliance app logs`.

use std::io::{BufRead as _, Write as _};
use std::process::Stdio;

use anyhow::Context as _;
use appliance_push::session::Frame;
use jiff::{SignedDuration, Timestamp};

use crate::developer::session::{self, Lines};
use crate::developer::targets::{AppArgs, Target, Targets};
use crate::failure::{Kind, failure};
use crate::globals::Globals;
use crate::ui;

/// Lines that are shown if nothing else is asked for (Kamal).
const LINES: u32 = 100;
/// The same with `--follow`.
const FOLLOW_LINES: u32 = 10;

/// Show what the app wrote
#[derive(Debug, clap::Args)]
pub struct LogsArgs {
    #[command(flatten)]
    args: AppArgs,
    #[command(flatten)]
    which: Which,
    /// This container instead of the current one
    #[arg(long, value_name = "ID")]
    container_id: Option<String>,
}

/// Which lines
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Which {
    /// From then on: 10m, 1h30m, 2026-01-02T03:04:05Z, or Unix seconds
    #[arg(short, long, value_name = "TIME")]
    pub since: Option<String>,
    /// The last so many lines (default: 100)
    #[arg(short = 'n', long)]
    pub lines: Option<u32>,
    /// Only lines that this pattern matches, by grep
    #[arg(short, long, value_name = "PATTERN")]
    pub grep: Option<String>,
    /// Options for grep, such as "-C 5 -i"
    #[arg(long, value_name = "OPTIONS", allow_hyphen_values = true, requires = "grep")]
    pub grep_options: Option<String>,
    /// Go on with what is written from now on
    #[arg(short, long)]
    pub follow: bool,
    /// Without the time of each line
    #[arg(short = 'T', long)]
    pub skip_timestamps: bool,
}

impl Which {
    /// The query of a log's address.
    ///
    /// # Errors
    /// When `--since` is no time.
    pub fn query(&self, now: Timestamp) -> anyhow::Result<String> {
        let mut parts = Vec::new();
        if let Some(since) = &self.since {
            parts.push(format!("since={}", moment(since, now)?));
        }
        let default = if self.follow { FOLLOW_LINES } else { LINES };
        if let Some(lines) = self
            .lines
            .or_else(|| (self.since.is_none() && self.grep.is_none()).then_some(default))
        {
            parts.push(format!("lines={lines}"));
        }
        if self.follow {
            parts.push("follow=1".to_owned());
        }
        if !self.skip_timestamps {
            parts.push("timestamps=1".to_owned());
        }
        Ok(parts.join("&"))
    }

    fn filter(&self) -> anyhow::Result<Option<Vec<String>>> {
        let Some(pattern) = &self.grep else {
            return Ok(None);
        };
        let mut arguments = vec!["--line-buffered".to_owned()];
        if let Some(options) = &self.grep_options {
            arguments.extend(shlex::split(options).ok_or_else(|| {
                failure(
                    Kind::Config,
                    format!("--grep-options: the quotes in {options:?} do not match"),
                )
            })?);
        }
        arguments.extend(["-e".to_owned(), pattern.clone()]);
        Ok(Some(arguments))
    }
}

/// Unix seconds of what Docker's `--since` takes.
fn moment(text: &str, now: Timestamp) -> anyhow::Result<i64> {
    let plain = text.parse::<i64>().ok();
    let stamp = || text.parse::<Timestamp>().ok().map(Timestamp::as_second);
    let civil = || {
        let civil: jiff::civil::DateTime = text.parse().ok()?;
        Some(
            civil
                .to_zoned(jiff::tz::TimeZone::UTC)
                .ok()?
                .timestamp()
                .as_second(),
        )
    };
    let ago = || {
        let span: SignedDuration = text.parse().ok()?;
        now.checked_sub(span).ok().map(Timestamp::as_second)
    };
    plain
        .or_else(stamp)
        .or_else(civil)
        .or_else(ago)
        .filter(|second| *second >= 0)
        .ok_or_else(|| {
            failure(
                Kind::Config,
                format!("--since {text}: write 10m, 1h30m, 2026-01-02T03:04:05Z, or Unix seconds"),
            )
            .into()
        })
}

/// Shows the logs of each role on each host.
///
/// # Errors
/// When a host cannot be reached, or there is no such container.
pub async fn run(args: &LogsArgs, globals: &Globals) -> anyhow::Result<()> {
    let targets = Targets::find(&args.args, globals).await?;
    let query = args.which.query(Timestamp::now())?;
    let mut sources = Vec::new();
    for host in &targets.hosts {
        if let Some(id) = &args.container_id {
            let path = format!("/v1/apps/{}/logs?container={id}&{query}", targets.app);
            sources.push((host, host.name.clone(), path));
            continue;
        }
        for role in &host.roles {
            let name = if host.roles.len() == 1 {
                host.name.clone()
            } else {
                format!("{} {role}", host.name)
            };
            let path = format!("/v1/apps/{}/logs?role={role}&{query}", targets.app);
            sources.push((host, name, path));
        }
    }
    if sources.is_empty() {
        return Err(failure(
            Kind::Config,
            format!("{} does not run on these hosts", targets.app),
        )
        .into());
    }
    show(&args.which, "App", sources).await
}

/// Shows several logs: one after the other under headings as Kamal does, or interleaved with prefixes while following.
///
/// # Errors
/// When one cannot be read.
pub async fn show(
    which: &Which,
    heading: &str,
    sources: Vec<(&Target, String, String)>,
) -> anyhow::Result<()> {
    let filter = which.filter()?;
    let several = sources.len() > 1;
    if which.follow && several {
        let all = sources
            .iter()
            .map(|(host, name, path)| one(host, path, format!("{name} | "), filter.clone()));
        futures_util::future::try_join_all(all).await?;
        return Ok(());
    }
    for (host, name, path) in &sources {
        if several {
            ui::line(&format!("{heading} Host: {name}"));
        }
        one(host, path, String::new(), filter.clone()).await?;
        if several {
            ui::line("");
        }
    }
    Ok(())
}

async fn one(host: &Target, path: &str, prefix: String, filter: Option<Vec<String>>) -> anyhow::Result<()> {
    let body = host.link.open_stream(path).await?;
    let Some(arguments) = filter else {
        let mut lines = Lines::default();
        session::read(&host.link, body, |frame| {
            if let Frame::Output(bytes) | Frame::Error(bytes) = frame {
                if prefix.is_empty() {
                    ui::raw(&bytes);
                } else {
                    ui::raw(&lines.take(&prefix, &bytes));
                }
            }
            Ok(())
        })
        .await?;
        ui::raw(&lines.finish(&prefix));
        return Ok(());
    };
    let mut grep = std::process::Command::new("grep")
        .args(&arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run grep on this machine")?;
    let mut to_grep = grep.stdin.take().context("grep has an input")?;
    let from_grep = grep.stdout.take().context("grep has an output")?;
    // A thread of its own, so that writing to grep may wait until grep has been read.
    let printing = std::thread::spawn(move || {
        for line in std::io::BufReader::new(from_grep).split(b'\n') {
            let Ok(mut line) = line else { return };
            line.push(b'\n');
            ui::raw(&[prefix.as_bytes(), &line].concat());
        }
    });
    let read = session::read(&host.link, body, |frame| {
        if let Frame::Output(bytes) | Frame::Error(bytes) = frame {
            to_grep.write_all(&bytes).context("grep stopped reading")?;
        }
        Ok(())
    })
    .await;
    drop(to_grep);
    let _printed = printing.join();
    let status = grep.wait().context("cannot wait for grep")?;
    match status.code() {
        // 1: no line matched, which is an answer too.
        Some(0 | 1) => read.map(drop),
        _ => Err(failure(Kind::Config, format!("grep {} failed", arguments.join(" "))).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_takes_what_docker_takes() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        for (text, second) in [
            ("10m", Some(1_767_225_000)),
            ("1h30m", Some(1_767_220_200)),
            ("1700000000", Some(1_700_000_000)),
            ("2023-11-14T22:13:20Z", Some(1_700_000_000)),
            ("2023-11-14T22:13:20", Some(1_700_000_000)),
            ("yesterday", None),
            ("-5", None),
        ] {
            assert_eq!(moment(text, now).ok(), second, "{text}");
        }
    }

    #[test]
    fn a_hundred_lines_unless_asked_otherwise() {
        let now = Timestamp::UNIX_EPOCH;
        let query = |which: Which| which.query(now).expect("a query");
        assert_eq!(query(Which::default()), "lines=100&timestamps=1");
        let follow = Which {
            follow: true,
            skip_timestamps: true,
            ..Which::default()
        };
        assert_eq!(query(follow), "lines=10&follow=1");
        let grep = Which {
            grep: Some("x".into()),
            ..Which::default()
        };
        assert_eq!(query(grep), "timestamps=1");
        let since = Which {
            since: Some("5".into()),
            lines: Some(3),
            ..Which::default()
        };
        assert_eq!(query(since), "since=5&lines=3&timestamps=1");
    }
}
