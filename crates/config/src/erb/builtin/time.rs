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
