//! What `String` does with plain text.

pub(super) fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().collect::<String>() + &chars.as_str().to_lowercase(),
        None => String::new(),
    }
}

pub(super) fn underscore(text: &str) -> String {
    let mut new = String::new();
    for c in text.replace("::", "/").chars() {
        if c.is_uppercase() && new.ends_with(|last: char| last.is_lowercase() || last.is_ascii_digit()) {
            new.push('_');
        }
        new.extend(if c == '-' {
            vec!['_']
        } else {
            c.to_lowercase().collect()
        });
    }
    new
}

pub(super) fn leading_int(text: &str, radix: u32) -> i64 {
    let text = text.trim_start();
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let radix = if (2..=36).contains(&radix) { radix } else { 10 };
    let digits: String = digits
        .chars()
        .take_while(|c| c.is_digit(radix) || *c == '_')
        .filter(|c| *c != '_')
        .collect();
    i64::from_str_radix(&digits, radix).unwrap_or(0) * sign
}

pub(super) fn leading_float(text: &str) -> f64 {
    let text = text.trim_start().replace('_', "");
    (1..=text.len())
        .rev()
        .filter(|end| text.is_char_boundary(*end) && *end < 64)
        .find_map(|end| {
            let head = &text[..end];
            let plain = head.ends_with(|c: char| c.is_ascii_digit())
                && !head.contains(|c: char| c.is_alphabetic() && c != 'e' && c != 'E');
            plain.then(|| head.parse().ok()).flatten()
        })
        .unwrap_or(0.0)
}

/// The set of `delete`, `count` and `tr`: `a-z`, `^x`.
pub(super) fn char_set(spec: &str) -> impl Fn(char) -> bool + use<> {
    let (negated, spec) = match spec.strip_prefix('^') {
        Some(rest) if !rest.is_empty() => (true, rest),
        _ => (false, spec),
    };
    let set = spread(spec);
    move |c| set.contains(&c) != negated
}

pub(super) fn spread(spec: &str) -> Vec<char> {
    let chars: Vec<char> = spec.chars().collect();
    let mut set = Vec::new();
    let mut index = 0;
    while index < chars.len() {
        if index + 2 < chars.len() && chars[index + 1] == '-' && chars[index] <= chars[index + 2] {
            set.extend((chars[index]..=chars[index + 2]).take(0x2_0000));
            index += 3;
        } else if chars[index] == '\\' && index + 1 < chars.len() {
            set.push(chars[index + 1]);
            index += 2;
        } else {
            set.push(chars[index]);
            index += 1;
        }
    }
    set
}

pub(super) fn transliterate(text: &str, from: &str, to: &str) -> String {
    let to = spread(to);
    let negated = from.len() > 1 && from.starts_with('^');
    let from = spread(if negated { &from[1..] } else { from });
    text.chars()
        .filter_map(|c| {
            let found = from.iter().position(|wanted| *wanted == c);
            match (found, negated) {
                (None, false) | (Some(_), true) => Some(c),
                (Some(index), false) => to.get(index).or(to.last()).copied(),
                (None, true) => to.last().copied(),
            }
        })
        .collect()
}

pub(super) fn justify(text: &str, width: usize, pad: &str, how: &str) -> String {
    let missing = width.saturating_sub(text.chars().count());
    let padding = |length: usize| {
        pad.chars()
            .cycle()
            .take(if pad.is_empty() { 0 } else { length })
            .collect::<String>()
    };
    match how {
        "ljust" => format!("{text}{}", padding(missing)),
        "rjust" => format!("{}{text}", padding(missing)),
        _ => format!("{}{text}{}", padding(missing / 2), padding(missing - missing / 2)),
    }
}

/// `String#succ` for letters and digits: `az` → `ba`, `a9` → `b0`, `Zz` → `AAa`.
pub(super) fn successor(text: &str) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    let Some(mut index) = chars.iter().rposition(char::is_ascii_alphanumeric) else {
        return match chars.pop() {
            Some(last) => {
                chars.extend(char::from_u32(last as u32 + 1));
                chars.into_iter().collect()
            }
            None => String::new(),
        };
    };
    loop {
        let (new, first) = match chars[index] {
            'z' => ('a', Some('a')),
            'Z' => ('A', Some('A')),
            '9' => ('0', Some('1')),
            other => (char::from_u32(other as u32 + 1).unwrap_or(other), None),
        };
        chars[index] = new;
        let Some(carry) = first else { break };
        if index == 0 || !chars[index - 1].is_ascii_alphanumeric() {
            chars.insert(index, carry);
            break;
        }
        index -= 1;
    }
    chars.into_iter().collect()
}
