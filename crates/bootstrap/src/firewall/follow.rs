//! In UFW's mode: what its user tells UFW holds for containers too, as soon as UFW has written it down.
//!
//! UFW replaces one file after the other, and systemd does not say what changed while its answer still ran:
//! so whoever follows looks until nothing changes any more, and the agent looks now and then besides.

use std::path::Path;
use std::time::Duration;

use super::rules::{Mode, Rules};
use super::{FirewallError, pending, ufw};
use crate::host::Host;

/// UFW writes its two files within this time.
const QUIET: Duration = Duration::from_secs(1);
/// Looks after which somebody else may go on: the agent does.
const MOST_LOOKS: u32 = 30;

/// What came of a look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Followed {
    /// Whether the rules are others now, and loaded.
    pub changed: bool,
    /// Rules of UFW's that cannot be followed.
    pub warnings: Vec<String>,
}

/// Takes over what UFW says now. UFW has applied its own change already, so that ours needs no further proof.
///
/// Nothing happens in another mode, or while other rules wait for their confirmation.
///
/// # Errors
/// When there are no confirmed rules, or the new ones cannot be loaded; the confirmed ones then stay.
pub fn once(host: &dyn Host) -> Result<Followed, FirewallError> {
    let text = super::confirmed(host)?.ok_or(FirewallError::Unconfirmed)?;
    let Some(mut rules) = Rules::from_file(&text) else {
        return Ok(Followed::default());
    };
    if rules.mode != Mode::Ufw || pending::armed(host, host.now())?.is_some() {
        return Ok(Followed::default());
    }
    let mut found = ufw::Ufw::default();
    for path in ufw::RULES {
        let bytes = host.read(Path::new(path)).map_err(FirewallError::Load)?;
        let parsed = ufw::parse(&String::from_utf8_lossy(&bytes.unwrap_or_default()));
        found.lines.extend(parsed.lines);
        found.warnings.extend(parsed.warnings);
    }
    let changed = found.lines != rules.ufw;
    if changed {
        rules.ufw = found.lines;
        super::write_confirmed(host, &rules.render())?;
        super::load(host, host.now())?;
    }
    Ok(Followed {
        changed,
        warnings: found.warnings,
    })
}

/// Takes over what UFW says, until it says nothing new for a moment.
///
/// # Errors
/// As [`once`].
pub fn until_quiet(host: &dyn Host) -> Result<Followed, FirewallError> {
    let mut all = once(host)?;
    for _ in 0..MOST_LOOKS {
        host.pause(QUIET);
        let more = once(host)?;
        all.changed |= more.changed;
        all.warnings = more.warnings;
        if !more.changed {
            break;
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::CONFIRMED;
    use crate::memory::Memory;

    const V4: &str = "### tuple ### allow tcp 8080 0.0.0.0/0 any 0.0.0.0/0 in\n";

    fn with_mode(mode: Mode) -> Memory {
        let host = Memory::bare("debian", "12");
        host.packages.borrow_mut().insert("nftables".to_owned());
        let rules = Rules {
            mode,
            ..Rules::default()
        };
        host.put(CONFIRMED, &rules.render());
        host.put(ufw::RULES[0], V4);
        host
    }

    #[test]
    fn what_ufw_says_is_taken_over_once_and_taken_back() {
        let host = with_mode(Mode::Ufw);
        assert!(until_quiet(&host).expect("follows").changed);
        let rules = || Rules::from_file(&host.text(CONFIRMED).expect("is there")).expect("is ours");
        assert_eq!(rules().ufw.len(), 1);
        assert!(!once(&host).expect("follows").changed);
        host.put(ufw::RULES[0], "");
        assert!(once(&host).expect("follows").changed);
        assert!(rules().ufw.is_empty());
    }

    #[test]
    fn our_own_rules_and_those_that_wait_are_left_alone() {
        assert!(!once(&with_mode(Mode::Own)).expect("looks").changed);
        let host = with_mode(Mode::Ufw);
        let rules = Rules::from_file(&host.text(CONFIRMED).expect("is there")).expect("is ours");
        pending::arm(&host, &rules, "n", "", host.now()).expect("arms");
        assert!(!once(&host).expect("looks").changed);
    }
}
