//! What is said of several hosts at the end: which release each serves, as far as that is known.

use crate::failure::{Failure, Kind, failure};
use crate::wire::End;

/// The refusal of an app that somebody else changes.
pub const BUSY: &str = "busy";

/// How one host's part ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It said so itself.
    Ended(End),
    /// The connection broke; asked again it said that the new release serves.
    FoundNew,
    /// The connection broke, for this reason; asked again it said that the former release serves.
    FoundOld(String),
    /// The connection broke, for this reason, and the host did not answer any more.
    Lost(String),
    /// It was not begun, because another host did not take part.
    Untouched,
    /// Its canary was taken away again; what the host said to that.
    TakenBack(String),
    /// The connection broke, for this reason, before anything was promoted anywhere.
    Canary(String),
}

/// How an attempt at a rollout ended.
pub enum Turned {
    /// As asked for.
    Through,
    /// Somebody else changes the app, nothing was begun anywhere; later it may go well.
    Away(anyhow::Error),
}

/// One host at the end.
pub struct Part<'a> {
    /// How the configuration names it.
    pub name: &'a str,
    /// How it ended.
    pub outcome: Outcome,
    /// For a host that was lost: whether it had told that it switched.
    pub switched: bool,
}

/// Whether nothing but somebody else's change stood in the way, and no host was touched.
pub fn is_turned_away(parts: &[Part<'_>]) -> bool {
    let busy =
        |part: &&Part<'_>| matches!(&part.outcome, Outcome::Ended(End::Refused { code, .. }) if code == BUSY);
    let untouched = |part: &&Part<'_>| part.outcome == Outcome::Untouched;
    parts.iter().filter(busy).count() == 1 && parts.iter().filter(untouched).count() + 1 == parts.len()
}

/// A line for each host where all is well.
///
/// # Errors
/// When the group went back, for the reason `why`, or a host could not be heard to its end; tells of each host what it
/// serves.
pub fn verdict(parts: &[Part<'_>], why: Option<&str>) -> Result<Vec<String>, Failure> {
    let mut kinds = Vec::new();
    let mut lines = Vec::new();
    let mut next = None;
    // Whether some host serves the new release, or may.
    let mut differs = false;
    for part in parts {
        let name = part.name;
        let line = match &part.outcome {
            Outcome::Ended(End::Done { message, .. }) => {
                differs = true;
                format!("{name}: {message}")
            }
            Outcome::Ended(End::Token { .. } | End::Session { .. }) => continue,
            Outcome::FoundNew => {
                differs = true;
                format!("{name}: the new release serves; the connection broke before the end")
            }
            Outcome::FoundOld(why) => {
                kinds.push(Kind::Reverted);
                format!("{name}: the former release serves ({why})")
            }
            Outcome::Ended(End::Refused {
                code,
                message,
                next: hint,
            }) => {
                kinds.push(Kind::Refused);
                next.get_or_insert_with(|| hint.clone());
                format!("{name} refused ({code}): {message}")
            }
            Outcome::Ended(End::Reverted { serving, why }) => {
                kinds.push(Kind::Reverted);
                let serving = serving.map_or_else(
                    || "nothing serves, as before".to_owned(),
                    |number| format!("{number} serves as before"),
                );
                format!("{name}: {serving} ({why})")
            }
            Outcome::Ended(End::Failed { message, .. }) => {
                kinds.push(Kind::Other);
                differs = true;
                format!("{name}: {message}")
            }
            Outcome::Lost(why) => {
                kinds.push(Kind::Unreachable);
                differs = true;
                let then = if part.switched {
                    "it had switched, so it goes on with the new release by itself"
                } else {
                    "it had not switched when it was heard last, so it goes back by itself"
                };
                format!("{name}: {why}; {then}")
            }
            Outcome::Untouched => format!("{name}: was not begun"),
            Outcome::TakenBack(message) => format!("{name}: {message}"),
            Outcome::Canary(why) => {
                kinds.push(Kind::Unreachable);
                format!("{name}: {why}; its canary stays as it is")
            }
        };
        lines.push(line);
    }
    let told = lines.join("\n");
    let Some(why) = why else {
        if kinds.is_empty() {
            return Ok(lines);
        }
        return Err(failure(
            Kind::Unreachable,
            format!(
                "not every host could be heard to the end; the others go on with the new release\n{told}"
            ),
        )
        .hint("appliance status"));
    };
    // A refusal or a lost host is the cause; that the others went back is its consequence.
    let first = |kind: Kind| kinds.contains(&kind).then_some(kind);
    let kind = first(Kind::Refused)
        .or(first(Kind::Unreachable))
        .or(first(Kind::Reverted))
        .unwrap_or(Kind::Other);
    if differs {
        return Err(failure(
            kind,
            format!("the hosts may serve different releases: {why}\n{told}"),
        )
        .hint("appliance status, and then: appliance push, or appliance rollback"));
    }
    Err(
        failure(kind, format!("no host changed its release: {why}\n{told}"))
            .hint(next.unwrap_or_else(|| "fix what the lines above show, then: appliance push".to_owned())),
    )
}

#[cfg(test)]
mod tests {
    use appliance_push::change::ReleaseNumber;

    use super::*;

    fn part(name: &str, outcome: Outcome, switched: bool) -> Part<'_> {
        Part {
            name,
            outcome,
            switched,
        }
    }

    fn done() -> Outcome {
        Outcome::Ended(End::Done {
            release: Some(ReleaseNumber(2)),
            message: "shop v2 serves".to_owned(),
        })
    }

    fn back() -> Outcome {
        Outcome::Ended(End::Reverted {
            serving: Some(ReleaseNumber(1)),
            why: "interrupted".to_owned(),
        })
    }

    fn refused(code: &str) -> Outcome {
        Outcome::Ended(End::Refused {
            code: code.to_owned(),
            message: "shop is being changed by ann".to_owned(),
            next: "appliance status".to_owned(),
        })
    }

    fn lost() -> Outcome {
        Outcome::Lost("no route".to_owned())
    }

    #[test]
    fn nothing_is_claimed_of_hosts_that_nobody_heard() {
        let said =
            |parts: &[Part<'_>], why| verdict(parts, why).map_err(|failed| (failed.kind, failed.message));

        let both = said(
            &[part("a", done(), true), part("b", Outcome::FoundNew, true)],
            None,
        );
        assert_eq!(both.expect("well").len(), 2);

        let (kind, text) = said(&[part("a", done(), true), part("b", lost(), true)], None).expect_err("lost");
        assert_eq!(kind, Kind::Unreachable);
        assert!(
            text.contains("a: shop v2 serves") && text.contains("b: no route; it had switched"),
            "{text}"
        );

        let (kind, text) = said(
            &[part("a", back(), false), part("b", lost(), false)],
            Some("b: no route"),
        )
        .expect_err("back");
        assert_eq!(kind, Kind::Unreachable);
        assert!(
            text.starts_with("the hosts may serve different releases: b: no route\na: v1 serves as before"),
            "{text}"
        );

        let (kind, text) = said(
            &[part("a", back(), false), part("b", back(), false)],
            Some("not today"),
        )
        .expect_err("back");
        assert_eq!(kind, Kind::Reverted);
        assert!(
            text.starts_with("no host changed its release: not today"),
            "{text}"
        );

        // One that settled by itself while the others went back.
        let (_, text) = said(
            &[part("a", done(), false), part("b", back(), false)],
            Some("not today"),
        )
        .expect_err("back");
        assert!(
            text.starts_with("the hosts may serve different releases"),
            "{text}"
        );
    }

    #[test]
    fn only_a_host_that_is_busy_with_all_others_untouched_is_worth_another_try() {
        let parts = |outcomes: Vec<Outcome>| -> Vec<Part<'static>> {
            let parts = outcomes.into_iter();
            parts.map(|outcome| part("host", outcome, false)).collect()
        };
        assert!(is_turned_away(&parts(vec![refused(BUSY), Outcome::Untouched])));
        assert!(!is_turned_away(&parts(vec![
            refused("locked"),
            Outcome::Untouched
        ])));
        assert!(!is_turned_away(&parts(vec![back(), refused(BUSY)])));
        assert!(!is_turned_away(&parts(vec![lost(), Outcome::Untouched])));
    }
}
