//! Versions of this program, in order.

use std::fmt;
use std::str::FromStr;

/// `MAJOR.MINOR.PATCH`, as releases are numbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u64, u64, u64);

impl FromStr for Version {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || anyhow::anyhow!("{text:?} is not a version of this program");
        let mut parts = text.trim().trim_start_matches('v').splitn(3, '.').map(|part| {
            // `parse` would take a plus sign.
            let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| part.parse().ok()).flatten()
        });
        let mut next = || parts.next().flatten().ok_or_else(bad);
        Ok(Self(next()?, next()?, next()?))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_by_number_and_others_are_refused() {
        let version = |text: &str| text.parse::<Version>().expect("a version");
        assert!(version("0.10.0") > version("0.9.9"));
        assert!(version("v1.0.0\n") > version("0.99.99"));
        for text in [
            "",
            "1",
            "1.2",
            "1.2.x",
            "1.2.3-rc1",
            "+1.2.3",
            "1.2.3.4",
            "latest",
        ] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
    }
}
