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
