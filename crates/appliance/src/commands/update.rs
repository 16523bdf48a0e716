//! `appliance update`: a newer version of this program.

use std::path::PathBuf;
use std::time::Duration;

use crate::failure::{Kind, failure};
use crate::update::{self, Source};
use crate::{host_file, release_key, ui};

/// Bring a newer version of this program, without dropping a request
///
/// On a server, as root: agent and proxy follow, and the former version comes back by itself if they are not healthy.
/// Elsewhere: only this program is replaced.
#[derive(Debug, clap::Args)]
pub struct UpdateArgs {
    /// A file, with its signature beside it as FILE.sig; or where releases are published: https://… (default: `updates: from:` of host.yml)
    #[arg(value_name = "FILE|URL", conflicts_with = "rollback")]
    from: Option<String>,
    /// Only say whether something newer was published
    #[arg(long)]
    check: bool,
    /// With --check: as JSON
    #[arg(long, requires = "check")]
    json: bool,
    /// Give a download up when nothing comes for this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    patience: u64,
    /// Back to the version before the last update
    #[arg(long, conflicts_with = "check")]
    rollback: bool,
    /// Public key that releases have to be signed by (default: the host's, else the one compiled into a release)
    #[arg(long, value_name = "FILE")]
    release_key: Option<PathBuf>,
    /// Back unless the last update settled (what the guard runs)
    #[arg(long, hide = true)]
    revert: bool,
}

/// Carries it out on this machine.
///
/// # Errors
/// When the program is refused (exit code 3), or was not healthy and the former one is back (exit code 5).
pub async fn run(args: &UpdateArgs) -> anyhow::Result<()> {
    if args.revert {
        return update::revert("nobody found it healthy in time").await;
    }
    if args.rollback {
        return update::roll_back().await;
    }
    let Some(key) = release_key::find(args.release_key.as_deref())? else {
        return Err(failure(
            Kind::Config,
            "this build knows no key that releases are signed by, so nothing can be proved",
        )
        .hint("appliance update FILE|URL --release-key FILE.pub")
        .into());
    };
    let patience = Duration::from_secs(args.patience);
    if let Some(file) = args.from.as_deref().filter(|from| !update::is_address(from)) {
        if args.check {
            return Err(nowhere("a file is not where releases are published").into());
        }
        return update::install(&Source::named(file, patience).await?, &key).await;
    }
    let place = place(args)?;
    let Some(published) = update::published(&place, &key, patience).await? else {
        if args.check {
            return Err(nowhere(&format!("{place} is a program, not where releases are published")).into());
        }
        return update::install(&Source::named(&place, patience).await?, &key).await;
    };
    if args.check {
        return said(&published, args.json);
    }
    // Nothing is fetched that would not be taken.
    if update::is_newer(published.version()?)? {
        update::install(&published.fetch(patience).await?, &key).await?;
    }
    Ok(())
}

fn nowhere(why: &str) -> crate::failure::Failure {
    failure(Kind::Config, why).hint("appliance update --check https://…, where release.json lies")
}

/// Where releases are published, as was said here, on this host, or when this was built.
fn place(args: &UpdateArgs) -> anyhow::Result<String> {
    if let Some(from) = &args.from {
        return Ok(from.clone());
    }
    let settings = PathBuf::from(appliance_config::host::PATH);
    let own = match settings.exists() {
        true => host_file::read(&settings)?.1.updates.from,
        false => None,
    };
    let place = own.or_else(|| release_key::RELEASES.map(str::to_owned));
    Ok(place.ok_or_else(|| {
        failure(Kind::Config, "nobody said where newer versions are published")
            .hint("appliance update https://…, where release.json lies; or a file with its .sig beside it")
            .hint("for every time: `updates: {from: 'https://…'}` in /etc/appliance/host.yml")
    })?)
}

/// Whether there is something newer, and how the last update went.
fn said(published: &update::Published, json: bool) -> anyhow::Result<()> {
    let (own, latest) = (update::own_version()?, published.version()?);
    let record = update::record()?;
    if json {
        ui::json(&serde_json::json!({
            "installed": own.to_string(), "published": latest.to_string(), "newer": latest > own,
            "from": published.url, "last": record,
        }));
        return Ok(());
    }
    ui::line(&match latest.cmp(&own) {
        std::cmp::Ordering::Greater => {
            format!(
                "{latest} is there, this is {own}; next: appliance update {}",
                published.url
            )
        }
        std::cmp::Ordering::Equal => format!("{own} is the latest"),
        std::cmp::Ordering::Less => {
            format!("{latest} was published last, and this is {own}, which is newer")
        }
    });
    if let Some(record) = record {
        let back = record.why.map(|why| format!(", taken back: {why}"));
        ui::note(&format!(
            "the last update: {} → {} at {}{}",
            record.from,
            record.to,
            record.at,
            back.unwrap_or_default()
        ));
    }
    Ok(())
}
