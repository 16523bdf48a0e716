//! Release and rollout numbers of one app, and which deployment is current.

use serde::{Deserialize, Serialize};

use crate::plan::{Deployment, ReleaseNumber, RolloutNumber};

/// What is remembered per app beside its releases.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbers {
    /// The last release number given out; 0 if none.
    pub last_release: u64,
    /// The last rollout number given out; 0 if none.
    pub last_rollout: u64,
    /// The deployment that settled last.
    pub current: Option<Deployment>,
    /// The deployment that was current before that one: where a rollback goes by default.
    pub previous: Option<Deployment>,
}

impl Numbers {
    /// A number for a new release. Numbers are never given out twice, also when the release fails.
    pub fn next_release(&mut self) -> ReleaseNumber {
        self.last_release += 1;
        ReleaseNumber(self.last_release)
    }

    /// A number for a new rollout.
    pub fn next_rollout(&mut self) -> RolloutNumber {
        self.last_rollout += 1;
        RolloutNumber(self.last_rollout)
    }

    /// Notes that `deployment` is current now. Noting it again changes nothing.
    pub fn record(&mut self, deployment: Deployment) {
        if self
            .current
            .as_ref()
            .is_some_and(|current| current.rollout == deployment.rollout)
        {
            return;
        }
        let before = self.current.replace(deployment);
        // Rolling out the current release again must not make it its own predecessor.
        let same = |a: &Option<Deployment>, b: &Option<Deployment>| match (a, b) {
            (Some(a), Some(b)) => a.release == b.release,
            _ => false,
        };
        if !same(&before, &self.current) {
            self.previous = before;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(release: u64, rollout: u64) -> Deployment {
        Deployment {
            release: ReleaseNumber(release),
            rollout: RolloutNumber(rollout),
            roles: Vec::new(),
        }
    }

    #[test]
    fn numbers_are_never_given_twice() {
        let mut numbers = Numbers::default();
        assert_eq!(numbers.next_release().to_string(), "v1");
        assert_eq!(numbers.next_release().to_string(), "v2");
        assert_eq!(numbers.next_rollout().to_string(), "#1");
    }

    #[test]
    fn previous_is_another_release_also_after_a_redeploy() {
        let mut numbers = Numbers::default();
        for (release, rollout) in [(1, 1), (2, 2), (2, 2), (2, 3)] {
            numbers.record(deployment(release, rollout));
        }
        assert_eq!(numbers.current, Some(deployment(2, 3)));
        assert_eq!(numbers.previous, Some(deployment(1, 1)));
        numbers.record(deployment(1, 4));
        assert_eq!(numbers.previous, Some(deployment(2, 3)));
    }
}
