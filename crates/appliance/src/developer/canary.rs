//! `--canary`: which visitors get a new release first.

use appliance_config::Extension;
use appliance_config::units::{Seconds, Share};
use appliance_push::change::{Canary, CanaryHeader};

use crate::failure::{Kind, failure};

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

#[cfg(test)]
mod tests {
    use super::*;

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
