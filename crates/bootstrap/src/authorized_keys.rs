//! `authorized_keys`: our lines are as they should be, everybody else's stay.

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

/// Ends the lines that `host.yml` asks for: whoever it names no more loses them.
const DECLARED: &str = " appliance:host.yml";
/// Ends the other lines of ours.
const WRITTEN: &str = " appliance:key";

/// A line as we write it: its end tells later that it is ours, and who asked for it.
pub fn marked(line: &str, declared: bool) -> String {
    let bare = line
        .trim_end()
        .trim_end_matches(DECLARED)
        .trim_end_matches(WRITTEN);
    format!("{bare}{}", if declared { DECLARED } else { WRITTEN })
}

/// A file with our lines as they should be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edited {
    /// All of it.
    pub text: String,
    /// Lines that were not there.
    pub added: usize,
    /// Lines whose options are others now, or that are ours from now on.
    pub replaced: usize,
    /// Lines of keys that nobody asks for any more.
    pub removed: usize,
}

/// `current` with `lines`, each ended by [`marked`]; `None` if nothing changes.
///
/// - A line of ours for the same key with other options is replaced: sshd would go on to it where the new one does not fit.
///   In root's file so is a line without options, which `host.yml` may mean to limit.
/// - A line of ours that `host.yml` asked for, and asks for no more, goes; unless no key were left, or no shell.
/// - All others stay.
pub fn with_lines(current: &str, lines: &[String]) -> Option<Edited> {
    let mut edited = Edited::default();
    let mut present: Vec<&str> = Vec::new();
    let mut out: Vec<String> = Vec::new();
    let mut gone: Vec<(usize, &str)> = Vec::new();
    for line in current.lines() {
        let Some(key) = base64(line) else {
            out.push(line.to_owned());
            continue;
        };
        let Some(wanted) = lines.iter().find(|wanted| base64(wanted) == Some(key)) else {
            if line.trim_end().ends_with(DECLARED) {
                gone.push((out.len(), line));
            } else {
                out.push(line.to_owned());
            }
            continue;
        };
        let same = without_comment(line) == without_comment(wanted);
        let bare = !wanted.starts_with(OURS) && without_comment(line).split(' ').count() == 2;
        let taken_over = wanted.ends_with(DECLARED) && !line.trim_end().ends_with(DECLARED);
        if same && !taken_over && !present.contains(&key) {
            present.push(key);
            out.push(line.to_owned());
        } else if same || bare || is_ours(line) {
            edited.replaced += 1;
            if !present.contains(&key) {
                present.push(key);
                out.push(wanted.clone());
            }
        } else {
            out.push(line.to_owned());
        }
    }
    for wanted in lines {
        if let Some(key) = base64(wanted).filter(|key| !present.contains(key)) {
            present.push(key);
            edited.added += 1;
            out.push(wanted.clone());
        }
    }
    let doors = gone.iter().all(|(_, line)| line.starts_with(OURS));
    let is_enough = |line: &String| {
        if doors {
            base64(line).is_some()
        } else {
            opens_shell(line)
        }
    };
    if out.iter().any(is_enough) {
        edited.removed = gone.len();
    } else {
        for (index, line) in gone.into_iter().rev() {
            out.insert(index, line.to_owned());
        }
    }
    if edited == Edited::default() {
        return None;
    }
    for line in out {
        edited.text.push_str(&line);
        edited.text.push('\n');
    }
    Some(edited)
}

/// What happened to a key's lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    /// It had none.
    Absent,
    /// The file without those of ours; whether somebody else's line of the key stays.
    Removed {
        /// All of it.
        text: String,
        /// Somebody else's line stays.
        other: bool,
    },
    /// Only somebody else's line is there.
    Other,
    /// Without it nobody could log in.
    Last,
}

/// `current` without our lines of this key, if another key is left.
pub fn without_key(current: &str, key: &PublicKey) -> Removal {
    let encoded = key.base64();
    let of_it = |line: &&str| base64(line) == Some(&encoded);
    let (gone, kept): (Vec<&str>, Vec<&str>) = current.lines().partition(|line| of_it(line) && is_ours(line));
    let other = kept.iter().any(of_it);
    match (gone.is_empty(), other) {
        (true, false) => return Removal::Absent,
        (true, true) => return Removal::Other,
        _ => {}
    }
    let doors = gone.iter().all(|line| line.starts_with(OURS));
    if !doors && !kept.iter().any(|line| opens_shell(line)) {
        return Removal::Last;
    }
    let mut text = kept.join("\n");
    if !text.is_empty() {
        text.push('\n');
    }
    Removal::Removed { text, other }
}

/// Whether a line was written by us.
fn is_ours(line: &str) -> bool {
    let line = line.trim_end();
    line.starts_with(OURS) || line.ends_with(DECLARED) || line.ends_with(WRITTEN)
}

/// Whether `host.yml` asked for a line of this file.
pub fn has_declared(text: &str) -> bool {
    text.lines().any(|line| line.trim_end().ends_with(DECLARED))
}

/// Whether a key's door to the agent is in a file already, from wherever it may be used.
pub fn has_door(text: &str, key: &PublicKey) -> bool {
    let encoded = key.base64();
    text.lines()
        .any(|line| line.starts_with(OURS) && base64(line) == Some(&encoded))
}

/// The key of a line in base64; none of blank lines and comments.
fn base64(line: &str) -> Option<&str> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    line.split(' ').find(|word| word.starts_with("AAAA"))
}

/// Whether any line opens a shell.
pub fn has_key(text: &str) -> bool {
    text.lines().any(opens_shell)
}

/// Whether a line holds a key that opens a shell: no forced command, and a terminal.
///
/// Images of clouds hold one that opens none: `command="echo 'Please login as the user …'"` (cloud-init's `disable_root`).
fn opens_shell(line: &str) -> bool {
    if base64(line).is_none() {
        return false;
    }
    let options = options(line.trim());
    // sshd(8): names of options are case-insensitive.
    let has = |name: &str| options.iter().any(|option| option.eq_ignore_ascii_case(name));
    let forced = options.iter().any(|option| {
        option
            .get(..8)
            .is_some_and(|start| start.eq_ignore_ascii_case("command="))
    });
    !forced && (!has("restrict") || has("pty"))
}

/// What stands before the kind of the key, option by option; a comma or a blank in quotes ends none.
fn options(line: &str) -> Vec<&str> {
    let kinds = ["ssh-", "ecdsa-", "sk-"];
    if kinds.iter().any(|kind| line.starts_with(kind)) {
        return Vec::new();
    }
    let (mut options, mut start) = (Vec::new(), 0);
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in line.char_indices() {
        match c {
            '"' if !escaped => quoted = !quoted,
            ',' | ' ' | '\t' if !quoted => {
                options.push(&line[start..at]);
                start = at + 1;
                if c != ',' {
                    break;
                }
            }
            _ => {}
        }
        escaped = c == '\\' && !escaped;
    }
    options
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

    fn text(current: &str, lines: &[String]) -> String {
        with_lines(current, lines).map_or_else(|| current.to_owned(), |edited| edited.text)
    }

    #[test]
    fn lines_are_appended_once_and_others_stay_untouched() {
        let line = marked(&receive_line(&key('f')), false);
        assert!(
            line.starts_with("restrict,command=\"/usr/local/bin/appliance receive --key SHA256:"),
            "{line}"
        );
        let theirs = "# by hand\nssh-rsa AAAAB3 someone";
        let edited = with_lines(theirs, &[line.clone(), line.clone()]).expect("one is missing");
        assert_eq!(edited.text, format!("{theirs}\n{line}\n"));
        assert_eq!(with_lines(&edited.text, std::slice::from_ref(&line)), None);
        assert_eq!(
            with_lines(&edited.text.replace("ann@laptop", "renamed"), &[line]),
            None
        );
    }

    #[test]
    fn who_is_limited_loses_the_line_that_was_not() {
        let ann = key('f');
        let limited = |net: &str| {
            let networks = [net.parse().expect("a network")];
            marked(&format!("{} {}", from_option(&networks), ann.line()), true)
        };
        let free = marked(&ann.line(), true);
        for before in [free.clone(), ann.line(), limited("192.0.2.0/24")] {
            let theirs = "ssh-rsa AAAAB3 someone\n";
            let after = text(&format!("{before}\n{theirs}"), &[limited("10.0.0.0/8")]);
            assert_eq!(after, format!("{}\n{theirs}", limited("10.0.0.0/8")), "{before}");
        }
        assert_eq!(
            text(
                &format!("{}\n", limited("10.0.0.0/8")),
                std::slice::from_ref(&free)
            ),
            format!("{free}\n")
        );
        // The door to the agent too; a shell that somebody gave the deploy user is his.
        let networks = ["10.0.0.0/8".parse().expect("a network")];
        let door = marked(&receive_line_from(&ann, &networks), true);
        let shell = ann.line();
        let before = format!("{shell}\n{}\n", receive_line(&ann));
        assert_eq!(
            text(&before, std::slice::from_ref(&door)),
            format!("{shell}\n{door}\n")
        );
        // Somebody's own options for the same key are somebody's.
        let own = format!("command=\"backup\" {}\n", ann.line());
        assert_eq!(text(&own, std::slice::from_ref(&free)), format!("{own}{free}\n"));
    }

    #[test]
    fn who_is_named_no_more_loses_his_line_and_the_last_key_stays() {
        let (ann, bob) = (key('f'), key('s'));
        let (ann_line, bob_line) = (marked(&ann.line(), true), marked(&bob.line(), true));
        let both = format!("{ann_line}\n{bob_line}\n");
        let edited = with_lines(&both, std::slice::from_ref(&ann_line)).expect("one goes");
        assert_eq!(
            (edited.text.as_str(), edited.removed),
            (format!("{ann_line}\n").as_str(), 1)
        );
        assert_eq!(with_lines(&both, &[]), None, "somebody has to be able to log in");
        // Given on the command line, or written by somebody: host.yml never named it.
        for kept in [marked(&bob.line(), false), bob.line()] {
            assert_eq!(text(&format!("{kept}\n{ann_line}\n"), &[]), format!("{kept}\n"));
        }
    }

    #[test]
    fn removing_a_key_takes_our_lines_and_no_other() {
        let (ann, bob) = (key('f'), key('s'));
        let shell = format!("{}\n{}\n{}\n", ann.line(), receive_line(&ann), receive_line(&bob));
        assert_eq!(
            without_key(&shell, &ann),
            Removal::Removed {
                text: format!("{}\n{}\n", ann.line(), receive_line(&bob)),
                other: true
            }
        );
        assert_eq!(without_key("ssh-rsa AAAAB3 x\n", &ann), Removal::Absent);
        assert_eq!(without_key(&ann.line(), &ann), Removal::Other);
        let root = format!("{}\n", marked(&ann.line(), false));
        assert_eq!(without_key(&root, &ann), Removal::Last);
        assert_eq!(
            without_key(&format!("{root}{}\n", bob.line()), &ann),
            Removal::Removed {
                text: format!("{}\n", bob.line()),
                other: false
            }
        );
        // The door to the agent may be the only one of its file.
        let door = receive_line(&ann);
        assert!(matches!(without_key(&door, &ann), Removal::Removed { text, .. } if text.is_empty()));
    }

    #[test]
    fn a_line_that_opens_no_shell_does_not_let_the_last_one_go() {
        let ann = key('f');
        let cloud = format!(
            "no-port-forwarding,command=\"echo 'Please login as the user \\\"ubuntu\\\", not root';sleep 10\" {}",
            key('s').line()
        );
        let root = format!("{cloud}\n{}\n", marked(&ann.line(), true));
        assert_eq!(without_key(&root, &ann), Removal::Last);
        assert_eq!(with_lines(&root, &[]), None, "root's only shell");
        assert!(has_key(&root) && !has_key(&cloud));
        for (options, opens) in [
            ("", true),
            ("from=\"10.0.0.0/8,command=\" ", true),
            ("environment=\"A=1, command=x\" ", true),
            ("restrict ", false),
            ("restrict,pty ", true),
            ("no-pty,Command=\"true\" ", false),
        ] {
            let line = format!("{options}{}", key('s').line());
            assert_eq!(has_key(&line), opens, "{line}");
        }
        // The deploy user's file holds doors alone, of which one is enough.
        let (ann, bob) = (
            marked(&receive_line(&ann), true),
            marked(&receive_line(&key('s')), true),
        );
        let edited = with_lines(&format!("{ann}\n{bob}\n"), std::slice::from_ref(&bob)).expect("one goes");
        assert_eq!((edited.text, edited.removed), (format!("{bob}\n"), 1));
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
