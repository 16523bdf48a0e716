//! `--canary`: which visitors get a new release first, and whether all hosts have the same one.

use appliance_config::Extension;
use appliance_config::units::{Seconds, Share};
use appliance_push::change::{Canary, CanaryHeader, ReleaseNumber};

use crate::failure::{Failure, Kind, failure};
use crate::wire;

/// Which visitors get the new release first
#[derive(Debug, Clone, Default, clap::Args)]
pub struct CanaryArgs {
    /// Give the new release to some visitors first: 10%, cookie=VALUE or header=NAME:VALUE; may be repeated
    #[arg(long, value_name = "WHO")]
    canary: Vec<String>,
    /// Promote a canary by itself if it was good for this long, such as 10m
    #[arg(long, value_name = "TIME", requires = "canary")]
    canary_for: Option<String>,
    /// Give the new release to everybody at once, whatever the configuration says
    #[arg(long, conflicts_with = "canary")]
    no_canary: bool,
}

impl CanaryArgs {
    /// What the command line says, else what the configuration says for an app that serves already.
    ///
    /// # Errors
    /// When a share, a cookie or a header cannot be read.
    pub fn resolve(&self, extension: &Extension, serves: bool) -> anyhow::Result<Option<Canary>> {
        if self.no_canary {
            return Ok(None);
        }
        let mut canary = Canary {
            percent: 0.0,
            cookies: Vec::new(),
            header: None,
            hold: None,
        };
        if self.canary.is_empty() {
            let Some(wanted) = extension.canary.as_ref().filter(|_| serves) else {
                return Ok(None);
            };
            canary.percent = wanted.share.0 * 100.0;
            canary.hold = wanted.duration.as_ref().map(whole).transpose()?;
            return Ok(Some(canary));
        }
        for who in &self.canary {
            match who.split_once('=') {
                Some(("cookie", value)) if !value.is_empty() => canary.cookies.push(value.to_owned()),
                Some(("header", header)) => {
                    let (name, value) = header.split_once(':').ok_or_else(|| wrong(who))?;
                    canary.header = Some(CanaryHeader {
                        name: name.trim().to_owned(),
                        value: value.trim().to_owned(),
                    });
                }
                Some(_) => return Err(wrong(who)),
                None => {
                    let share: Share =
                        read(who).map_err(|why| failure(Kind::Config, format!("--canary: {why}")))?;
                    canary.percent = share.0 * 100.0;
                }
            }
        }
        if let Some(time) = &self.canary_for {
            let time: Seconds =
                read(time).map_err(|why| failure(Kind::Config, format!("--canary-for: {why}")))?;
            canary.hold = Some(whole(&time)?);
        }
        Ok(Some(canary))
    }
}

fn read<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).map_err(|error| error.to_string())
}

fn whole(seconds: &Seconds) -> anyhow::Result<u32> {
    Ok(u32::try_from(seconds.0)?)
}

fn wrong(who: &str) -> anyhow::Error {
    failure(
        Kind::Config,
        format!("--canary {who}: write a share such as 10%, cookie=VALUE or header=NAME:VALUE"),
    )
    .into()
}

/// Where an app stands on one host, as far as a canary is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing<'a> {
    /// A version serves a part of the visitors until somebody decides.
    Canary(&'a str),
    /// A version is being rolled out.
    Moving(&'a str),
    /// A version is being taken back.
    GoingBack,
    /// A version serves, or nothing does.
    Still(Option<&'a str>),
}

impl<'a> Standing<'a> {
    /// Where it stands.
    pub fn of(app: &'a wire::App) -> Self {
        match &app.rollout {
            Some(rollout) if rollout.phase == "canary" => Self::Canary(&rollout.version),
            Some(rollout) if rollout.phase == "reverting" => Self::GoingBack,
            Some(rollout) if rollout.phase != "reverted" => Self::Moving(&rollout.version),
            _ => Self::Still(app.current.as_ref().map(|current| current.version.as_str())),
        }
    }

    /// Whether there is something that could be taken back.
    pub fn is_in_progress(&self) -> bool {
        matches!(self, Self::Canary(_) | Self::Moving(_))
    }

    /// Whether somebody has to decide.
    pub fn is_canary(&self) -> bool {
        matches!(self, Self::Canary(_))
    }
}

/// The release that an app's last rollout is about, and the one that serves where none is on record.
pub fn newest(app: &wire::App) -> Option<ReleaseNumber> {
    let rollout = app.rollout.as_ref().map(|rollout| rollout.number);
    rollout.or(app.current.as_ref().map(|current| current.number))
}

/// Whether this release is there, for a part of the visitors or for all.
///
/// By its number: the same version again, with other secrets, is another release.
pub fn brings(app: &wire::App, number: Option<ReleaseNumber>) -> bool {
    let serves = number.is_some() && app.current.as_ref().map(|current| current.number) == number;
    serves
        || app.rollout.as_ref().is_some_and(|rollout| {
            Some(rollout.number) == number && !matches!(rollout.phase.as_str(), "reverting" | "reverted")
        })
}

impl std::fmt::Display for Standing<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Canary(version) => write!(f, "{version} is a canary"),
            Self::Moving(version) => write!(f, "{version} is being rolled out"),
            Self::GoingBack => f.write_str("a release is going back"),
            Self::Still(Some(version)) => write!(f, "has no canary, {version} serves"),
            Self::Still(None) => f.write_str("has no canary, nothing serves"),
        }
    }
}

/// Checks that every host has a canary, and the same: promoting it on a part of them would split the app.
///
/// # Errors
/// When a host has none or another, with where each stands.
pub fn agreed<'a>(hosts: impl Iterator<Item = (&'a str, &'a wire::App)>) -> Result<(), Failure> {
    let standings: Vec<_> = hosts.map(|(name, app)| (name, Standing::of(app))).collect();
    let first = standings.first().map(|(_, standing)| standing);
    if first.is_some_and(Standing::is_canary) && standings.iter().all(|(_, standing)| Some(standing) == first)
    {
        return Ok(());
    }
    let told: Vec<String> = standings
        .iter()
        .map(|(name, standing)| format!("{name}: {standing}"))
        .collect();
    let told = told.join("\n");
    Err(if standings.iter().any(|(_, standing)| standing.is_canary()) {
        failure(
            Kind::Refused,
            format!("the hosts do not all have the same canary, so nothing was promoted\n{told}"),
        )
        .hint("appliance abort, and push again; or decide for one host: appliance promote -h HOST")
    } else {
        failure(Kind::Refused, told).hint("appliance push --canary 10%")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(current: &str, rollout: Option<(&str, &str)>) -> wire::App {
        wire::App {
            app: "shop".to_owned(),
            current: Some(wire::Release {
                number: ReleaseNumber(1),
                version: current.to_owned(),
                digest: String::new(),
                created_by: String::new(),
                signer: String::new(),
                at: jiff::Timestamp::UNIX_EPOCH,
            }),
            rollout: rollout.map(|(phase, version)| wire::Rollout {
                number: ReleaseNumber(2),
                phase: phase.to_owned(),
                version: version.to_owned(),
                why: None,
            }),
            ..wire::App::default()
        }
    }

    #[test]
    fn a_canary_is_promoted_on_all_hosts_or_on_none() {
        let canary = app("a", Some(("canary", "b")));
        let reverted = app("a", Some(("reverted", "b")));
        let another = app("a", Some(("canary", "c")));
        let check = |second: &wire::App| {
            agreed([("one", &canary), ("two", second)].into_iter()).map_err(|failed| failed.message)
        };
        assert_eq!(check(&canary.clone()), Ok(()));
        for (second, said) in [
            (&reverted, "two: has no canary, a serves"),
            (&another, "two: c is a canary"),
        ] {
            let refused = check(second).expect_err(said);
            assert!(
                refused.starts_with("the hosts do not all have the same canary"),
                "{refused}"
            );
            assert!(
                refused.contains("one: b is a canary") && refused.contains(said),
                "{refused}"
            );
        }
        let none = agreed([("one", &reverted)].into_iter()).expect_err("none");
        assert_eq!(none.message, "one: has no canary, a serves");
    }

    #[test]
    fn what_can_be_taken_back_is_known() {
        for (rollout, expect) in [
            (None, false),
            (Some(("reverted", "b")), false),
            (Some(("reverting", "b")), false),
            (Some(("canary", "b")), true),
            (Some(("starting", "b")), true),
        ] {
            let app = app("a", rollout);
            assert_eq!(Standing::of(&app).is_in_progress(), expect, "{rollout:?}");
            let of_the_rollout = rollout.map(|_| ReleaseNumber(2));
            assert_eq!(brings(&app, of_the_rollout), expect, "{rollout:?}");
        }
    }

    #[test]
    fn the_same_version_again_is_another_release() {
        let went_back = app("b", Some(("reverted", "b")));
        assert_eq!(newest(&went_back), Some(ReleaseNumber(2)));
        assert!(!brings(&went_back, newest(&went_back)), "the former one serves");
        let promoted = app("b", None);
        assert!(brings(&promoted, Some(ReleaseNumber(1))));
        assert!(!brings(&promoted, Some(ReleaseNumber(2))));
    }

    fn resolve(canary: &[&str], serves: bool) -> Result<Option<Canary>, String> {
        let args = CanaryArgs {
            canary: canary.iter().map(|who| (*who).to_owned()).collect(),
            canary_for: (!canary.is_empty()).then(|| "5m".to_owned()),
            no_canary: false,
        };
        let extension = Extension {
            canary: Some(appliance_config::extension::Canary::default()),
            ..Extension::default()
        };
        args.resolve(&extension, serves)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn shares_cookies_and_headers_are_read() {
        let canary = resolve(&["25%", "cookie=tester", "header=X-Canary: yes"], true)
            .expect("right")
            .expect("a canary");
        assert_eq!((canary.percent, canary.hold), (25.0, Some(300)));
        assert_eq!(canary.cookies, ["tester"]);
        assert_eq!(canary.header.map(|header| header.value), Some("yes".to_owned()));
        for wrong in ["lots", "250%", "cookie=", "header=X", "ip=1"] {
            let said = resolve(&[wrong], true).expect_err(wrong);
            assert!(said.starts_with("--canary"), "{wrong}: {said}");
        }
    }

    #[test]
    fn the_configuration_asks_for_one_only_where_something_serves() {
        assert_eq!(
            resolve(&[], true).expect("right").map(|canary| canary.percent),
            Some(10.0)
        );
        assert_eq!(resolve(&[], false), Ok(None));
    }
}
