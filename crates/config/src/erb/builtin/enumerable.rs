//! `Enumerable`: what arrays, hashes and ranges have in common.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::rc::Rc;

use indexmap::IndexMap;

use super::super::interp::{Interp, raise, unsupported};
use super::super::value::{Key, Object, Value};
use super::list::{array, insert_pair};
use super::string::count;
use super::{Args, Found, call};

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
