//! Versions as RubyGems compares them (`Gem::Version`).

use std::cmp::Ordering;

/// The version of Kamal whose rules are followed.
pub(super) const KAMAL: &str = "2.12.0";

#[derive(Debug, PartialEq, Eq)]
enum Segment {
    Letters(String),
    Number(u64),
}

/// Compares two versions; `None` when the first is not a version at all.
pub(super) fn compare(left: &str, right: &str) -> Option<Ordering> {
    let left = segments(left)?;
    let right = segments(right)?;
    let zero = Segment::Number(0);
    for index in 0..left.len().max(right.len()) {
        let pair = (
            left.get(index).unwrap_or(&zero),
            right.get(index).unwrap_or(&zero),
        );
        let order = match pair {
            (Segment::Number(left), Segment::Number(right)) => left.cmp(right),
            (Segment::Letters(left), Segment::Letters(right)) => left.cmp(right),
            // A pre-release comes before the release.
            (Segment::Letters(_), Segment::Number(_)) => Ordering::Less,
            (Segment::Number(_), Segment::Letters(_)) => Ordering::Greater,
        };
        if order != Ordering::Equal {
            return Some(order);
        }
    }
    Some(Ordering::Equal)
}

fn segments(version: &str) -> Option<Vec<Segment>> {
    let version = version.trim().replace('-', ".pre.");
    if version.is_empty() {
        return Some(vec![Segment::Number(0)]);
    }
    if !version.starts_with(|letter: char| letter.is_ascii_digit()) {
        return None;
    }
    let mut segments = Vec::new();
    for part in version.split('.') {
        if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return None;
        }
        let mut rest = part;
        while let Some(first) = rest.chars().next() {
            let digits = first.is_ascii_digit();
            let end = rest
                .find(|letter: char| letter.is_ascii_digit() != digits)
                .unwrap_or(rest.len());
            let (run, after) = rest.split_at(end);
            segments.push(if digits {
                Segment::Number(run.parse().unwrap_or(u64::MAX))
            } else {
                Segment::Letters(run.to_owned())
            });
            rest = after;
        }
    }
    Some(segments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_in_rubygems() {
        for (left, right, order) in [
            ("2.12.0", "2.12", Some(Ordering::Equal)),
            ("2.9", "2.12.0", Some(Ordering::Less)),
            ("3.0.0.beta1", "3.0.0", Some(Ordering::Less)),
            ("3.0.0-rc.1", "3.0.0", Some(Ordering::Less)),
            ("10000", "2.12.0", Some(Ordering::Greater)),
            ("true", "2.12.0", None),
            ("1..2", "2.12.0", None),
            ("", "2.12.0", Some(Ordering::Less)),
        ] {
            assert_eq!(compare(left, right), order, "{left}");
        }
    }
}
