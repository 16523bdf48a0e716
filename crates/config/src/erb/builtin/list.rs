//! `Array`, `Range` and `Enumerable`.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::rc::Rc;

use indexmap::IndexMap;

use super::super::interp::{Flow, Interp, raise, unsupported};
use super::super::value::{Key, Object, Range, Value};
use super::string::{count, place, successor};
use super::{Args, Found, call};

/// Ranges longer than this are never spread out.
const LONGEST_RANGE: i64 = 100_000;

/// The elements of an array, hash (as pairs) or range.
pub(in super::super) fn elements_of(
    interp: &mut Interp<'_, '_>,
    value: &Value,
    at: usize,
) -> Result<Vec<Value>, Flow> {
    let list = match value {
        Value::Array(list) => list.borrow().clone(),
        Value::Hash(map) => map
            .borrow()
            .iter()
            .map(|(key, value)| Value::array(vec![key.value(), value.clone()]))
            .collect(),
        Value::Env => interp
            .ctx
            .env
            .iter()
            .map(|(key, value)| Value::array(vec![Value::str(key.as_str()), Value::str(value.as_str())]))
            .collect(),
        Value::Nil => return Err(raise("NoMethodError", "undefined method `each' for nil", at)),
        Value::Range(range) => return range_elements(interp, range, at),
        other => {
            let message = format!("undefined method `each' for {}", other.receiver_name());
            return Err(raise("NoMethodError", message, at));
        }
    };
    interp.work(list.len(), at)?;
    Ok(list)
}

fn range_elements(interp: &mut Interp<'_, '_>, range: &Range, at: usize) -> Result<Vec<Value>, Flow> {
    match (&range.low, &range.high) {
        (Value::Int(low), Value::Int(high)) => {
            let end = if range.exclusive {
                *high
            } else {
                high.saturating_add(1)
            };
            if end.saturating_sub(*low) > LONGEST_RANGE {
                return Err(Flow::Budget {
                    limit: "100000 elements of a range",
                    at,
                });
            }
            interp.work(usize::try_from(end.saturating_sub(*low)).unwrap_or(0), at)?;
            Ok((*low..end).map(Value::Int).collect())
        }
        (Value::Str(low), Value::Str(high)) => {
            let (low, high) = (low.borrow().clone(), high.borrow().clone());
            let mut list = Vec::new();
            let mut current = low;
            while current.chars().count() <= high.chars().count() {
                interp.work(1, at)?;
                let last = current == high;
                if !(last && range.exclusive) {
                    list.push(Value::str(current.as_str()));
                }
                if last || count(list.len()) > LONGEST_RANGE {
                    break;
                }
                current = successor(&current);
            }
            Ok(list)
        }
        _ => Err(raise(
            "TypeError",
            format!("can't iterate from {}", range.low.class()),
            at,
        )),
    }
}

/// `range === value`.
pub(in super::super) fn range_includes(range: &Value, value: &Value) -> bool {
    let Value::Range(range) = range else { return false };
    let after_low = matches!(range.low, Value::Nil)
        || matches!(range.low.compare(value), Some(Ordering::Less | Ordering::Equal));
    let before_high = matches!(range.high, Value::Nil)
        || match value.compare(&range.high) {
            Some(Ordering::Less) => true,
            Some(Ordering::Equal) => !range.exclusive,
            _ => false,
        };
    after_low && before_high
}

/// The slice a range means in something of `length`; `None` when it begins outside.
pub(super) fn bounds(range: &Range, length: usize, at: usize) -> Result<Option<(usize, usize)>, Flow> {
    let int = |value: &Value, default: i64| match value {
        Value::Int(value) => Ok(*value),
        Value::Nil => Ok(default),
        other => Err(raise(
            "TypeError",
            format!("no implicit conversion of {} into Integer", other.class()),
            at,
        )),
    };
    let size = count(length);
    let wrap = |index: i64| if index < 0 { index + size } else { index };
    let low = wrap(int(&range.low, 0)?);
    let endless = matches!(range.high, Value::Nil);
    let high = wrap(int(&range.high, -1)?).saturating_add(i64::from(!range.exclusive || endless));
    let Ok(start) = usize::try_from(low) else {
        return Ok(None);
    };
    if start > length {
        return Ok(None);
    }
    let end = usize::try_from(high).unwrap_or(0).clamp(start, length.max(start));
    Ok(Some((start, end)))
}

pub(super) fn range(interp: &mut Interp<'_, '_>, this: &Rc<Range>, name: &str, args: &Args<'_>) -> Found {
    let at = args.at;
    let value = Value::Range(this.clone());
    Ok(Some(match name {
        "begin" | "first" | "min" if args.list.is_empty() && args.block.is_none() => this.low.clone(),
        "end" => this.high.clone(),
        "include?" | "member?" | "cover?" | "===" => {
            Value::Bool(args.get(0).is_some_and(|item| range_includes(&value, item)))
        }
        "each" => {
            for item in interp.elements(&value, at)? {
                call(interp, args, vec![item])?;
            }
            value
        }
        "step" | "%" => {
            let step = args.int(0)?;
            if step <= 0 {
                return Err(raise("ArgumentError", "step can't be 0 or negative", at));
            }
            let list: Vec<Value> = interp
                .elements(&value, at)?
                .into_iter()
                .step_by(usize::try_from(step).unwrap_or(1))
                .collect();
            if args.block.is_none() {
                return Ok(Some(Value::array(list)));
            }
            for item in list {
                call(interp, args, vec![item])?;
            }
            value
        }
        "==" | "to_s" | "inspect" | "class" | "is_a?" | "nil?" | "blank?" | "present?" | "presence"
        | "dup" | "freeze" => {
            return Ok(None);
        }
        _ => {
            let list = Rc::new(RefCell::new(interp.elements(&value, at)?));
            return array(interp, &list, name, args);
        }
    }))
}

type List = Rc<RefCell<Vec<Value>>>;

pub(super) fn array(interp: &mut Interp<'_, '_>, this: &List, name: &str, args: &Args<'_>) -> Found {
    let at = args.at;
    let list = this.borrow().clone();
    interp.work(list.len() / 4, at)?;
    // `compact!` and the like replace the contents and give nil when nothing changed.
    if let Some(plain) = name.strip_suffix('!').filter(|plain| !plain.is_empty()) {
        const IN_PLACE: &[&str] = &[
            "compact", "flatten", "map", "collect", "select", "filter", "reject", "reverse", "rotate",
            "shuffle", "sort", "sort_by", "uniq", "keep_if", "slice",
        ];
        if !IN_PLACE.contains(&plain) {
            return Ok(None);
        }
        let Some(Value::Array(new)) = array(interp, this, plain, args)? else {
            return Ok(None);
        };
        let new = new.borrow().clone();
        let same = Value::array(new.clone()).equals(&Value::Array(this.clone()));
        *this.borrow_mut() = new;
        let keeps_self = matches!(
            plain,
            "map" | "collect" | "sort" | "sort_by" | "reverse" | "rotate"
        );
        return Ok(Some(if same && !keeps_self {
            Value::Nil
        } else {
            Value::Array(this.clone())
        }));
    }
    Ok(Some(match name {
        "to_a" | "entries" | "to_ary" => Value::Array(this.clone()),
        "length" | "size" => Value::Int(count(list.len())),
        "empty?" => Value::Bool(list.is_empty()),
        "[]" | "slice" => match (args.get(0), args.get(1)) {
            (Some(Value::Range(range)), None) => match bounds(range, list.len(), at)? {
                Some((start, end)) => Value::array(list[start..end].to_vec()),
                None => Value::Nil,
            },
            (Some(_), Some(_)) => {
                let start = place(args.int(0)?, list.len() + 1);
                match (start, usize::try_from(args.int(1)?)) {
                    (Some(start), Ok(length)) => {
                        Value::array(list.into_iter().skip(start).take(length).collect())
                    }
                    _ => Value::Nil,
                }
            }
            _ => place(args.int(0)?, list.len()).map_or(Value::Nil, |index| list[index].clone()),
        },
        "at" => place(args.int(0)?, list.len()).map_or(Value::Nil, |index| list[index].clone()),
        "second" => list.get(1).cloned().unwrap_or(Value::Nil),
        "third" => list.get(2).cloned().unwrap_or(Value::Nil),
        "dig" => {
            let first = place(args.int(0)?, list.len()).map_or(Value::Nil, |index| list[index].clone());
            match (args.list.len(), &first) {
                (1, _) | (_, Value::Nil) => first,
                _ => interp.send(first, "dig", args.list[1..].to_vec(), None, at)?,
            }
        }
        "fetch" => match (place(args.int(0)?, list.len()), args.get(1), args.block) {
            (Some(index), _, _) => list[index].clone(),
            (None, _, Some(_)) => call(interp, args, vec![args.list[0].clone()])?,
            (None, Some(default), None) => default.clone(),
            (None, None, None) => {
                let (index, size) = (args.int(0)?, list.len());
                let message = format!("index {index} outside of array bounds: -{size}...{size}");
                return Err(raise("IndexError", message, at));
            }
        },
        "[]=" => {
            let index = args.int(0)?;
            let size = count(list.len());
            let index = usize::try_from(if index < 0 { index + size } else { index })
                .ok()
                .filter(|index| *index < 100_000)
                .ok_or_else(|| raise("IndexError", format!("index {index} out of range"), at))?;
            let value = args.get(1).cloned().unwrap_or(Value::Nil);
            let mut inner = this.borrow_mut();
            if index >= inner.len() {
                inner.resize(index + 1, Value::Nil);
            }
            inner[index] = value.clone();
            value
        }
        "<<" | "push" | "append" => {
            interp.charge(16 * args.list.len(), at)?;
            this.borrow_mut().extend(args.list.iter().cloned());
            Value::Array(this.clone())
        }
        "unshift" | "prepend" => {
            this.borrow_mut().splice(0..0, args.list.iter().cloned());
            Value::Array(this.clone())
        }
        "pop" => this.borrow_mut().pop().unwrap_or(Value::Nil),
        "shift" => {
            if list.is_empty() {
                Value::Nil
            } else {
                this.borrow_mut().remove(0)
            }
        }
        "concat" => {
            for index in 0..args.list.len() {
                let more = interp.elements(&args.list[index], at)?;
                interp.charge(16 * more.len(), at)?;
                this.borrow_mut().extend(more);
            }
            Value::Array(this.clone())
        }
        "delete" => {
            let wanted = args.get(0).cloned().unwrap_or(Value::Nil);
            this.borrow_mut().retain(|item| !item.equals(&wanted));
            if this.borrow().len() == list.len() {
                Value::Nil
            } else {
                wanted
            }
        }
        "delete_at" => match place(args.int(0)?, list.len()) {
            Some(index) => this.borrow_mut().remove(index),
            None => Value::Nil,
        },
        "clear" => {
            this.borrow_mut().clear();
            Value::Array(this.clone())
        }
        "replace" => {
            let new = match args.get(0) {
                Some(other) => interp.elements(other, at)?,
                None => return Ok(None),
            };
            *this.borrow_mut() = new;
            Value::Array(this.clone())
        }
        "+" | "|" | "-" | "&" | "union" | "difference" | "intersection" => {
            let other = match args.get(0) {
                Some(Value::Array(other)) => other.borrow().clone(),
                other => {
                    let class = other.map_or_else(|| "nil".to_owned(), super::implicit_name);
                    return Err(raise(
                        "TypeError",
                        format!("no implicit conversion of {class} into Array"),
                        at,
                    ));
                }
            };
            interp.work(list.len().saturating_mul(other.len()) / 16, at)?;
            interp.charge(16 * (list.len() + other.len()), at)?;
            let within = |item: &Value| other.iter().any(|wanted| wanted.equals(item));
            Value::array(match name {
                "+" => list.into_iter().chain(other).collect(),
                "|" | "union" => unique(list.into_iter().chain(other).collect()),
                "-" | "difference" => list.into_iter().filter(|item| !within(item)).collect(),
                _ => unique(list.into_iter().filter(|item| within(item)).collect()),
            })
        }
        "*" => match args.get(0) {
            Some(Value::Str(_)) => join(interp, &list, &args.text(0)?, at)?,
            _ => {
                let times = usize::try_from(args.int(0)?).unwrap_or(0);
                interp.charge(16usize.saturating_mul(list.len()).saturating_mul(times), at)?;
                Value::array(std::iter::repeat_n(list, times).flatten().collect())
            }
        },
        "join" => {
            let separator = match args.get(0) {
                Some(Value::Nil) | None => String::new(),
                Some(_) => args.text(0)?,
            };
            join(interp, &list, &separator, at)?
        }
        "to_sentence" => {
            let words: Vec<String> = list.iter().map(Value::to_text).collect();
            Value::str(match words.as_slice() {
                [] => String::new(),
                [one] => one.clone(),
                [one, two] => format!("{one} and {two}"),
                [most @ .., last] => format!("{}, and {last}", most.join(", ")),
            })
        }
        "reverse" => Value::array(list.into_iter().rev().collect()),
        "rotate" => {
            let mut list = list;
            if !list.is_empty() {
                let by = if args.list.is_empty() { 1 } else { args.int(0)? };
                let by = usize::try_from(by.rem_euclid(count(list.len()))).unwrap_or(0);
                list.rotate_left(by);
            }
            Value::array(list)
        }
        "compact" => Value::array(
            list.into_iter()
                .filter(|item| !matches!(item, Value::Nil))
                .collect(),
        ),
        "compact_blank" => Value::array(list.into_iter().filter(|item| !item.is_blank()).collect()),
        "flatten" => {
            let depth = if args.list.is_empty() {
                i64::MAX
            } else {
                args.int(0)?
            };
            let mut flat = Vec::new();
            flatten(interp, &list, depth, 0, &mut flat, at)?;
            Value::array(flat)
        }
        "to_h" if args.block.is_none() => {
            let mut map = IndexMap::new();
            for pair in list {
                insert_pair(&mut map, &pair, at)?;
            }
            Value::hash(map)
        }
        "transpose" | "product" | "combination" | "permutation" | "bsearch" | "pack" | "shuffle"
        | "sample" | "lazy" => {
            return Err(unsupported(format!("`{name}'"), at));
        }
        "values_at" => {
            let mut found = Vec::new();
            for index in 0..args.list.len() {
                found.push(
                    place(args.int(index)?, list.len()).map_or(Value::Nil, |index| list[index].clone()),
                );
            }
            Value::array(found)
        }
        "insert" => {
            let index = place(args.int(0)?, list.len() + 1)
                .ok_or_else(|| raise("IndexError", "index out of range", at))?;
            this.borrow_mut()
                .splice(index..index, args.list[1..].iter().cloned());
            Value::Array(this.clone())
        }
        "assoc" => list
            .iter()
            .find(|pair| match (pair, args.get(0)) {
                (Value::Array(pair), Some(key)) => {
                    pair.borrow().first().is_some_and(|first| first.equals(key))
                }
                _ => false,
            })
            .cloned()
            .unwrap_or(Value::Nil),
        "each" if args.block.is_some() => {
            for item in list {
                call(interp, args, vec![item])?;
            }
            Value::Array(this.clone())
        }
        _ => return enumerable(interp, list, name, args),
    }))
}

/// `Enumerable`, for the elements of anything.
#[allow(clippy::too_many_lines)]
pub(super) fn enumerable(
    interp: &mut Interp<'_, '_>,
    list: Vec<Value>,
    name: &str,
    args: &Args<'_>,
) -> Found {
    let at = args.at;
    if args.block.is_none() && args.list.is_empty() {
        let lazy = matches!(
            name,
            "each"
                | "map"
                | "collect"
                | "flat_map"
                | "filter_map"
                | "select"
                | "filter"
                | "reject"
                | "each_entry"
        );
        if lazy {
            return Ok(Some(Value::object(Object::Enumerator(list, name.to_owned()))));
        }
        if name == "each_with_index" {
            return Ok(Some(Value::array(with_index(list, 0))));
        }
    }
    Ok(Some(match name {
        "map" | "collect" | "flat_map" | "collect_concat" | "filter_map" => {
            let mut new = Vec::with_capacity(list.len());
            for item in list {
                let value = call(interp, args, vec![item])?;
                match (name, &value) {
                    ("flat_map" | "collect_concat", Value::Array(inner)) => {
                        new.extend(inner.borrow().iter().cloned())
                    }
                    ("filter_map", value) if !value.truthy() => {}
                    _ => new.push(value),
                }
            }
            Value::array(new)
        }
        "each_with_index" | "each_with_object" | "each_slice" | "each_cons" | "each_entry"
        | "reverse_each" => {
            return each_kind(interp, list, name, args);
        }
        "select" | "filter" | "find_all" | "keep_if" | "reject" | "take_while" | "drop_while"
        | "partition" => {
            let mut kept = Vec::new();
            let mut other = Vec::new();
            let mut dropping = true;
            for item in list {
                if name == "drop_while" && !dropping {
                    kept.push(item);
                    continue;
                }
                let hit = call(interp, args, vec![item.clone()])?.truthy();
                match (name, hit) {
                    ("take_while", false) => break,
                    ("drop_while", true) => {}
                    ("drop_while", false) => {
                        dropping = false;
                        kept.push(item);
                    }
                    ("reject", hit) if !hit => kept.push(item),
                    ("reject", _) => {}
                    (_, true) => kept.push(item),
                    (_, false) => other.push(item),
                }
            }
            match name {
                "partition" => Value::array(vec![Value::array(kept), Value::array(other)]),
                _ => Value::array(kept),
            }
        }
        "grep" | "grep_v" => {
            let pattern = args.get(0).cloned().unwrap_or(Value::Nil);
            let mut found = Vec::new();
            for item in list {
                if interp.case_equals(&pattern, &item, at)? == (name == "grep") {
                    found.push(if args.block.is_some() {
                        call(interp, args, vec![item])?
                    } else {
                        item
                    });
                }
            }
            Value::array(found)
        }
        "find" | "detect" | "find_index" | "index" => {
            for (index, item) in list.into_iter().enumerate() {
                let hit = match args.get(0) {
                    Some(wanted) => wanted.equals(&item),
                    None => call(interp, args, vec![item.clone()])?.truthy(),
                };
                if hit {
                    return Ok(Some(if name.contains("index") {
                        Value::Int(count(index))
                    } else {
                        item
                    }));
                }
            }
            Value::Nil
        }
        "any?" | "all?" | "none?" | "one?" | "many?" => {
            let mut hits = 0;
            let total = list.len();
            for item in list {
                let hit = match (args.get(0), args.block) {
                    (Some(pattern), _) => interp.case_equals(&pattern.clone(), &item, at)?,
                    (None, Some(_)) => call(interp, args, vec![item])?.truthy(),
                    (None, None) => item.truthy(),
                };
                hits += usize::from(hit);
                if name == "any?" && hit || name == "all?" && !hit {
                    return Ok(Some(Value::Bool(hit)));
                }
            }
            Value::Bool(match name {
                "any?" => hits > 0,
                "all?" => hits == total,
                "none?" => hits == 0,
                "many?" => hits > 1,
                _ => hits == 1,
            })
        }
        "include?" | "member?" | "exclude?" => {
            let found = args
                .get(0)
                .is_some_and(|wanted| list.iter().any(|item| item.equals(wanted)));
            Value::Bool(found == (name != "exclude?"))
        }
        "count" => {
            let mut hits = 0;
            for item in list {
                let hit = match (args.get(0), args.block) {
                    (Some(wanted), _) => wanted.equals(&item),
                    (None, Some(_)) => call(interp, args, vec![item])?.truthy(),
                    (None, None) => true,
                };
                hits += i64::from(hit);
            }
            Value::Int(hits)
        }
        "first" | "take" | "last" | "drop" => match (name, args.get(0)) {
            ("first", None) => list.into_iter().next().unwrap_or(Value::Nil),
            ("last", None) => list.into_iter().next_back().unwrap_or(Value::Nil),
            _ => {
                let wanted = usize::try_from(args.int(0)?)
                    .map_err(|_| raise("ArgumentError", "negative array size", at))?;
                let skipped = match name {
                    "last" => list.len().saturating_sub(wanted),
                    "drop" => wanted,
                    _ => 0,
                };
                let taken = if name == "drop" { usize::MAX } else { wanted };
                Value::array(list.into_iter().skip(skipped).take(taken).collect())
            }
        },
        "inject" | "reduce" | "sum" => fold(interp, list, name, args)?,
        "min" | "max" | "minmax" | "sort" | "min_by" | "max_by" | "sort_by" => {
            sorted(interp, list, name, args)?
        }
        "uniq" => {
            let mut seen = Vec::new();
            let mut kept = Vec::new();
            for item in list {
                let key = if args.block.is_some() {
                    call(interp, args, vec![item.clone()])?
                } else {
                    item.clone()
                };
                interp.work(seen.len() / 16, at)?;
                if !seen.iter().any(|known: &Value| known.equals(&key)) {
                    seen.push(key);
                    kept.push(item);
                }
            }
            Value::array(kept)
        }
        "group_by" | "tally" | "index_by" | "index_with" | "to_h" => {
            let mut map: IndexMap<Key, Value> = IndexMap::new();
            for item in list {
                let computed = if args.block.is_some() {
                    call(interp, args, vec![item.clone()])?
                } else {
                    item.clone()
                };
                if name == "to_h" {
                    insert_pair(&mut map, &computed, at)?;
                    continue;
                }
                let (key, value) = match name {
                    "index_with" => (
                        item,
                        if args.block.is_some() {
                            computed
                        } else {
                            args.get(0).cloned().unwrap_or(Value::Nil)
                        },
                    ),
                    _ => (computed, item),
                };
                let key = key.key().ok_or_else(|| unsupported("this hash key", at))?;
                match name {
                    "group_by" => match map.entry(key).or_insert_with(|| Value::array(Vec::new())) {
                        Value::Array(group) => group.borrow_mut().push(value),
                        _ => return Ok(None),
                    },
                    "tally" => {
                        let seen = match map.get(&key) {
                            Some(Value::Int(seen)) => *seen,
                            _ => 0,
                        };
                        map.insert(key, Value::Int(seen + 1));
                    }
                    _ => drop(map.insert(key, value)),
                }
            }
            Value::hash(map)
        }
        "zip" => {
            let mut others = Vec::new();
            for other in args.list {
                others.push(interp.elements(other, at)?);
            }
            let row = |(index, item): (usize, Value)| {
                let rest = others
                    .iter()
                    .map(|other| other.get(index).cloned().unwrap_or(Value::Nil));
                Value::array(std::iter::once(item).chain(rest).collect())
            };
            Value::array(list.into_iter().enumerate().map(row).collect())
        }
        "without" | "excluding" => {
            let kept = list
                .into_iter()
                .filter(|item| !args.list.iter().any(|other| other.equals(item)));
            Value::array(kept.collect())
        }
        "cycle" | "chunk_while" | "slice_when" | "each_entry_with" | "lazy" => {
            return Err(unsupported(format!("`{name}'"), at));
        }
        _ => return Ok(None),
    }))
}

fn with_index(list: Vec<Value>, offset: i64) -> Vec<Value> {
    list.into_iter()
        .enumerate()
        .map(|(index, item)| Value::array(vec![item, Value::Int(offset.saturating_add(count(index)))]))
        .collect()
}

/// `with_index`, `with_object` and what arrays can do, on the result of a method without its block.
pub(super) fn enumerator(
    interp: &mut Interp<'_, '_>,
    list: &[Value],
    method: &str,
    name: &str,
    args: &Args<'_>,
) -> Found {
    let this = Rc::new(RefCell::new(list.to_vec()));
    match name {
        "with_index" | "each_with_index" => {
            let offset = match args.get(0) {
                Some(_) => args.int(0)?,
                None => 0,
            };
            let mut results = Vec::new();
            for (index, item) in list.iter().enumerate() {
                let value = call(
                    interp,
                    args,
                    vec![item.clone(), Value::Int(offset.saturating_add(count(index)))],
                )?;
                match method {
                    "select" | "filter" if value.truthy() => results.push(item.clone()),
                    "reject" if !value.truthy() => results.push(item.clone()),
                    "filter_map" if value.truthy() => results.push(value),
                    "map" | "collect" => results.push(value),
                    "flat_map" => match &value {
                        Value::Array(inner) => results.extend(inner.borrow().iter().cloned()),
                        _ => results.push(value),
                    },
                    _ => {}
                }
            }
            Ok(Some(match method {
                "each" | "each_entry" => Value::Array(this),
                _ => Value::array(results),
            }))
        }
        "with_object" => array(interp, &this, "each_with_object", args),
        "next" | "peek" | "rewind" => Err(unsupported(format!("`{name}' of an enumerator"), args.at)),
        _ => array(interp, &this, name, args),
    }
}

fn each_kind(interp: &mut Interp<'_, '_>, list: Vec<Value>, name: &str, args: &Args<'_>) -> Found {
    let all = Value::array(list.clone());
    match name {
        "each_with_index" => {
            for (index, item) in list.into_iter().enumerate() {
                call(interp, args, vec![item, Value::Int(count(index))])?;
            }
        }
        "each_with_object" => {
            let memo = args.get(0).cloned().unwrap_or(Value::Nil);
            for item in list {
                call(interp, args, vec![item, memo.clone()])?;
            }
            return Ok(Some(memo));
        }
        "each_slice" | "each_cons" => {
            let size = usize::try_from(args.int(0)?)
                .ok()
                .filter(|size| *size > 0)
                .ok_or_else(|| raise("ArgumentError", "invalid slice size", args.at))?;
            let groups: Vec<Value> = match name {
                "each_slice" => list
                    .chunks(size)
                    .map(|group| Value::array(group.to_vec()))
                    .collect(),
                _ => list
                    .windows(size)
                    .map(|group| Value::array(group.to_vec()))
                    .collect(),
            };
            if args.block.is_none() {
                return Ok(Some(Value::array(groups)));
            }
            for group in groups {
                call(interp, args, vec![group])?;
            }
        }
        "reverse_each" => {
            for item in list.into_iter().rev() {
                call(interp, args, vec![item])?;
            }
        }
        _ => {
            for item in list {
                call(interp, args, vec![item])?;
            }
        }
    }
    Ok(Some(all))
}

fn fold(interp: &mut Interp<'_, '_>, list: Vec<Value>, name: &str, args: &Args<'_>) -> super::Eval {
    let at = args.at;
    let mut items = list.into_iter();
    if name == "sum" {
        let mut total = args.get(0).cloned().unwrap_or(Value::Int(0));
        for item in items {
            let value = if args.block.is_some() {
                call(interp, args, vec![item])?
            } else {
                item
            };
            total = interp.send(total, "+", vec![value], None, at)?;
        }
        return Ok(total);
    }
    let operator = match args.list.last() {
        Some(Value::Symbol(operator)) if args.block.is_none() => Some(operator.to_string()),
        _ => None,
    };
    let has_start = args.list.len() > usize::from(operator.is_some());
    let mut memo = match if has_start {
        args.get(0).cloned()
    } else {
        items.next()
    } {
        Some(start) => start,
        None => return Ok(Value::Nil),
    };
    for item in items {
        memo = match &operator {
            Some(operator) => interp.send(memo, operator, vec![item], None, at)?,
            None => call(interp, args, vec![memo, item])?,
        };
    }
    Ok(memo)
}

fn sorted(interp: &mut Interp<'_, '_>, list: Vec<Value>, name: &str, args: &Args<'_>) -> super::Eval {
    let at = args.at;
    let by_key = name.ends_with("_by");
    if args.block.is_some() && !by_key {
        return Err(unsupported(format!("`{name}' with a block"), at));
    }
    let mut keyed = Vec::with_capacity(list.len());
    for item in list {
        let key = if by_key {
            call(interp, args, vec![item.clone()])?
        } else {
            item.clone()
        };
        keyed.push((key, item));
    }
    interp.work(keyed.len() * 4, at)?;
    let mut trouble = None;
    keyed.sort_by(|(a, _), (b, _)| {
        a.compare(b).unwrap_or_else(|| {
            trouble = Some(format!(
                "comparison of {} with {} failed",
                a.class(),
                match b {
                    Value::Nil | Value::Bool(_) | Value::Int(_) => b.inspect(),
                    other => other.class(),
                }
            ));
            Ordering::Equal
        })
    });
    if let Some(message) = trouble {
        return Err(raise("ArgumentError", message, at));
    }
    let mut items: Vec<Value> = keyed.into_iter().map(|(_, item)| item).collect();
    let wanted = match args.get(0) {
        Some(Value::Int(wanted)) => usize::try_from(*wanted).ok(),
        _ => None,
    };
    Ok(match name {
        "sort" | "sort_by" => Value::array(items),
        "minmax" => Value::array(vec![
            items.first().cloned().unwrap_or(Value::Nil),
            items.last().cloned().unwrap_or(Value::Nil),
        ]),
        _ => {
            if name.starts_with("max") {
                items.reverse();
            }
            match wanted {
                Some(wanted) => Value::array(items.into_iter().take(wanted).collect()),
                None => items.into_iter().next().unwrap_or(Value::Nil),
            }
        }
    })
}

fn unique(list: Vec<Value>) -> Vec<Value> {
    let mut kept: Vec<Value> = Vec::new();
    for item in list {
        if !kept.iter().any(|known| known.equals(&item)) {
            kept.push(item);
        }
    }
    kept
}

fn join(interp: &mut Interp<'_, '_>, list: &[Value], separator: &str, at: usize) -> super::Eval {
    let mut flat = Vec::new();
    flatten(interp, list, i64::MAX, 0, &mut flat, at)?;
    let texts: Vec<String> = flat.iter().map(Value::to_text).collect();
    interp.new_str(texts.join(separator), at)
}

fn flatten(
    interp: &mut Interp<'_, '_>,
    list: &[Value],
    depth: i64,
    nesting: usize,
    flat: &mut Vec<Value>,
    at: usize,
) -> Result<(), Flow> {
    interp.work(list.len() + 1, at)?;
    interp.charge(16 * list.len(), at)?;
    if nesting > 200 {
        return Err(raise("ArgumentError", "tried to flatten recursive array", at));
    }
    for item in list {
        match item {
            Value::Array(inner) if depth > 0 => {
                let inner = inner.borrow().clone();
                flatten(interp, &inner, depth - 1, nesting + 1, flat, at)?;
            }
            other => flat.push(other.clone()),
        }
    }
    Ok(())
}

fn insert_pair(map: &mut IndexMap<Key, Value>, pair: &Value, at: usize) -> Result<(), Flow> {
    let Value::Array(pair) = pair else {
        return Err(raise(
            "TypeError",
            format!("wrong element type {} (expected array)", pair.class()),
            at,
        ));
    };
    let pair = pair.borrow();
    let [key, value] = pair.as_slice() else {
        return Err(raise(
            "ArgumentError",
            "element has wrong array length (expected 2)",
            at,
        ));
    };
    let key = key.key().ok_or_else(|| unsupported("this hash key", at))?;
    map.insert(key, value.clone());
    Ok(())
}
