//! Every finding that `doctor` can have, by a word that scripts may rely on.

macro_rules! findings {
    ($($name:ident $word:literal $what:literal;)*) => {
        /// What can be wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Id {
            $(#[doc = $what] $name,)*
        }

        impl Id {
            /// All of them, in the order of a person looking.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its stable word.
            pub fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            /// What it means.
            pub fn what(self) -> &'static str {
                match self { $(Self::$name => $what,)* }
            }
        }
    };
}

findings! {
    Unreachable "unreachable" "the host cannot be reached";
    NotExamined "not-examined" "the host did not let itself be examined";
    NotSeen "not-seen" "something could not be looked at, and should be";
    AgentAway "agent-away" "the agent does not run";
    Versions "versions" "this program and the host's agent are of different versions";
    NoKey "no-key" "there is no SSH key to sign with";
    UnknownKey "unknown-key" "our key signs nothing that the host obeys";
    OnlyLooks "only-looks" "our key may look, and change nothing";
    Skew "clock-skew" "the host's clock and ours differ";
    Clock "clock" "nobody keeps the host's clock right";
    DnsNone "dns-none" "a name that is served has no address";
    DnsElsewhere "dns-elsewhere" "a name that is served leads elsewhere";
    DnsPartly "dns-partly" "a name that is served leads here, and elsewhere too";
    PortOpen "port-open" "a port answers that is meant to be closed";
    PortShut "port-shut" "visitors' ports do not answer";
    DockerAway "docker-away" "Docker does not answer";
    DockerSettings "docker-settings" "Docker's settings lose containers or fill the disk";
    ProxyAway "proxy-away" "the proxy does not answer";
    Proxy "proxy" "the proxy complains of something";
    FirewallPending "firewall-pending" "a change of the firewall waits for its confirmation";
    FirewallLost "firewall-lost" "the kernel does not hold the confirmed rules";
    FirewallUfw "firewall-ufw" "UFW is to keep this host's ports, and is off";
    Firewall "firewall" "the firewall's own files cannot be used";
    CertificateEnds "certificate-ends" "a certificate is about to end";
    Certificates "certificates" "certificates cannot be had or kept";
    DiskLow "disk-low" "the disk is short";
    DiskTrend "disk-trend" "the disk will be full soon";
    LogsUnbounded "logs-unbounded" "a container's log grows without bound";
    Memory "memory" "memory is short, or something was killed for it";
    NoSwap "swap-none" "little memory and no swap";
    SwapFull "swap-full" "the swap is nearly full";
    RestartLoop "restart-loop" "a container restarts again and again";
    Errors "errors" "too many 5xx responses";
    BackupNone "backup-none" "there is no backup yet";
    BackupUndrilled "backup-undrilled" "no backup was ever restored";
    BackupFailed "backup-failed" "the last backup failed";
    BackupLate "backup-late" "the last good backup is too old";
    DrillFailed "drill-failed" "the last drill failed";
    DrillLate "drill-late" "the last drill is too old";
    BackupPing "backup-ping" "who watches the backups could not be told";
    RecoveryKey "recovery-key" "nobody could open the backups without this host";
    Backups "backups" "the backups complain of something";
    Accessories "accessories" "an accessory is not as it should be";
    Reboot "reboot" "a reboot is needed";
    Drift "drift" "the host is not as it should be";
    AgentOld "agent-old" "the agent that runs is not the one installed";
    ProxyOld "proxy-old" "the proxy that runs is not the one installed";
    UpdateReverted "update-reverted" "the last update was taken back";
    NobodyTold "alerts-nobody" "nobody is told when something goes wrong";
    Undelivered "alerts-undelivered" "somebody did not take a message";
    Alerts "alerts" "the settings of alerts cannot be used";
}

impl Id {
    /// What a sentence of `status` is about; `otherwise`, if none of these words is in it.
    pub fn of_sentence(sentence: &str, otherwise: Self) -> Self {
        const WORDS: &[(&str, Id)] = &[
            ("the firewall waits for a confirmation", Id::FirewallPending),
            ("does not hold the confirmed firewall rules", Id::FirewallLost),
            ("UFW keeps this host", Id::FirewallUfw),
            ("the certificate of ", Id::CertificateEnds),
            ("of the disk are free", Id::DiskLow),
            ("the disk will be full", Id::DiskTrend),
            ("nobody bounds the logs", Id::LogsUnbounded),
            ("there is no backup of", Id::BackupNone),
            ("was ever restored", Id::BackupUndrilled),
            ("drill of ", Id::DrillFailed),
            ("the last drill is of", Id::DrillLate),
            ("no recovery key", Id::RecoveryKey),
            ("was not told of the ", Id::BackupPing),
            ("the last good one is of", Id::BackupLate),
        ];
        let failed = otherwise == Id::Backups && sentence.contains(" failed at ");
        WORDS
            .iter()
            .find(|(words, _)| sentence.contains(words))
            .map_or(if failed { Id::BackupFailed } else { otherwise }, |(_, id)| *id)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn words_are_different_and_fit_for_scripts() {
        let words: BTreeSet<_> = Id::ALL.iter().map(|id| id.word()).collect();
        assert_eq!(words.len(), Id::ALL.len());
        assert!(
            words
                .iter()
                .all(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '-'))
        );
    }

    /// Every Rust file below `directory`, one after the other.
    fn sources(directory: &std::path::Path) -> String {
        let entries = std::fs::read_dir(directory).expect("the tests are beside the crates");
        let mut text = String::new();
        for entry in entries {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                text += &sources(&path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text += &std::fs::read_to_string(&path).expect("a source");
            }
        }
        text
    }

    /// Whether a call of a function with one of these words in its name gets this finding's word.
    fn is_asked_for(sources: &str, word: &str, names: &[&str]) -> bool {
        let quoted = format!("\"{word}\"");
        sources.match_indices(&quoted).any(|(at, _)| {
            // The statement that the word stands in.
            let begins = sources[..at].rfind([';', '{', '}']).map_or(0, |end| end + 1);
            let ends = sources[at..]
                .find([';', '{', '}'])
                .map_or(sources.len(), |end| at + end);
            names.iter().any(|name| sources[begins..ends].contains(name))
        })
    }

    /// The tests on real hosts provoke each finding and see it go; the exceptions are told with their reason.
    #[test]
    fn every_finding_is_provoked_and_mended_on_a_real_host() {
        const NOT_YET: &[(&str, &str)] = &[];
        let tests = sources(std::path::Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/it"
        )));
        let missing: Vec<&str> = Id::ALL
            .iter()
            .map(|id| id.word())
            .filter(|word| !NOT_YET.iter().any(|(not, _)| not == word))
            .filter(|word| {
                let provoked = is_asked_for(&tests, word, &["found", "mended", "first(", "findings("]);
                let mended = is_asked_for(&tests, word, &["gone", "mended", "is_empty"]);
                !(provoked && mended)
            })
            .collect();
        assert!(
            missing.is_empty(),
            "no test on a host provokes and mends {missing:?}"
        );
    }

    #[test]
    fn sentences_of_backups_are_told_apart() {
        let of = |text| Id::of_sentence(text, Id::Backups);
        assert_eq!(of("backup of demo/db failed at 1970: no"), Id::BackupFailed);
        assert_eq!(of("drill of demo/db failed at 1970: no"), Id::DrillFailed);
        assert_eq!(of("backup of demo/db: the last drill is of 1970"), Id::DrillLate);
        assert_eq!(of("backup of demo/db: every 61 minutes"), Id::Backups);
    }
}
