//! Words as a POSIX shell reads them, in the manner of Ruby's `Shellwords`.

/// Quotes a word so that a shell reads it back as one word.
pub fn escape(word: &str) -> String {
    if word.is_empty() {
        return "''".to_owned();
    }
    let mut escaped = String::with_capacity(word.len());
    for c in word.chars() {
        match c {
            '\n' => escaped.push_str("'\n'"),
            c if c.is_ascii_alphanumeric() || "_-.,:+/@".contains(c) || !c.is_ascii() => escaped.push(c),
            c => {
                escaped.push('\\');
                escaped.push(c);
            }
        }
    }
    escaped
}

/// Splits a line into words: quotes and backslashes as in a shell, nothing expanded.
///
/// # Errors
/// A quote without its partner.
pub fn split(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    let unmatched = || "Unmatched quote".to_owned();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or_else(unmatched)? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or_else(unmatched)? {
                        '"' => break,
                        '\\' => match chars.next().ok_or_else(unmatched)? {
                            c @ ('$' | '`' | '"' | '\\' | '\n') => word.push(c),
                            c => word.extend(['\\', c]),
                        },
                        c => word.push(c),
                    }
                }
            }
            '\\' => word.get_or_insert_default().extend(chars.next()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_a_shell_splits_them() {
        for (line, words) in [
            ("a  b\tc", vec!["a", "b", "c"]),
            ("a 'b c' \"d \\\"e\\\" $f\"", vec!["a", "b c", "d \"e\" $f"]),
            ("a\\ b '' x''y", vec!["a b", "", "xy"]),
            ("\"a\\nb\"", vec!["a\\nb"]),
            ("", vec![]),
        ] {
            assert_eq!(split(line).expect(line), words, "{line}");
        }
        assert!(split("a 'b").is_err());
    }

    #[test]
    fn an_escaped_word_reads_back_as_one_word() {
        for word in [
            "",
            "a",
            "pa$ss \"word\" 'x'",
            "{\"a\":\"b c\"}",
            "line\nbreak",
            "é",
        ] {
            assert_eq!(split(&escape(word)).expect(word), [word]);
        }
    }
}
