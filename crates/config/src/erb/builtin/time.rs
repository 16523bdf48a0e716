//! `Time` and `Date`.

use std::rc::Rc;

use super::super::interp::{Interp, unsupported};
use super::super::value::Value;
use super::{Args, Found};

/// `Time.now`, `Date.today` and the like.
pub(super) fn module(interp: &mut Interp<'_, '_>, module: &str, name: &str) -> Option<Value> {
    let now = || Rc::new(interp.ctx.now.clone());
    match (module, name) {
        ("Time", "now" | "current") => Some(Value::Time(now(), false)),
        ("Date", "today" | "current") => Some(Value::Time(now(), true)),
        _ => None,
    }
}

/// `Date.new(2026, 1, 31)` and `Date.parse("2026-01-31")`; other forms need Ruby itself.
pub(super) fn date(name: &str, args: &Args<'_>) -> super::Eval {
    let found = if name == "new" && args.list.len() == 3 {
        let part = |index| args.int(index);
        let (year, month, day) = (part(0)?, part(1)?, part(2)?);
        match (i16::try_from(year), i8::try_from(month), i8::try_from(day)) {
            (Ok(year), Ok(month @ 1..), Ok(day @ 1..)) if year > 0 => {
                jiff::civil::Date::new(year, month, day).ok()
            }
            _ => None,
        }
    } else {
        let text = args.text(0).unwrap_or_default();
        let is_plain = text.len() == 10
            && text.bytes().enumerate().all(|(index, byte)| match index {
                4 | 7 => byte == b'-',
                _ => byte.is_ascii_digit(),
            });
        is_plain.then(|| text.parse().ok()).flatten()
    };
    found
        .and_then(|date: jiff::civil::Date| date.to_zoned(jiff::tz::TimeZone::UTC).ok())
        .map(|time| Value::Time(Rc::new(time), true))
        .ok_or_else(|| unsupported(format!("this Date.{name}"), args.at))
}

pub(super) fn method(interp: &mut Interp<'_, '_>, this: &Value, name: &str, args: &Args<'_>) -> Found {
    let Value::Time(time, date) = this else {
        return Ok(None);
    };
    let at = args.at;
    let shifted = |seconds: i64| {
        jiff::SignedDuration::from_secs(0)
            .checked_add(jiff::SignedDuration::from_secs(seconds))
            .and_then(|by| time.checked_add(by).ok())
            .map(|moved| Value::Time(Rc::new(moved), *date))
    };
    Ok(Some(match name {
        "strftime" => {
            let wanted = args
                .text(0)?
                .replace("%L", "%3f")
                .replace("%6N", "%6f")
                .replace("%3N", "%3f")
                .replace("%N", "%9f");
            let text = jiff::fmt::strtime::format(&wanted, &**time)
                .map_err(|_| unsupported(format!("strftime({wanted:?})"), at))?;
            interp.new_str(text, at)?
        }
        "utc" | "getutc" | "gmtime" | "getgm" => {
            Value::Time(Rc::new(time.with_time_zone(jiff::tz::TimeZone::UTC)), *date)
        }
        "localtime" | "getlocal" | "to_time" => Value::Time(time.clone(), false),
        "to_date" => Value::Time(time.clone(), true),
        "to_i" => Value::Int(time.timestamp().as_second()),
        #[allow(clippy::cast_precision_loss)]
        "to_f" => Value::Float(time.timestamp().as_millisecond() as f64 / 1000.0),
        "year" => Value::Int(i64::from(time.year())),
        "month" | "mon" => Value::Int(i64::from(time.month())),
        "day" | "mday" => Value::Int(i64::from(time.day())),
        "hour" => Value::Int(i64::from(time.hour())),
        "min" => Value::Int(i64::from(time.minute())),
        "sec" => Value::Int(i64::from(time.second())),
        "wday" => Value::Int(i64::from(time.weekday().to_sunday_zero_offset())),
        "yday" => Value::Int(i64::from(time.day_of_year())),
        "iso8601" | "xmlschema" if *date => Value::str(time.date().to_string()),
        "iso8601" | "xmlschema" => {
            let utc = time.time_zone() == &jiff::tz::TimeZone::UTC;
            let form = if utc {
                "%Y-%m-%dT%H:%M:%SZ"
            } else {
                "%Y-%m-%dT%H:%M:%S%:z"
            };
            Value::str(time.strftime(form).to_string())
        }
        "+" | "-" => {
            let unit = if *date { 86_400 } else { 1 };
            let sign = if name == "-" { -1 } else { 1 };
            let by = match args.get(0) {
                Some(Value::Int(by)) => by.checked_mul(unit * sign),
                _ => None,
            };
            let by = by.ok_or_else(|| unsupported("this time arithmetic", at))?;
            shifted(by).ok_or_else(|| unsupported("times beyond the calendar", at))?
        }
        "<" | ">" | "<=" | ">=" => {
            let Some(order) = args.get(0).and_then(|other| this.compare(other)) else {
                return Ok(None);
            };
            Value::Bool(match name {
                "<" => order.is_lt(),
                ">" => order.is_gt(),
                "<=" => order.is_le(),
                _ => order.is_ge(),
            })
        }
        _ => return Ok(None),
    }))
}
