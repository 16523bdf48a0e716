//! How Ruby turns values into text: Kamal's meaning of a scalar is what Ruby's `to_s` and shell quoting make of it.

/// `Float#to_s`: shortest digits that read back, `1.0e+15` from 16 digits on, `1.0e-05` below 0.0001.
pub fn float_to_s(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    if value == 0.0 {
        return if value.is_sign_negative() { "-0.0" } else { "0.0" }.to_owned();
    }
    // Rust's exponent form has the shortest digits: d[.ddd]e±x.
    let shortest = format!("{value:e}");
    let (mantissa, exponent) = shortest
        .split_once('e')
        .expect("the format always has an exponent");
    let exponent: i32 = exponent.parse().expect("the exponent is a small integer");
    if (-4..15).contains(&exponent) {
        let plain = format!("{value}");
        return if plain.contains('.') {
            plain
        } else {
            format!("{plain}.0")
        };
    }
    let mantissa = if mantissa.contains('.') {
        mantissa.to_owned()
    } else {
        format!("{mantissa}.0")
    };
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

/// Kamal's `escape_shell_value`: double quotes around each ASCII stretch with Ruby's `dump` escapes, back-ticks and `$`
/// escaped, except that `${NAME}` is left for the shell on the host to expand.
pub fn escape_shell_value(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end = rest
            .char_indices()
            .find(|(_, letter)| letter.is_ascii() != first.is_ascii())
            .map_or(rest.len(), |(index, _)| index);
        let (part, after) = rest.split_at(end);
        if first.is_ascii() {
            escape_ascii(part, &mut quoted);
        } else {
            quoted.push_str(part);
        }
        rest = after;
    }
    quoted
}

fn escape_ascii(part: &str, quoted: &mut String) {
    quoted.push('"');
    for (index, letter) in part.char_indices() {
        let following = &part[index + letter.len_utf8()..];
        match letter {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\x0c' => quoted.push_str("\\f"),
            '\x0b' => quoted.push_str("\\v"),
            '\x08' => quoted.push_str("\\b"),
            '\x07' => quoted.push_str("\\a"),
            '\x1b' => quoted.push_str("\\e"),
            // `dump` escapes what would be an interpolation in Ruby.
            '#' if following.starts_with(['$', '@', '{']) => quoted.push_str("\\#"),
            '`' => quoted.push_str("\\`"),
            '$' if is_expansion(following) => quoted.push('$'),
            '$' => quoted.push_str("\\$"),
            ' '..='~' => quoted.push(letter),
            other => quoted.push_str(&format!("\\x{:02X}", u32::from(other))),
        }
    }
    quoted.push('"');
}

/// Whether what follows a `$` is `{…}`, which is left for the host's shell.
fn is_expansion(following: &str) -> bool {
    following.starts_with('{') && following.contains('}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_read_as_in_ruby() {
        for (value, text) in [
            (1.0, "1.0"),
            (1.5, "1.5"),
            (123_456_789_012_345.0, "123456789012345.0"),
            (1e15, "1.0e+15"),
            (1.25e20, "1.25e+20"),
            (0.0001, "0.0001"),
            (0.00001, "1.0e-05"),
            (-0.0, "-0.0"),
            (f64::INFINITY, "Infinity"),
        ] {
            assert_eq!(float_to_s(value), text);
        }
    }

    #[test]
    fn only_braced_variables_are_left_to_the_shell() {
        for (value, text) in [
            ("a b", r#""a b""#),
            ("pa$s'w\"ord", r#""pa\$s'w\"ord""#),
            ("${HOME}/x", r#""${HOME}/x""#),
            ("${HOME", r#""\${HOME""#),
            ("$(id) `id`", r#""\$(id) \`id\`""#),
            ("a\nb\\", r#""a\nb\\""#),
            ("#{x} #y", r##""\#{x} #y""##),
            ("é$x", r#"é"\$x""#),
            ("", ""),
        ] {
            assert_eq!(escape_shell_value(value), text, "{value}");
        }
    }
}
