//! `String`, `Symbol` and `Regexp`.

use std::cell::RefCell;
use std::rc::Rc;

use super::super::interp::{Interp, raise, unsupported};
use super::super::pattern::{Pattern, expand};
use super::super::value::{Match, Object, Range, Value};
use super::text::{
    capitalize, char_set, justify, leading_float, leading_int, successor, transliterate, underscore,
};
use super::{Args, Found, call, format};

type Text = Rc<RefCell<String>>;

const WHITESPACE: [char; 7] = [' ', '\t', '\n', '\r', '\u{b}', '\u{c}', '\0'];

pub(super) fn method(interp: &mut Interp<'_, '_>, this: &Text, name: &str, args: &Args<'_>) -> Found {
    let at = args.at;
    let text = this.borrow().clone();
    interp.charge(text.len() / 16, at)?;
    let changed = |interp: &mut Interp<'_, '_>, new: String| interp.new_str(new, at).map(Some);
    // `strip!` and the like change in place and give nil when nothing changed.
    if let Some(plain) = name.strip_suffix('!').filter(|plain| !plain.is_empty()) {
        const IN_PLACE: &[&str] = &[
            "strip",
            "lstrip",
            "rstrip",
            "chomp",
            "chop",
            "downcase",
            "upcase",
            "capitalize",
            "swapcase",
            "squeeze",
            "sub",
            "gsub",
            "tr",
            "delete",
            "reverse",
            "squish",
            "delete_prefix",
            "delete_suffix",
            "succ",
            "next",
        ];
        if !IN_PLACE.contains(&plain) {
            return Ok(None);
        }
        let Some(Value::Str(new)) = method(interp, this, plain, args)? else {
            return Ok(None);
        };
        let new = new.borrow().clone();
        if new == text {
            return Ok(Some(Value::Nil));
        }
        *this.borrow_mut() = new;
        return Ok(Some(Value::Str(this.clone())));
    }
    Ok(Some(match name {
        "to_s" | "to_str" | "+@" | "-@" | "b" | "unicode_normalize" | "scrub" | "force_encoding"
        | "encode" | "unpack1"
            if matches!(name, "to_s" | "to_str" | "+@" | "-@") =>
        {
            Value::Str(this.clone())
        }
        "to_sym" | "intern" => Value::symbol(&text),
        "to_i" => {
            let radix = match args.get(0) {
                Some(_) => u32::try_from(args.int(0)?).unwrap_or(10),
                None => 10,
            };
            Value::Int(leading_int(&text, radix))
        }
        "to_f" => Value::Float(leading_float(&text)),
        "length" | "size" => Value::Int(count(text.chars().count())),
        "bytesize" => Value::Int(count(text.len())),
        "empty?" => Value::Bool(text.is_empty()),
        "strip" => return changed(interp, text.trim_matches(WHITESPACE).to_owned()),
        "lstrip" => return changed(interp, text.trim_start_matches(WHITESPACE).to_owned()),
        "rstrip" => return changed(interp, text.trim_end_matches(WHITESPACE).to_owned()),
        "squish" => return changed(interp, text.split_whitespace().collect::<Vec<_>>().join(" ")),
        "chomp" => {
            let new = match args.get(0) {
                Some(_) => {
                    let end = args.text(0)?;
                    text.strip_suffix(&end).unwrap_or(&text).to_owned()
                }
                None => {
                    let cut = text
                        .strip_suffix('\n')
                        .map(|cut| cut.strip_suffix('\r').unwrap_or(cut));
                    cut.or_else(|| text.strip_suffix('\r'))
                        .unwrap_or(&text)
                        .to_owned()
                }
            };
            return changed(interp, new);
        }
        "chop" => {
            let mut new = text;
            new.pop();
            return changed(interp, new);
        }
        "chr" => return changed(interp, text.chars().take(1).collect()),
        "downcase" => return changed(interp, text.to_lowercase()),
        "upcase" => return changed(interp, text.to_uppercase()),
        "capitalize" => return changed(interp, capitalize(&text)),
        "swapcase" => {
            let swap = |c: char| match c.is_uppercase() {
                true => c.to_lowercase().collect::<String>(),
                false => c.to_uppercase().collect(),
            };
            return changed(interp, text.chars().map(swap).collect());
        }
        "reverse" => return changed(interp, text.chars().rev().collect()),
        "delete_prefix" => {
            let prefix = args.text(0)?;
            return changed(interp, text.strip_prefix(&prefix).unwrap_or(&text).to_owned());
        }
        "delete_suffix" => {
            let suffix = args.text(0)?;
            return changed(interp, text.strip_suffix(&suffix).unwrap_or(&text).to_owned());
        }
        "start_with?" | "starts_with?" => Value::Bool(affix(args, |prefix| text.starts_with(prefix), &text)?),
        "end_with?" | "ends_with?" => Value::Bool(affix(args, |suffix| text.ends_with(suffix), &text)?),
        "include?" => Value::Bool(text.contains(&args.text(0)?)),
        "exclude?" => Value::Bool(!text.contains(&args.text(0)?)),
        "match?" => Value::Bool(pattern(args, 0)?.is_match(&text)),
        "=~" => match args.get(0) {
            Some(Value::Regex(regex)) => {
                interp.remember_match(regex.captures(&text));
                regex
                    .find(&text)
                    .map_or(Value::Nil, |offset| Value::Int(count(offset)))
            }
            _ => return Ok(None),
        },
        "match" => interp.remember_match(pattern(args, 0)?.captures(&text)),
        "scan" => {
            let found = pattern(args, 0)?.all(&text);
            interp.work(found.len(), at)?;
            let list: Vec<Value> = found.into_iter().map(scanned).collect();
            if args.block.is_some() {
                for item in list {
                    call(interp, args, vec![item])?;
                }
                Value::Str(this.clone())
            } else {
                Value::array(list)
            }
        }
        "+" => {
            let other = args.text(0)?;
            return changed(interp, text + &other);
        }
        "*" => {
            let times = usize::try_from(args.int(0)?)
                .map_err(|_| raise("ArgumentError", "argument must be non-negative", at))?;
            interp.charge(text.len().saturating_mul(times), at)?;
            Value::str(text.repeat(times))
        }
        "%" => {
            let values = match args.get(0) {
                Some(Value::Array(list)) => list.borrow().clone(),
                Some(other) => vec![other.clone()],
                None => return Ok(None),
            };
            let formatted = format::format(&text, &values, at)?;
            return changed(interp, formatted);
        }
        "<<" | "concat" => {
            for index in 0..args.list.len() {
                let more = args.text(index)?;
                interp.charge(this.borrow().len() + more.len(), at)?;
                this.borrow_mut().push_str(&more);
            }
            Value::Str(this.clone())
        }
        "prepend" => {
            *this.borrow_mut() = args.text(0)? + &text;
            Value::Str(this.clone())
        }
        "replace" => {
            *this.borrow_mut() = args.text(0)?;
            Value::Str(this.clone())
        }
        "insert" => {
            let mut chars: Vec<char> = text.chars().collect();
            let index = args.int(0)?;
            let length = count(chars.len());
            let place = if index < 0 { length + index + 1 } else { index };
            let place = usize::try_from(place)
                .ok()
                .filter(|place| *place <= chars.len())
                .ok_or_else(|| raise("IndexError", format!("index {index} out of string"), at))?;
            chars.splice(place..place, args.text(1)?.chars());
            *this.borrow_mut() = chars.into_iter().collect();
            Value::Str(this.clone())
        }
        "<" | ">" | "<=" | ">=" => {
            let other = args.text(0).map_err(|_| {
                let given = args.get(0).map_or("nil".to_owned(), Value::inspect);
                raise(
                    "ArgumentError",
                    format!("comparison of String with {given} failed"),
                    at,
                )
            })?;
            Value::Bool(match name {
                "<" => text < other,
                ">" => text > other,
                "<=" => text <= other,
                _ => text >= other,
            })
        }
        "casecmp?" => Value::Bool(text.to_lowercase() == args.text(0)?.to_lowercase()),
        "casecmp" => Value::Int(text.to_ascii_lowercase().cmp(&args.text(0)?.to_ascii_lowercase()) as i64),
        "split" => split(interp, &text, args)?,
        "lines" | "each_line" => {
            let chomp = args.option("chomp").is_some_and(|value| value.truthy());
            let list: Vec<Value> = text
                .split_inclusive('\n')
                .map(|line| {
                    Value::str(if chomp {
                        line.trim_end_matches(['\n', '\r'])
                    } else {
                        line
                    })
                })
                .collect();
            return each_or_list(interp, list, this, args);
        }
        "chars" | "each_char" => {
            interp.work(text.len(), at)?;
            let list = text.chars().map(|c| Value::str(c.to_string())).collect();
            return each_or_list(interp, list, this, args);
        }
        "bytes" => {
            interp.work(text.len(), at)?;
            Value::array(text.bytes().map(|byte| Value::Int(i64::from(byte))).collect())
        }
        "ord" => Value::Int(text.chars().next().map_or(0, |c| i64::from(c as u32))),
        "hex" => Value::Int(leading_int(text.trim_start_matches("0x"), 16)),
        "oct" => Value::Int(leading_int(&text, 8)),
        "count" => {
            let set = char_set(&args.text(0)?);
            Value::Int(count(text.chars().filter(|c| set(*c)).count()))
        }
        "delete" => {
            let set = char_set(&args.text(0)?);
            return changed(interp, text.chars().filter(|c| !set(*c)).collect());
        }
        "squeeze" => {
            let set: Box<dyn Fn(char) -> bool> = match args.get(0) {
                Some(_) => Box::new(char_set(&args.text(0)?)),
                None => Box::new(|_| true),
            };
            let mut new = String::new();
            for c in text.chars() {
                if !(set(c) && new.ends_with(c)) {
                    new.push(c);
                }
            }
            return changed(interp, new);
        }
        "tr" | "tr_s" if name == "tr" => {
            return changed(interp, transliterate(&text, &args.text(0)?, &args.text(1)?));
        }
        "sub" | "gsub" => {
            let new = substitute(interp, &text, args, name == "gsub")?;
            return changed(interp, new);
        }
        "remove" => {
            let mut new = text;
            for index in 0..args.list.len() {
                let found = pattern(args, index)?;
                for range in found.ranges(&new).into_iter().rev() {
                    new.replace_range(range, "");
                }
            }
            return changed(interp, new);
        }
        "index" => match args.get(0) {
            Some(Value::Regex(regex)) => regex
                .find(&text)
                .map_or(Value::Nil, |offset| Value::Int(count(offset))),
            _ => text.find(&args.text(0)?).map_or(Value::Nil, |offset| {
                Value::Int(count(text[..offset].chars().count()))
            }),
        },
        "rindex" => text.rfind(&args.text(0)?).map_or(Value::Nil, |offset| {
            Value::Int(count(text[..offset].chars().count()))
        }),
        "partition" | "rpartition" => partition(&text, args, name == "rpartition")?,
        "ljust" | "rjust" | "center" => {
            let width = usize::try_from(args.int(0)?).unwrap_or(0);
            interp.charge(width, at)?;
            let pad = if args.get(1).is_some() {
                args.text(1)?
            } else {
                " ".to_owned()
            };
            return changed(interp, justify(&text, width, &pad, name));
        }
        "[]" | "slice" => index(interp, &text, args)?,
        "[]=" => return Err(unsupported("assigning to a part of a string", at)),
        "first" | "last" => {
            let wanted = match args.get(0) {
                Some(_) => usize::try_from(args.int(0)?).unwrap_or(0),
                None => 1,
            };
            let length = text.chars().count();
            let skip = if name == "first" {
                0
            } else {
                length.saturating_sub(wanted)
            };
            return changed(interp, text.chars().skip(skip).take(wanted).collect());
        }
        "at" => index(interp, &text, args)?,
        "from" => {
            let start = usize::try_from(args.int(0)?).unwrap_or(0);
            return changed(interp, text.chars().skip(start).collect());
        }
        "truncate" => {
            let limit = usize::try_from(args.int(0)?).unwrap_or(0);
            if text.chars().count() <= limit {
                return changed(interp, text);
            }
            let kept: String = text.chars().take(limit.saturating_sub(3)).collect();
            return changed(interp, kept + "...");
        }
        "shellescape" => return changed(interp, crate::secrets::shell::escape(&text)),
        "shellsplit" => {
            let words =
                crate::secrets::shell::split(&text).map_err(|what| raise("ArgumentError", what, at))?;
            Value::array(words.into_iter().map(Value::str).collect())
        }
        "parameterize" => {
            let separator = match args.option("separator") {
                Some(separator) => separator.to_text(),
                None => "-".to_owned(),
            };
            let mut new = String::new();
            for c in text.to_lowercase().chars() {
                if c.is_ascii_alphanumeric() || c == '_' || c == '-' {
                    new.push(c);
                } else if !new.is_empty() && !new.ends_with(&separator) {
                    new.push_str(&separator);
                }
            }
            return changed(interp, new.trim_end_matches(&separator).to_owned());
        }
        "dasherize" => return changed(interp, text.replace('_', "-")),
        "underscore" => return changed(interp, underscore(&text)),
        "inquiry" | "unpack" | "crypt" | "sum" | "each_grapheme_cluster" => {
            return Err(unsupported(format!("`{name}'"), at));
        }
        "ascii_only?" => Value::Bool(text.is_ascii()),
        "valid_encoding?" => Value::Bool(true),
        "upto" => {
            let end = Value::str(args.text(0)?);
            let range = Value::Range(Rc::new(Range {
                low: Value::Str(this.clone()),
                high: end,
                exclusive: false,
            }));
            for item in interp.elements(&range, at)? {
                call(interp, args, vec![item])?;
            }
            Value::Str(this.clone())
        }
        "succ" | "next" => return changed(interp, successor(&text)),
        "eql?" | "equal?" | "==" => Value::Bool(
            args.get(0)
                .is_some_and(|other| Value::Str(this.clone()).equals(other)),
        ),
        _ => return Ok(None),
    }))
}

pub(super) fn symbol(interp: &mut Interp<'_, '_>, this: &Rc<str>, name: &str, args: &Args<'_>) -> Found {
    Ok(Some(match name {
        "to_sym" => Value::Symbol(this.clone()),
        "to_s" | "name" | "id2name" => Value::str(&**this),
        "to_proc" => Value::Proc(Rc::new(super::super::value::Proc::Symbol(this.clone()))),
        "upcase" | "downcase" | "capitalize" | "succ" => {
            let text = Rc::new(RefCell::new(this.to_string()));
            match method(interp, &text, name, args)? {
                Some(new) => Value::symbol(&new.to_text()),
                None => return Ok(None),
            }
        }
        "length" | "size" | "empty?" | "[]" | "start_with?" | "end_with?" | "=~" | "match" | "match?" => {
            let text = Rc::new(RefCell::new(this.to_string()));
            return method(interp, &text, name, args);
        }
        _ => return Ok(None),
    }))
}

pub(super) fn regex(interp: &mut Interp<'_, '_>, this: &Rc<Pattern>, name: &str, args: &Args<'_>) -> Found {
    let subject = match args.get(0) {
        Some(Value::Str(text)) => Some(text.borrow().clone()),
        Some(Value::Symbol(text)) => Some(text.to_string()),
        _ => None,
    };
    Ok(Some(match (name, subject) {
        ("match?", subject) => Value::Bool(subject.is_some_and(|subject| this.is_match(&subject))),
        ("match", Some(subject)) => interp.remember_match(this.captures(&subject)),
        ("=~", Some(subject)) => {
            interp.remember_match(this.captures(&subject));
            this.find(&subject)
                .map_or(Value::Nil, |offset| Value::Int(count(offset)))
        }
        ("match" | "=~", None) => Value::Nil,
        ("source", _) => Value::str(this.source.as_str()),
        _ => return Ok(None),
    }))
}

pub(super) fn count(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

/// An argument that is a regular expression, or text that means itself.
fn pattern(args: &Args<'_>, index: usize) -> Result<Rc<Pattern>, super::Flow> {
    match args.get(index) {
        Some(Value::Regex(regex)) => Ok(regex.clone()),
        _ => Pattern::literal(&args.text(index)?)
            .map(Rc::new)
            .map_err(|what| unsupported(what, args.at)),
    }
}

fn affix(args: &Args<'_>, test: impl Fn(&str) -> bool, text: &str) -> Result<bool, super::Flow> {
    for index in 0..args.list.len() {
        let hit = match args.get(index) {
            Some(Value::Regex(regex)) => regex.find(text) == Some(0),
            _ => test(&args.text(index)?),
        };
        if hit {
            return Ok(true);
        }
    }
    Ok(false)
}

fn scanned(found: Match) -> Value {
    if found.groups.len() == 1 {
        return Value::optional_str(found.groups.into_iter().next().flatten());
    }
    Value::array(
        found
            .groups
            .into_iter()
            .skip(1)
            .map(Value::optional_str)
            .collect(),
    )
}

fn each_or_list(interp: &mut Interp<'_, '_>, list: Vec<Value>, this: &Text, args: &Args<'_>) -> Found {
    if args.block.is_none() {
        return Ok(Some(Value::array(list)));
    }
    for item in list {
        call(interp, args, vec![item])?;
    }
    Ok(Some(Value::Str(this.clone())))
}

/// `String#split`: blanks by default, trailing empty fields dropped unless a limit is given.
fn split(interp: &mut Interp<'_, '_>, text: &str, args: &Args<'_>) -> super::Eval {
    let limit = match args.get(1) {
        Some(_) => args.int(1)?,
        None => 0,
    };
    let most = usize::try_from(limit).ok().filter(|most| *most > 0);
    interp.work(text.len() / 8, args.at)?;
    let mut parts: Vec<String> = match args.get(0) {
        None | Some(Value::Nil) => split_blanks(text, most),
        Some(Value::Str(separator)) if &*separator.borrow() == " " => split_blanks(text, most),
        Some(Value::Str(separator)) if separator.borrow().is_empty() => {
            text.chars().map(String::from).collect()
        }
        _ => {
            let separator = pattern(args, 0)?;
            let mut parts = Vec::new();
            let mut start = 0;
            for range in separator.ranges(text) {
                if most.is_some_and(|most| parts.len() + 1 >= most) {
                    break;
                }
                if range.is_empty() {
                    if range.start == 0 || range.start >= text.len() {
                        continue;
                    }
                } else if range.end == 0 {
                    continue;
                }
                parts.push(text[start..range.start].to_owned());
                start = range.end;
            }
            if !text.is_empty() {
                parts.push(text[start..].to_owned());
            }
            parts
        }
    };
    if limit == 0 {
        while parts.last().is_some_and(String::is_empty) {
            parts.pop();
        }
    }
    Ok(Value::array(parts.into_iter().map(Value::str).collect()))
}

fn split_blanks(text: &str, most: Option<usize>) -> Vec<String> {
    let blank = |c: char| WHITESPACE.contains(&c);
    let mut rest = text.trim_start_matches(blank);
    let mut parts = Vec::new();
    while !rest.is_empty() {
        if most.is_some_and(|most| parts.len() + 1 >= most) {
            parts.push(rest.to_owned());
            return parts;
        }
        let end = rest.find(blank).unwrap_or(rest.len());
        parts.push(rest[..end].to_owned());
        rest = rest[end..].trim_start_matches(blank);
    }
    parts
}

fn substitute(
    interp: &mut Interp<'_, '_>,
    text: &str,
    args: &Args<'_>,
    all: bool,
) -> Result<String, super::Flow> {
    let regex = pattern(args, 0)?;
    let (ranges, found) = (regex.ranges(text), regex.all(text));
    interp.work(ranges.len(), args.at)?;
    let mut new = String::new();
    let mut start = 0;
    let last = if all { found.last() } else { found.first() };
    let last = last.cloned();
    for (range, found) in ranges.into_iter().zip(found) {
        new.push_str(&text[start..range.start]);
        start = range.end;
        match args.get(1) {
            Some(Value::Hash(map)) => {
                let key = super::super::value::Key::Str(text[range.clone()].to_owned());
                new.push_str(&map.borrow().get(&key).map(Value::to_text).unwrap_or_default());
            }
            Some(_) => new.push_str(&expand(&args.text(1)?, &found)),
            None => {
                interp.remember_match(Some(found));
                let value = call(interp, args, vec![Value::str(&text[range.clone()])])?;
                new.push_str(&value.to_text());
            }
        }
        if !all {
            break;
        }
    }
    new.push_str(&text[start..]);
    interp.remember_match(last);
    Ok(new)
}

fn partition(text: &str, args: &Args<'_>, last: bool) -> super::Eval {
    let ranges = pattern(args, 0)?.ranges(text);
    let found = if last { ranges.last() } else { ranges.first() };
    let parts = match (found, last) {
        (Some(range), _) => [&text[..range.start], &text[range.clone()], &text[range.end..]],
        (None, false) => [text, "", ""],
        (None, true) => ["", "", text],
    };
    Ok(Value::array(parts.into_iter().map(Value::str).collect()))
}

/// `text[…]` with an index, a range, a pattern or a string.
fn index(interp: &mut Interp<'_, '_>, text: &str, args: &Args<'_>) -> super::Eval {
    let length = text.chars().count();
    match (args.get(0), args.get(1)) {
        (Some(Value::Regex(regex)), group) => {
            let Some(found) = regex.captures(text) else {
                interp.remember_match(None);
                return Ok(Value::Nil);
            };
            let index = match group {
                None => Some(0),
                Some(Value::Int(index)) => usize::try_from(*index).ok(),
                Some(name) => {
                    let name = name.to_text();
                    found
                        .names
                        .iter()
                        .find(|(found, _)| *found == name)
                        .map(|(_, index)| *index)
                }
            };
            let value = index.and_then(|index| found.groups.get(index).cloned().flatten());
            interp.remember_match(Some(found));
            Ok(Value::optional_str(value))
        }
        (Some(Value::Str(part)), None) => Ok(match text.contains(&*part.borrow()) {
            true => Value::str(part.borrow().clone()),
            false => Value::Nil,
        }),
        (Some(Value::Int(start)), None) => Ok(place(*start, length)
            .and_then(|start| text.chars().nth(start))
            .map_or(Value::Nil, |c| Value::str(c.to_string()))),
        (Some(Value::Int(start)), Some(Value::Int(wanted))) => {
            let start = place(*start, length + 1);
            let (Some(start), Ok(wanted)) =
                (start.filter(|start| *start <= length), usize::try_from(*wanted))
            else {
                return Ok(Value::Nil);
            };
            interp.new_str(text.chars().skip(start).take(wanted).collect::<String>(), args.at)
        }
        (Some(Value::Range(range)), None) => match super::list::bounds(range, length, args.at)? {
            Some((start, end)) => interp.new_str(
                text.chars().skip(start).take(end - start).collect::<String>(),
                args.at,
            ),
            None => Ok(Value::Nil),
        },
        _ => Err(raise("TypeError", "no implicit conversion into Integer", args.at)),
    }
}

/// An index that may count from the end; `None` when outside.
pub(super) fn place(index: i64, length: usize) -> Option<usize> {
    let index = if index < 0 { index + count(length) } else { index };
    usize::try_from(index).ok().filter(|index| *index < length)
}

/// Methods of a `MatchData`.
pub(super) fn match_data(found: &Match, name: &str, args: &Args<'_>) -> Found {
    let group = |index: usize| Value::optional_str(found.groups.get(index).cloned().flatten());
    let list = |skip: usize| {
        Value::array(
            found
                .groups
                .iter()
                .skip(skip)
                .cloned()
                .map(Value::optional_str)
                .collect(),
        )
    };
    Ok(Some(match name {
        "[]" => match args.get(0) {
            Some(Value::Int(index)) => place(*index, found.groups.len()).map_or(Value::Nil, group),
            Some(name) => {
                let name = name.to_text();
                match found.names.iter().find(|(known, _)| *known == name) {
                    Some((_, index)) => group(*index),
                    None => {
                        return Err(raise(
                            "IndexError",
                            format!("undefined group name reference: {name}"),
                            args.at,
                        ));
                    }
                }
            }
            None => return Ok(None),
        },
        "captures" => list(1),
        "to_a" => list(0),
        "pre_match" => Value::str(found.before.as_str()),
        "post_match" => Value::str(found.after.as_str()),
        "named_captures" => Value::hash(
            found
                .names
                .iter()
                .map(|(name, index)| (super::super::value::Key::Str(name.clone()), group(*index)))
                .collect(),
        ),
        _ => return Ok(None),
    }))
}

/// `Regexp.new`, `Regexp.escape` and `Regexp.union`.
pub(super) fn regexp_module(name: &str, args: &Args<'_>) -> Found {
    let built = match name {
        "new" => match args.get(0) {
            Some(Value::Regex(_)) => return Ok(args.get(0).cloned()),
            _ => Pattern::compile(&args.text(0)?, ""),
        },
        "escape" | "quote" => return Ok(Some(Value::str(regex::escape(&args.text(0)?)))),
        _ => return Ok(None),
    };
    match built {
        Ok(pattern) => Ok(Some(Value::Regex(Rc::new(pattern)))),
        Err(what) => Err(unsupported(what, args.at)),
    }
}

/// The object behind `$~`, for callers that hold it as an object.
pub(super) fn as_match(object: &Object) -> Option<&Match> {
    match object {
        Object::Match(found) => Some(found),
        _ => None,
    }
}
