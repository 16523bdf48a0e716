//! What a plain scalar means (Psych 5, `ScalarScanner#tokenize`, in its order of trials).

use std::sync::LazyLock;

use regex::Regex;

use super::tree::Value;

static TIME: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"^-?\d{4}-(\d{1,2})-(\d{1,2})(?:[Tt]|\s+)(\d{1,2}):(\d\d):(\d\d)(?:\.\d*)?(?:\s*(?:Z|[-+]\d{1,2}:?(?:\d\d)?))?$",
    )
});
static DATE: LazyLock<Regex> = LazyLock::new(|| pattern(r"^(\d{4})-(1[012]|0\d|\d)-([12]\d|3[01]|0\d|\d)$"));
static BASE_60: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"^[-+]?[0-9][0-9_]*(?::[0-5]?[0-9]){1,2}(\.[0-9_]*)?$"));
static FLOAT: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"^[-+]?(?:[0-9][0-9_,]*)?\.[0-9]*(?:[eE][+-][0-9]+)?$"));
static BINARY: LazyLock<Regex> = LazyLock::new(|| pattern(r"^([-+]?)0b([0-1_,]+)$"));
static OCTAL: LazyLock<Regex> = LazyLock::new(|| pattern(r"^([-+]?)0([0-7_,]+)$"));
static DECIMAL: LazyLock<Regex> = LazyLock::new(|| pattern(r"^([-+]?)(0|[1-9](?:[0-9]|,[0-9]|_[0-9])*)$"));
static HEX: LazyLock<Regex> = LazyLock::new(|| pattern(r"^([-+]?)0x([0-9a-fA-F_,]+)$"));

fn pattern(text: &str) -> Regex {
    // Ruby's `\d` and `\s` are ASCII.
    let ascii = text.replace(r"\d", "[0-9]").replace(r"\s", r"[ \t\r\n\x0b\x0c]");
    Regex::new(&ascii).expect("the patterns of this file are valid")
}

/// The value of a plain, untagged scalar.
pub(super) fn resolve(text: &str) -> Value {
    if text.is_empty() {
        return Value::Null;
    }
    if starts_like_text(text) || text.contains('\n') {
        return word(text);
    }
    if let Some(parts) = TIME.captures(text) {
        let number = |group: usize| parts[group].parse::<u32>().unwrap_or(u32::MAX);
        let (month, day, hour, minute, second) = (number(1), number(2), number(3), number(4), number(5));
        // What `Time.utc` refuses stays text; it lets 31 February pass as 2 March.
        let exists = (1..=12).contains(&month)
            && (1..=31).contains(&day)
            && minute < 60
            && second <= 60
            && (hour < 24 || (hour == 24 && minute == 0 && second == 0));
        return if exists {
            Value::Time(text.to_owned())
        } else {
            Value::Str(text.to_owned())
        };
    }
    if let Some(parts) = DATE.captures(text) {
        return date(&parts[1], &parts[2], &parts[3]).unwrap_or_else(|| Value::Str(text.to_owned()));
    }
    match text.to_ascii_lowercase().as_str() {
        ".inf" | "+.inf" => return Value::Float(f64::INFINITY),
        "-.inf" => return Value::Float(f64::NEG_INFINITY),
        ".nan" => return Value::Float(f64::NAN),
        _ => {}
    }
    if let Some(name) = text.strip_prefix(':').filter(|name| !name.is_empty()) {
        return Value::Symbol(symbol(name).to_owned());
    }
    if let Some(parts) = BASE_60.captures(text) {
        return base_60(text, parts.get(1).is_some());
    }
    if FLOAT.is_match(text) {
        return float(text);
    }
    integer(text).unwrap_or_else(|| Value::Str(text.to_owned()))
}

/// The name of a symbol: quoted up to the last quote of the same kind, what follows that is dropped; else as it stands.
fn symbol(name: &str) -> &str {
    let quote = name.chars().next().filter(|first| matches!(first, '"' | '\''));
    let quoted = quote.and_then(|quote| {
        let inner = &name[1..];
        inner.rfind(quote).map(|end| &inner[..end])
    });
    quoted.map_or(name, |inner| inner.strip_prefix(':').unwrap_or(inner))
}

/// Whether Psych's quick test takes the scalar for a word: it starts with a letter or one of some signs, perhaps after
/// one other character that could not start a number, date or symbol.
fn starts_like_text(text: &str) -> bool {
    let wordy =
        |letter: char| letter.is_alphabetic() || "_ \t\r\n\x0b\x0c!@#$%^&*(){}<>|/\\~;=".contains(letter);
    let mut letters = text.chars();
    let Some(first) = letters.next() else {
        return false;
    };
    wordy(first) || (!first.is_ascii_digit() && !".:-".contains(first) && letters.next().is_some_and(wordy))
}

/// Words are text, but for the few short ones that YAML 1.1 gives a meaning.
fn word(text: &str) -> Value {
    if text.chars().count() <= 5 {
        match text.to_ascii_lowercase().as_str() {
            "~" | "null" => return Value::Null,
            "yes" | "true" | "on" => return Value::Bool(true),
            "no" | "false" | "off" => return Value::Bool(false),
            _ => {}
        }
    }
    Value::Str(text.to_owned())
}

/// A date, shown as `Date#to_s` does; `None` when there is no such day.
fn date(year: &str, month: &str, day: &str) -> Option<Value> {
    let date = jiff::civil::Date::new(year.parse().ok()?, month.parse().ok()?, day.parse().ok()?).ok()?;
    Some(Value::Time(date.to_string()))
}

/// Hours first, whatever the number of parts: `12:30` is 12·60² + 30·60.
fn base_60(text: &str, with_point: bool) -> Value {
    let clean = text.replace('_', "");
    let weights = [3600, 60, 1];
    if with_point {
        let sum = clean
            .split(':')
            .zip(weights)
            .map(|(part, weight)| {
                part.trim_end_matches('.').parse::<f64>().unwrap_or(0.0) * f64::from(weight)
            })
            .sum();
        return Value::Float(sum);
    }
    let mut sum: Option<i128> = Some(0);
    for (part, weight) in clean.split(':').zip(weights) {
        let part: Option<i128> = part.strip_prefix('+').unwrap_or(part).parse().ok();
        sum = sum.zip(part).and_then(|(sum, part)| {
            part.checked_mul(i128::from(weight))
                .and_then(|more| sum.checked_add(more))
        });
    }
    // Beyond 128 bits nobody can mean it; the text is kept and refused where a number is due.
    sum.map_or_else(
        || Value::Str(text.to_owned()),
        |sum| from_digits(sum < 0, &sum.unsigned_abs().to_string()),
    )
}

fn float(text: &str) -> Value {
    if matches!(text, "." | "+." | "-.") {
        return Value::Str(text.to_owned());
    }
    let clean: String = text.chars().filter(|letter| !"_,".contains(*letter)).collect();
    clean
        .parse()
        .map_or_else(|_| Value::Str(text.to_owned()), Value::Float)
}

fn integer(text: &str) -> Option<Value> {
    for (pattern, radix) in [(&BINARY, 2), (&OCTAL, 8), (&DECIMAL, 10), (&HEX, 16)] {
        if let Some(parts) = pattern.captures(text) {
            let digits: String = parts[2].chars().filter(|digit| !"_,".contains(*digit)).collect();
            let negative = &parts[1] == "-";
            if digits.is_empty() {
                // `0_` is zero; `0x_` is an error in Ruby, text here.
                return (radix == 8).then_some(Value::Int(0));
            }
            return Some(from_digits(negative, &decimal_digits(&digits, radix)));
        }
    }
    None
}

/// The integer of a sign and decimal digits.
fn from_digits(negative: bool, digits: &str) -> Value {
    let digits = digits.trim_start_matches('0');
    let digits = if digits.is_empty() { "0" } else { digits };
    let signed = if negative && digits != "0" {
        format!("-{digits}")
    } else {
        digits.to_owned()
    };
    signed.parse().map_or(Value::BigInt(signed), Value::Int)
}

/// Most decimal digits a number of another base is counted out to; more is cut off, nobody can mean it.
const MOST_DIGITS: usize = 4096;

fn decimal_digits(digits: &str, radix: u32) -> String {
    if radix == 10 {
        return digits.to_owned();
    }
    let significant = digits.trim_start_matches('0');
    if let Ok(value) = u128::from_str_radix(if significant.is_empty() { "0" } else { significant }, radix) {
        return value.to_string();
    }
    // Schoolbook: little-endian decimal digits, times the base, plus the next digit.
    let mut decimal: Vec<u32> = vec![0];
    for digit in significant
        .chars()
        .take(MOST_DIGITS)
        .filter_map(|digit| digit.to_digit(radix))
    {
        let mut carry = digit;
        for place in &mut decimal {
            let sum = *place * radix + carry;
            *place = sum % 10;
            carry = sum / 10;
        }
        while carry > 0 {
            decimal.push(carry % 10);
            carry /= 10;
        }
    }
    decimal
        .iter()
        .rev()
        .filter_map(|digit| char::from_digit(*digit, 10))
        .collect()
}
