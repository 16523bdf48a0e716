//! `Integer` and `Float`, with ActiveSupport's durations as plain seconds.

use std::rc::Rc;

use super::super::interp::{Interp, raise, unsupported};
use super::super::value::{Range, Value};
use super::{Args, Found, call, implicit_name};

pub(super) fn method(interp: &mut Interp<'_, '_>, this: &Value, name: &str, args: &Args<'_>) -> Found {
    let at = args.at;
    if let "+" | "-" | "*" | "/" | "%" | "**" | "<" | ">" | "<=" | ">=" | "div" | "modulo" | "fdiv" | "pow"
    | "divmod" = name
    {
        args.count(1, 1)?;
        return match args.get(0) {
            Some(other @ (Value::Int(_) | Value::Float(_))) => binary(this, name, other, at).map(Some),
            Some(other) => Err(mismatch(this, name, other, at)),
            None => Ok(None),
        };
    }
    let whole = match this {
        Value::Int(value) => *value,
        Value::Float(value) => return float(*value, name, args),
        _ => return Ok(None),
    };
    let checked = |value: Option<i64>| value.ok_or_else(|| unsupported("integers beyond 64 bits", at));
    Ok(Some(match name {
        "floor" | "ceil" | "round" | "truncate" if args.get(0).is_some() => {
            return Err(unsupported(format!("Integer#{name} to a place"), args.at));
        }
        "to_i" | "to_int" | "floor" | "ceil" | "round" | "truncate" | "seconds" | "second" | "to_r" => {
            Value::Int(whole)
        }
        "eql?" => Value::Bool(matches!(args.get(0), Some(Value::Int(other)) if *other == whole)),
        #[allow(clippy::cast_precision_loss)]
        "to_f" => Value::Float(whole as f64),
        "to_s" => match args.get(0) {
            Some(_) => Value::str(radix_text(whole, args.int(0)?)),
            None => Value::str(whole.to_string()),
        },
        "-@" => Value::Int(checked(whole.checked_neg())?),
        "abs" | "magnitude" => Value::Int(checked(whole.checked_abs())?),
        "zero?" => Value::Bool(whole == 0),
        "positive?" => Value::Bool(whole > 0),
        "negative?" => Value::Bool(whole < 0),
        "nonzero?" if whole == 0 => Value::Nil,
        "nonzero?" => Value::Int(whole),
        "even?" => Value::Bool(whole % 2 == 0),
        "odd?" => Value::Bool(whole % 2 != 0),
        "integer?" => Value::Bool(true),
        "succ" | "next" => Value::Int(checked(whole.checked_add(1))?),
        "pred" => Value::Int(checked(whole.checked_sub(1))?),
        "chr" => match u32::try_from(whole)
            .ok()
            .filter(|code| *code < 128)
            .and_then(char::from_u32)
        {
            Some(c) => Value::str(c.to_string()),
            None => return Err(unsupported("characters beyond ASCII by number", at)),
        },
        "clamp" => Value::Int(whole.clamp(args.int(0)?, args.int(1)?.max(args.int(0)?))),
        "between?" => Value::Bool((args.int(0)?..=args.int(1)?).contains(&whole)),
        "&" => Value::Int(whole & args.int(0)?),
        "|" => Value::Int(whole | args.int(0)?),
        "^" => Value::Int(whole ^ args.int(0)?),
        "<<" => Value::Int(checked(
            u32::try_from(args.int(0)?)
                .ok()
                .and_then(|by| 1i64.checked_shl(by))
                .and_then(|by| whole.checked_mul(by)),
        )?),
        ">>" => Value::Int(whole >> args.int(0)?.clamp(0, 63)),
        // An enumerator over the same numbers, for `3.times.map { … }`.
        "times" if args.block.is_none() => Value::Range(Rc::new(Range {
            low: Value::Int(0),
            high: Value::Int(whole.max(0)),
            exclusive: true,
        })),
        "times" => {
            for index in 0..whole {
                call(interp, args, vec![Value::Int(index)])?;
            }
            this.clone()
        }
        "upto" | "downto" => {
            let end = args.int(0)?;
            let step = if name == "upto" { 1 } else { -1 };
            let mut next = Some(whole);
            while let Some(index) = next.filter(|index| if step > 0 { *index <= end } else { *index >= end })
            {
                call(interp, args, vec![Value::Int(index)])?;
                next = index.checked_add(step);
            }
            this.clone()
        }
        "digits" => Value::array(
            whole
                .unsigned_abs()
                .to_string()
                .bytes()
                .rev()
                .map(|digit| Value::Int(i64::from(digit - b'0')))
                .collect(),
        ),
        "minutes" | "minute" => Value::Int(checked(whole.checked_mul(60))?),
        "hours" | "hour" => Value::Int(checked(whole.checked_mul(3600))?),
        "days" | "day" => Value::Int(checked(whole.checked_mul(86_400))?),
        "weeks" | "week" => Value::Int(checked(whole.checked_mul(604_800))?),
        "in_milliseconds" => Value::Int(checked(whole.checked_mul(1000))?),
        "kilobytes" | "kilobyte" => Value::Int(checked(whole.checked_mul(1 << 10))?),
        "megabytes" | "megabyte" => Value::Int(checked(whole.checked_mul(1 << 20))?),
        "gigabytes" | "gigabyte" => Value::Int(checked(whole.checked_mul(1 << 30))?),
        "step" => {
            let range = Value::Range(Rc::new(Range {
                low: this.clone(),
                high: args.get(0).cloned().unwrap_or(Value::Nil),
                exclusive: false,
            }));
            return super::method(
                interp,
                &range,
                "step",
                &args.list[1.min(args.list.len())..],
                args.block,
                at,
            )
            .map(Some);
        }
        _ => return Ok(None),
    }))
}

fn float(value: f64, name: &str, args: &Args<'_>) -> Found {
    #[allow(clippy::cast_possible_truncation)]
    let whole = |value: f64| Value::Int(value as i64);
    Ok(Some(match name {
        "to_f" => Value::Float(value),
        "to_i" | "to_int" | "truncate" => whole(value),
        "floor" => whole(value.floor()),
        "ceil" => whole(value.ceil()),
        "round" => match args.get(0) {
            Some(Value::Int(digits)) if *digits > 0 => {
                let scale = 10f64.powi(i32::try_from(*digits).unwrap_or(15).min(15));
                Value::Float((value * scale).round() / scale)
            }
            Some(Value::Int(digits)) if *digits < 0 => {
                let scale = 10f64.powi(i32::try_from(*digits).unwrap_or(-18).max(-18).saturating_neg());
                whole((value / scale).round() * scale)
            }
            _ => whole(value.round()),
        },
        "abs" => Value::Float(value.abs()),
        "-@" => Value::Float(-value),
        "zero?" => Value::Bool(value == 0.0),
        "positive?" => Value::Bool(value > 0.0),
        "negative?" => Value::Bool(value < 0.0),
        "nan?" => Value::Bool(value.is_nan()),
        "integer?" => Value::Bool(false),
        _ => return Ok(None),
    }))
}

fn mismatch(this: &Value, name: &str, other: &Value, at: usize) -> super::Flow {
    if matches!(name, "<" | ">" | "<=" | ">=") {
        let other = match other {
            Value::Nil | Value::Bool(_) => other.inspect(),
            Value::Str(_) => "String".to_owned(),
            _ => other.class(),
        };
        let message = format!("comparison of {} with {other} failed", this.class());
        return raise("ArgumentError", message, at);
    }
    let message = format!("{} can't be coerced into {}", implicit_name(other), this.class());
    raise("TypeError", message, at)
}

#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
fn binary(left: &Value, name: &str, right: &Value, at: usize) -> super::Eval {
    if let (Value::Int(a), Value::Int(b)) = (left, right) {
        let (a, b) = (*a, *b);
        let overflow = || unsupported("integers beyond 64 bits", at);
        if matches!(name, "/" | "%" | "div" | "modulo" | "divmod") && b == 0 {
            return Err(raise("ZeroDivisionError", "divided by 0", at));
        }
        return Ok(match name {
            "+" => Value::Int(a.checked_add(b).ok_or_else(overflow)?),
            "-" => Value::Int(a.checked_sub(b).ok_or_else(overflow)?),
            "*" => Value::Int(a.checked_mul(b).ok_or_else(overflow)?),
            "/" | "div" => Value::Int(floor_div(a, b).ok_or_else(overflow)?),
            "%" | "modulo" => {
                Value::Int(a.wrapping_sub(floor_div(a, b).ok_or_else(overflow)?.wrapping_mul(b)))
            }
            "divmod" => {
                let quotient = floor_div(a, b).ok_or_else(overflow)?;
                Value::array(vec![
                    Value::Int(quotient),
                    Value::Int(a.wrapping_sub(quotient.wrapping_mul(b))),
                ])
            }
            "**" | "pow" => match u32::try_from(b) {
                Ok(power) => Value::Int(a.checked_pow(power).ok_or_else(overflow)?),
                Err(_) => return Err(unsupported("rational numbers", at)),
            },
            "fdiv" => Value::Float(a as f64 / b as f64),
            "<" => Value::Bool(a < b),
            ">" => Value::Bool(a > b),
            "<=" => Value::Bool(a <= b),
            _ => Value::Bool(a >= b),
        });
    }
    let number = |value: &Value| match value {
        Value::Int(value) => *value as f64,
        Value::Float(value) => *value,
        _ => f64::NAN,
    };
    let (a, b) = (number(left), number(right));
    Ok(match name {
        "+" => Value::Float(a + b),
        "-" => Value::Float(a - b),
        "*" => Value::Float(a * b),
        "/" | "fdiv" => Value::Float(a / b),
        "div" => Value::Int((a / b).floor() as i64),
        "%" | "modulo" => Value::Float(a - (a / b).floor() * b),
        "**" | "pow" => Value::Float(a.powf(b)),
        "<" => Value::Bool(a < b),
        ">" => Value::Bool(a > b),
        "<=" => Value::Bool(a <= b),
        ">=" => Value::Bool(a >= b),
        _ => return Err(unsupported(format!("`{name}' of a float"), at)),
    })
}

/// Ruby rounds towards minus infinity.
fn floor_div(a: i64, b: i64) -> Option<i64> {
    let quotient = a.checked_div(b)?;
    Some(if a % b != 0 && (a < 0) != (b < 0) {
        quotient - 1
    } else {
        quotient
    })
}

fn radix_text(value: i64, radix: i64) -> String {
    let radix = u64::try_from(radix).unwrap_or(10).clamp(2, 36);
    let mut rest = value.unsigned_abs();
    let mut digits = Vec::new();
    loop {
        let digit = u32::try_from(rest % radix).unwrap_or(0);
        digits.push(char::from_digit(digit, 36).unwrap_or('0'));
        rest /= radix;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        digits.push('-');
    }
    digits.iter().rev().collect()
}
