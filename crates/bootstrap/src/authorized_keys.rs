//! `authorized_keys`: our lines are added, everybody else's stay.

use crate::firewall::opening::Net;
use crate::key::PublicKey;

/// The first words of every line of ours in the deploy user's file; nobody writes this by hand.
const OURS: &str = "restrict,command=\"/usr/local/bin/appliance receive ";

/// The line by which a key reaches the agent and nothing else.
///
/// `restrict` (sshd(8), AUTHORIZED_KEYS FILE FORMAT) turns off terminals, forwarding and whatever later versions add.
pub fn receive_line(key: &PublicKey) -> String {
    receive_line_from(key, &[])
}

/// As [`receive_line`], for a key that works from some networks only; from everywhere if there are none.
pub fn receive_line_from(key: &PublicKey, networks: &[Net]) -> String {
    let from = match networks {
        [] => String::new(),
        networks => format!(",{}", from_option(networks)),
    };
    format!("{OURS}--key {}\"{from} {}", key.fingerprint(), key.line())
}

/// The option `from="…"` of sshd(8).
pub fn from_option(networks: &[Net]) -> String {
    let networks: Vec<String> = networks.iter().map(ToString::to_string).collect();
    format!("from=\"{}\"", networks.join(","))
}

/// `current` with the missing ones of `lines` appended; `None` if none is missing.
///
/// Two lines are the same if options and key are; the comment does not count.
pub fn with_lines(current: &str, lines: &[String]) -> Option<String> {
    let present: Vec<String> = current.lines().map(without_comment).collect();
    let mut missing: Vec<&String> = Vec::new();
    for line in lines {
        let bare = without_comment(line);
        if !present.contains(&bare) && !missing.iter().any(|other| without_comment(other) == bare) {
            missing.push(line);
        }
    }
    if missing.is_empty() {
        return None;
    }
    let mut text = current.to_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    for line in missing {
        text.push_str(line);
        text.push('\n');
    }
    Some(text)
}

/// `current` without our forced-command lines of this key; `None` if there are none.
pub fn without_key(current: &str, key: &PublicKey) -> Option<String> {
    let ours = format!("{OURS}--key {}\"", key.fingerprint());
    let kept: Vec<&str> = current.lines().filter(|line| !line.starts_with(&ours)).collect();
    if kept.len() == current.lines().count() {
        return None;
    }
    let mut text = kept.join("\n");
    if !text.is_empty() {
        text.push('\n');
    }
    Some(text)
}

/// Whether any line could open a session: neither blank nor a comment.
pub fn has_key(text: &str) -> bool {
    text.lines()
        .map(str::trim)
        .any(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Whether a key stands in a line without our forced command, so that sshd may give it more than we would.
pub fn has_other_line(text: &str, key: &PublicKey) -> bool {
    let encoded = key.base64();
    text.lines().map(str::trim).any(|line| {
        !line.starts_with('#') && !line.starts_with(OURS) && line.split(' ').any(|word| word == encoded)
    })
}

/// How many lines hold a key that is none of `known`.
pub fn others(text: &str, known: &[PublicKey]) -> usize {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .filter(|line| {
            !known
                .iter()
                .any(|key| line.split(' ').any(|word| word == key.base64()))
        })
        .count()
}

/// Whether a key stands in a line without `from="…"`, so that it works from everywhere.
pub fn is_free(text: &str, key: &PublicKey) -> bool {
    text.lines().map(str::trim).any(|line| {
        !line.starts_with('#')
            && !line.contains("from=\"")
            && line.split(' ').any(|word| word == key.base64())
    })
}

/// A line up to and including the key.
fn without_comment(line: &str) -> String {
    let line = line.trim();
    let mut words = Vec::new();
    for word in line.split(' ').filter(|word| !word.is_empty()) {
        words.push(word);
        if word.starts_with("AAAA") {
            break;
        }
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(last: char) -> PublicKey {
        format!(
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJk6wrqCgWWQfTaIv1CZo6bOw1tQ8kEBdNqUe2Ii3cM{last} ann@laptop"
        )
        .parse()
        .expect("a key")
    }

    #[test]
    fn lines_are_appended_once_and_others_stay_untouched() {
        let line = receive_line(&key('f'));
        assert!(
            line.starts_with("restrict,command=\"/usr/local/bin/appliance receive --key SHA256:"),
            "{line}"
        );
        let theirs = "# by hand\nssh-rsa AAAAB3 someone";
        let text = with_lines(theirs, &[line.clone(), line.clone()]).expect("one is missing");
        assert_eq!(text, format!("{theirs}\n{line}\n"));
        assert_eq!(with_lines(&text, std::slice::from_ref(&line)), None);
        assert_eq!(with_lines(&text.replace("ann@laptop", "renamed"), &[line]), None);
    }

    #[test]
    fn removing_a_key_takes_our_line_and_no_other() {
        let (ann, bob) = (key('f'), key('s'));
        let text = format!("{}\n{}\n{}\n", ann.line(), receive_line(&ann), receive_line(&bob));
        assert_eq!(
            without_key(&text, &ann).expect("was there"),
            format!("{}\n{}\n", ann.line(), receive_line(&bob))
        );
        assert_eq!(without_key("ssh-rsa AAAAB3 x\n", &ann), None);
    }

    #[test]
    fn a_key_that_also_has_a_shell_is_noticed() {
        let ann = key('f');
        assert!(has_other_line(&ann.line(), &ann));
        assert!(!has_other_line(&receive_line(&ann), &ann));
        assert!(!has_other_line(&format!("# {}", ann.line()), &ann));
        assert!(has_key(&ann.line()) && !has_key("\n# none\n"));
    }
}
