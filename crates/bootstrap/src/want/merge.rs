//! Files of others with a few lines of ours. Pure.

/// `login.defs` with these settings: a value there is replaced, a missing one is appended.
pub(super) fn login_defs(text: &str, settings: &[(&str, &str)]) -> Option<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for (name, value) in settings {
        let wanted = format!("{name}\t\t{value}");
        let mut found = false;
        for line in &mut lines {
            let mut words = line.split_whitespace();
            if words.next() == Some(*name) {
                found = true;
                if words.next() != Some(*value) {
                    line.clone_from(&wanted);
                }
            }
        }
        if !found {
            lines.push(wanted);
        }
    }
    let new = lines.join("\n") + "\n";
    (new.trim_end() != text.trim_end()).then_some(new)
}

/// A file of `NAME=value` or `name = value` lines with these settings: a value there is replaced, a missing one is appended.
pub(super) fn assignments(text: &str, equals: &str, settings: &[(&str, &str)]) -> Option<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for (name, value) in settings {
        let wanted = format!("{name}{equals}{value}");
        let mut found = false;
        for line in &mut lines {
            let Some((left, right)) = line.split_once('=') else {
                continue;
            };
            if left.trim() == *name {
                found = true;
                // Quotes are a matter of taste.
                if right.trim().trim_matches(['"', '\'']) != value.trim_matches(['"', '\'']) {
                    line.clone_from(&wanted);
                }
            }
        }
        if !found {
            lines.push(wanted);
        }
    }
    let new = lines.join("\n") + "\n";
    (new.trim_end() != text.trim_end()).then_some(new)
}

/// `/etc/pam.d/su` with pam_wheel(8) after the line that lets root through; nothing to do where somebody set it up already.
pub(super) fn pam_su(text: &str) -> Option<String> {
    const LINE: &str = "auth       required   pam_wheel.so use_uid group=sudo";
    let active = |line: &&str| !line.trim_start().starts_with('#');
    if text
        .lines()
        .filter(active)
        .any(|line| line.contains("pam_wheel.so"))
    {
        return None;
    }
    let mut lines: Vec<&str> = text.lines().collect();
    // Before root is let through, root itself would be asked.
    let place = lines
        .iter()
        .position(|line| active(line) && line.contains("pam_rootok.so"))?;
    lines.insert(place + 1, LINE);
    Some(lines.join("\n") + "\n")
}

/// `/etc/ssh/moduli` (moduli(5)) without groups below 3071 bits; nothing to do where none would be left.
pub(super) fn moduli(text: &str) -> Option<String> {
    let bits = |line: &str| {
        line.split_whitespace()
            .nth(4)
            .and_then(|bits| bits.parse::<u32>().ok())
    };
    let kept: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with('#') || bits(line).is_some_and(|bits| bits >= 3071))
        .collect();
    let groups = kept.iter().filter(|line| !line.starts_with('#')).count();
    (groups > 0 && kept.len() < text.lines().count()).then(|| kept.join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_others_stay_where_they_are() {
        let text = "# UMASK is the default\nUMASK\t\t022\nPASS_MAX_DAYS\t99999\n";
        let new = login_defs(text, &[("UMASK", "027"), ("SHA_CRYPT_MIN_ROUNDS", "10000")]).expect("changes");
        assert_eq!(
            new,
            "# UMASK is the default\nUMASK\t\t027\nPASS_MAX_DAYS\t99999\nSHA_CRYPT_MIN_ROUNDS\t\t10000\n"
        );
        assert_eq!(
            login_defs(&new, &[("UMASK", "027"), ("SHA_CRYPT_MIN_ROUNDS", "10000")]),
            None
        );
    }

    #[test]
    fn an_assignment_is_set_once_whatever_its_quotes() {
        let text = "# ENABLED=\"true\" starts it\nENABLED=\"false\"\n";
        let new = assignments(text, "=", &[("ENABLED", "true")]).expect("changes");
        assert_eq!(new, "# ENABLED=\"true\" starts it\nENABLED=true\n");
        assert_eq!(
            assignments("ENABLED=\"true\"\n", "=", &[("ENABLED", "true")]),
            None
        );
        assert_eq!(
            assignments(
                "myhostname = a\ninet_interfaces = all\n",
                " = ",
                &[("inet_interfaces", "loopback-only")]
            ),
            Some("myhostname = a\ninet_interfaces = loopback-only\n".to_owned())
        );
        assert_eq!(assignments("", "=", &[("A", "1")]).as_deref(), Some("A=1\n"));
    }

    #[test]
    fn su_asks_for_the_group_after_root_was_let_through() {
        let text = "auth       sufficient pam_rootok.so\n# auth       required   pam_wheel.so\n@include common-auth\n";
        let new = pam_su(text).expect("changes");
        assert_eq!(
            new,
            "auth       sufficient pam_rootok.so\nauth       required   pam_wheel.so use_uid group=sudo\n# auth       required   pam_wheel.so\n@include common-auth\n"
        );
        assert_eq!(pam_su(&new), None, "once");
        assert_eq!(
            pam_su("auth required pam_wheel.so group=wheel\n"),
            None,
            "somebody's own"
        );
        assert_eq!(pam_su("@include common-auth\n"), None, "root would be asked");
    }

    #[test]
    fn small_groups_go_and_a_file_is_never_emptied() {
        let text = "# Time Type\n2012 2 6 100 2047 2 A\n2012 2 6 100 3071 2 B\n2012 2 6 100 4095 5 C\n";
        let new = moduli(text).expect("changes");
        assert_eq!(new.lines().count(), 3);
        assert_eq!(moduli(&new), None);
        assert_eq!(
            moduli("2012 2 6 100 2047 2 A\n"),
            None,
            "group exchange needs some group"
        );
        assert_eq!(moduli(""), None);
    }
}
