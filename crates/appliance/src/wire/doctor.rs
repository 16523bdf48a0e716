//! A host's own examination, as `GET /v1/doctor` answers it.

use serde::{Deserialize, Serialize};

use super::finding::Id;

/// Everything that was looked at on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Examination {
    /// What was looked at, in the order of a person looking.
    pub areas: Vec<Area>,
    /// Addresses of the host's own interfaces, without those of containers.
    pub addresses: Vec<std::net::IpAddr>,
    /// Addresses of those of them that lead to networks from which the firewall lets everything in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trusted: Vec<std::net::IpAddr>,
    /// Host names that its proxy answers to.
    pub names: Vec<String>,
    /// Names that are meant to lead elsewhere first: to a CDN, to a load balancer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub elsewhere: Vec<String>,
    /// What the kernel and the firewall say of every port.
    pub ports: Option<appliance_bootstrap::firewall::exposure::Report>,
}

/// One thing that was looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Area {
    /// Its name: `docker`, `certificates`.
    pub name: String,
    /// What is wrong with it.
    pub findings: Vec<Complaint>,
    /// Why it could not be looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
}

/// Something wrong, and the command that mends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Complaint {
    /// A word of [`Id`]; a text, since the host may be newer than who asks.
    #[serde(default)]
    pub id: String,
    /// One sentence.
    pub message: String,
    /// What to run: a line for a shell as it stands; what only people can judge is a comment in it.
    pub next: String,
    /// Who runs it, or where, if not whoever asked: `on the host`, `an administrator`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub who: Option<String>,
}

impl Complaint {
    /// Of that kind.
    pub fn new(id: Id, message: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            id: id.word().to_owned(),
            message: message.into(),
            next: next.into(),
            who: None,
        }
    }

    /// The same, for somebody else to mend.
    #[must_use]
    pub fn by(self, who: &str) -> Self {
        Self {
            who: Some(who.to_owned()),
            ..self
        }
    }

    /// A sentence of the status, which ends in `; next: COMMAND`; of kind `otherwise`, unless its words say more.
    pub fn of_problem(otherwise: Id, problem: &str) -> Self {
        let over = "; next, over a new connection: ";
        let (message, next, who) = match (problem.split_once("; next: "), problem.split_once(over)) {
            (Some((message, next)), _) => (message, next, None),
            (None, Some((message, next))) => (message, next, Some("over a new connection")),
            (None, None) => (
                problem,
                "journalctl -u appliance-agent -u appliance-proxy --lines 50 --no-pager",
                Some("on the host"),
            ),
        };
        // A reason that names a command of its own comes first.
        let next = next.replace("; next: ", "; ");
        Self {
            who: who.map(str::to_owned),
            ..Self::new(Id::of_sentence(message, otherwise), message, next)
        }
    }
}

impl Area {
    /// One that was looked at.
    pub fn of(name: &str, findings: Vec<Complaint>) -> Self {
        Self {
            name: name.to_owned(),
            findings,
            skipped: None,
        }
    }

    /// One that could not be.
    pub fn skipped(name: &str, why: &str) -> Self {
        Self {
            name: name.to_owned(),
            findings: Vec::new(),
            skipped: Some(why.to_owned()),
        }
    }
}
