//! `format`, `sprintf` and `String#%`.

use super::super::interp::{Flow, raise, unsupported};
use super::super::value::{Key, Value};

/// Fills a format string in.
pub(super) fn format(template: &str, values: &[Value], at: usize) -> Result<String, Flow> {
    let mut out = String::new();
    let mut chars = template.chars().peekable();
    let mut next = 0;
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let (mut minus, mut zero, mut plus, mut alternate) = (false, false, false, false);
        let (mut width, mut precision): (usize, Option<usize>) = (0, None);
        let mut named = None;
        loop {
            match chars.peek().copied() {
                Some('-') => minus = true,
                Some('0') => zero = true,
                Some('+') => plus = true,
                Some('#') => alternate = true,
                Some(' ') => {}
                Some(open @ ('<' | '{')) => {
                    chars.next();
                    let close = if open == '<' { '>' } else { '}' };
                    let name: String = chars.by_ref().take_while(|c| *c != close).collect();
                    let value = lookup(values, &name, at)?;
                    if open == '{' {
                        out.push_str(&value.to_text());
                        break;
                    }
                    named = Some(value);
                    continue;
                }
                _ => {
                    while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
                        width = (width * 10 + digit as usize).min(4096);
                        chars.next();
                    }
                    if chars.peek() == Some(&'.') {
                        chars.next();
                        let mut digits = 0;
                        while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
                            digits = (digits * 10 + digit as usize).min(64);
                            chars.next();
                        }
                        precision = Some(digits);
                    }
                    if matches!(chars.peek(), Some('<')) {
                        continue;
                    }
                    let Some(kind) = chars.next() else {
                        return Err(raise(
                            "ArgumentError",
                            "incomplete format specifier; use %% (double %) instead",
                            at,
                        ));
                    };
                    if kind == '%' {
                        out.push('%');
                        break;
                    }
                    let value = match named.take() {
                        Some(value) => value,
                        None => {
                            next += 1;
                            values
                                .get(next - 1)
                                .cloned()
                                .ok_or_else(|| raise("ArgumentError", "too few arguments", at))?
                        }
                    };
                    let text = one(kind, &value, precision, plus, alternate, at)?;
                    let missing = width.saturating_sub(text.chars().count());
                    let numeric = matches!(kind, 'd' | 'i' | 'f' | 'x' | 'X' | 'o' | 'b');
                    match (minus, zero && numeric) {
                        (true, _) => out.extend(text.chars().chain(std::iter::repeat_n(' ', missing))),
                        (false, true) => {
                            let (sign, digits) = text.split_at(usize::from(text.starts_with(['-', '+'])));
                            out.push_str(sign);
                            out.extend(std::iter::repeat_n('0', missing));
                            out.push_str(digits);
                        }
                        (false, false) => out.extend(std::iter::repeat_n(' ', missing).chain(text.chars())),
                    }
                    break;
                }
            }
            chars.next();
        }
    }
    Ok(out)
}

fn lookup(values: &[Value], name: &str, at: usize) -> Result<Value, Flow> {
    let Some(Value::Hash(map)) = values.first() else {
        return Err(raise("ArgumentError", "one hash required", at));
    };
    map.borrow()
        .get(&Key::Symbol(std::rc::Rc::from(name)))
        .cloned()
        .ok_or_else(|| raise("KeyError", format!("key<{name}> not found"), at))
}

fn one(
    kind: char,
    value: &Value,
    precision: Option<usize>,
    plus: bool,
    alternate: bool,
    at: usize,
) -> Result<String, Flow> {
    let signed = |text: String| {
        if plus && !text.starts_with('-') {
            format!("+{text}")
        } else {
            text
        }
    };
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
    Ok(match kind {
        's' | 'p' => {
            let text = if kind == 's' {
                value.to_text()
            } else {
                value.inspect()
            };
            text.chars().take(precision.unwrap_or(usize::MAX)).collect()
        }
        'd' | 'i' | 'u' => signed(integer(value, at)?.to_string()),
        'x' if alternate => format!("0x{:x}", integer(value, at)?),
        'x' => format!("{:x}", integer(value, at)?),
        'X' => format!("{:X}", integer(value, at)?),
        'o' => format!("{:o}", integer(value, at)?),
        'b' => format!("{:b}", integer(value, at)?),
        'c' => value.to_text().chars().take(1).collect(),
        'f' => {
            let number = match value {
                Value::Int(value) => *value as f64,
                Value::Float(value) => *value,
                other => other.to_text().parse().map_err(|_| {
                    raise(
                        "ArgumentError",
                        format!("invalid value for Float(): {}", other.inspect()),
                        at,
                    )
                })?,
            };
            signed(format!("{number:.*}", precision.unwrap_or(6)))
        }
        other => return Err(unsupported(format!("%{other} in a format"), at)),
    })
}

fn integer(value: &Value, at: usize) -> Result<i64, Flow> {
    #[allow(clippy::cast_possible_truncation)]
    match value {
        Value::Int(value) => Ok(*value),
        Value::Float(value) => Ok(value.floor() as i64),
        Value::Nil => Err(raise("TypeError", "can't convert nil into Integer", at)),
        other => super::kernel::strict_int(&other.to_text()).ok_or_else(|| {
            raise(
                "ArgumentError",
                format!("invalid value for Integer(): {}", other.inspect()),
                at,
            )
        }),
    }
}
