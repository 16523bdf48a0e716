//! `Hash` and `ENV`.

use std::cell::RefCell;
use std::rc::Rc;

use indexmap::IndexMap;

use super::super::interp::{Flow, Interp, raise, unsupported};
use super::super::value::{Key, Value};
use super::string::count;
use super::{Args, Found, call, enumerable};

type Map = Rc<RefCell<IndexMap<Key, Value>>>;

fn key(value: Option<&Value>, at: usize) -> Result<Key, Flow> {
    value
        .ok_or_else(|| {
            raise(
                "ArgumentError",
                "wrong number of arguments (given 0, expected 1)",
                at,
            )
        })?
        .key()
        .ok_or_else(|| unsupported("this hash key", at))
}

#[allow(clippy::too_many_lines)]
pub(super) fn hash(interp: &mut Interp<'_, '_>, this: &Map, name: &str, args: &Args<'_>) -> Found {
    let at = args.at;
    let map = this.borrow().clone();
    interp.work(map.len() / 4, at)?;
    if let Some(plain) = name.strip_suffix('!').filter(|plain| !plain.is_empty()) {
        const IN_PLACE: &[&str] = &[
            "merge",
            "reject",
            "select",
            "filter",
            "compact",
            "transform_values",
            "transform_keys",
            "deep_merge",
            "symbolize_keys",
            "stringify_keys",
            "reverse_merge",
            "except",
            "slice",
            "compact_blank",
        ];
        if !IN_PLACE.contains(&plain) {
            return Ok(None);
        }
        let Some(Value::Hash(new)) = hash(interp, this, plain, args)? else {
            return Ok(None);
        };
        let new = new.borrow().clone();
        *this.borrow_mut() = new;
        return Ok(Some(Value::Hash(this.clone())));
    }
    let pairs = || {
        map.iter()
            .map(|(key, value)| (key.value(), value.clone()))
            .collect::<Vec<_>>()
    };
    Ok(Some(match name {
        "[]" => map.get(&key(args.get(0), at)?).cloned().unwrap_or(Value::Nil),
        "dig" => {
            let first = map.get(&key(args.get(0), at)?).cloned().unwrap_or(Value::Nil);
            match (args.list.len(), &first) {
                (1, _) | (_, Value::Nil) => first,
                _ => interp.send(first, "dig", args.list[1..].to_vec(), None, at)?,
            }
        }
        "fetch" => match map.get(&key(args.get(0), at)?) {
            Some(value) => value.clone(),
            None if args.block.is_some() => call(interp, args, vec![args.list[0].clone()])?,
            None => match args.get(1) {
                Some(default) => default.clone(),
                None => {
                    let message = format!("key not found: {}", args.list[0].inspect());
                    return Err(raise("KeyError", message, at));
                }
            },
        },
        "[]=" | "store" => {
            let value = args.get(1).cloned().unwrap_or(Value::Nil);
            interp.charge(32, at)?;
            this.borrow_mut().insert(key(args.get(0), at)?, value.clone());
            value
        }
        "key?" | "has_key?" | "include?" | "member?" => Value::Bool(map.contains_key(&key(args.get(0), at)?)),
        "exclude?" => Value::Bool(!map.contains_key(&key(args.get(0), at)?)),
        "value?" | "has_value?" => Value::Bool(
            args.get(0)
                .is_some_and(|wanted| map.values().any(|value| value.equals(wanted))),
        ),
        "key" => map
            .iter()
            .find(|(_, value)| args.get(0).is_some_and(|wanted| value.equals(wanted)))
            .map_or(Value::Nil, |(key, _)| key.value()),
        "keys" => Value::array(map.keys().map(Key::value).collect()),
        "values" => Value::array(map.into_values().collect()),
        "values_at" | "fetch_values" => {
            let mut found = Vec::new();
            for wanted in args.list {
                found.push(map.get(&key(Some(wanted), at)?).cloned().unwrap_or(Value::Nil));
            }
            Value::array(found)
        }
        "length" | "size" => Value::Int(count(map.len())),
        "count" if args.block.is_none() => Value::Int(count(map.len())),
        "empty?" => Value::Bool(map.is_empty()),
        "to_h" if args.block.is_none() => Value::Hash(this.clone()),
        "to_a" => Value::array(interp.elements(&Value::Hash(this.clone()), at)?),
        "each" | "each_pair" => {
            for (key, value) in pairs() {
                pair_call(interp, args, key, value)?;
            }
            Value::Hash(this.clone())
        }
        "each_key" | "each_value" => {
            for (key, value) in pairs() {
                call(interp, args, vec![if name == "each_key" { key } else { value }])?;
            }
            Value::Hash(this.clone())
        }
        "select" | "filter" | "reject" | "keep_if" | "delete_if" => {
            let mut kept = IndexMap::new();
            for (key, value) in map {
                let hit = pair_call(interp, args, key.value(), value.clone())?.truthy();
                if hit == matches!(name, "select" | "filter" | "keep_if") {
                    kept.insert(key, value);
                }
            }
            Value::hash(kept)
        }
        "map" | "collect" | "flat_map" | "filter_map" | "any?" | "all?" | "none?" | "find" | "detect"
        | "sum" | "count" | "group_by" | "partition" | "sort_by" | "min_by" | "max_by" | "to_h"
        | "each_with_index" | "each_with_object" | "inject" | "reduce" | "first" | "take" | "drop"
        | "zip" | "sort" | "uniq" | "find_all" | "each_slice" => {
            let items = interp.elements(&Value::Hash(this.clone()), at)?;
            return enumerable::enumerable(interp, items, name, args);
        }
        "transform_values" | "transform_keys" => {
            let mut new = IndexMap::new();
            for (old, value) in map {
                if name == "transform_values" {
                    let value = call(interp, args, vec![value])?;
                    new.insert(old, value);
                } else {
                    let renamed = call(interp, args, vec![old.value()])?;
                    new.insert(key(Some(&renamed), at)?, value);
                }
            }
            Value::hash(new)
        }
        "symbolize_keys" | "deep_symbolize_keys" | "stringify_keys" | "deep_stringify_keys" => {
            let symbols = name.contains("symbolize");
            let deep = name.starts_with("deep");
            rekey(&Value::Hash(this.clone()), symbols, deep, 0)
        }
        "merge" | "update" | "deep_merge" | "reverse_merge" | "with_defaults" => {
            let mut new = map;
            for other in args.list {
                let Value::Hash(other) = other else {
                    let message = format!(
                        "no implicit conversion of {} into Hash",
                        super::implicit_name(other)
                    );
                    return Err(raise("TypeError", message, at));
                };
                let other = other.borrow().clone();
                interp.charge(32 * other.len(), at)?;
                match name {
                    "deep_merge" => deep_merge(&mut new, other, 0),
                    "reverse_merge" | "with_defaults" => {
                        for (key, value) in other {
                            new.entry(key).or_insert(value);
                        }
                    }
                    _ => new.extend(other),
                }
            }
            if name == "update" {
                *this.borrow_mut() = new;
                return Ok(Some(Value::Hash(this.clone())));
            }
            Value::hash(new)
        }
        "slice" | "except" => {
            let mut wanted = Vec::new();
            for item in args.list {
                wanted.push(key(Some(item), at)?);
            }
            let keep = name == "slice";
            Value::hash(
                map.into_iter()
                    .filter(|(key, _)| wanted.contains(key) == keep)
                    .collect(),
            )
        }
        "compact" => Value::hash(
            map.into_iter()
                .filter(|(_, value)| !matches!(value, Value::Nil))
                .collect(),
        ),
        "compact_blank" => Value::hash(map.into_iter().filter(|(_, value)| !value.is_blank()).collect()),
        "invert" => {
            let mut new = IndexMap::new();
            for (old, value) in map {
                new.insert(key(Some(&value), at)?, old.value());
            }
            Value::hash(new)
        }
        "delete" => this
            .borrow_mut()
            .shift_remove(&key(args.get(0), at)?)
            .unwrap_or(Value::Nil),
        "clear" => {
            this.borrow_mut().clear();
            Value::Hash(this.clone())
        }
        "default=" | "default" | "compare_by_identity" | "sum_by" => {
            return Err(unsupported(format!("`{name}'"), at));
        }
        _ => return Ok(None),
    }))
}

/// A block of a hash gets key and value; one with a single parameter gets the pair.
fn pair_call(interp: &mut Interp<'_, '_>, args: &Args<'_>, key: Value, value: Value) -> super::Eval {
    use super::super::value::Proc;
    let spreads = match args.block {
        Some(Value::Proc(block)) => matches!(&**block, Proc::Block { body, .. } if body.params.len() >= 2),
        _ => false,
    };
    if spreads {
        call(interp, args, vec![key, value])
    } else {
        call(interp, args, vec![Value::array(vec![key, value])])
    }
}

fn deep_merge(into: &mut IndexMap<Key, Value>, from: IndexMap<Key, Value>, depth: usize) {
    for (key, value) in from {
        match (into.get(&key), &value) {
            (Some(Value::Hash(old)), Value::Hash(new)) if depth < 12 => {
                let mut merged = old.borrow().clone();
                deep_merge(&mut merged, new.borrow().clone(), depth + 1);
                into.insert(key, Value::hash(merged));
            }
            _ => drop(into.insert(key, value)),
        }
    }
}

fn rekey(value: &Value, symbols: bool, deep: bool, depth: usize) -> Value {
    match value {
        Value::Hash(map) if depth < 12 => {
            let rename = |key: &Key| match (key, symbols) {
                (Key::Str(text), true) => Key::Symbol(Rc::from(text.as_str())),
                (other, true) => other.clone(),
                (other, false) => Key::Str(other.value().to_text()),
            };
            let map = map.borrow();
            let entries = map.iter().map(|(key, value)| {
                let value = if deep {
                    rekey(value, symbols, deep, depth + 1)
                } else {
                    value.clone()
                };
                (rename(key), value)
            });
            Value::hash(entries.collect())
        }
        Value::Array(list) if deep && depth < 12 => {
            let list = list.borrow();
            Value::array(
                list.iter()
                    .map(|item| rekey(item, symbols, deep, depth + 1))
                    .collect(),
            )
        }
        other => other.clone(),
    }
}

/// The environment: names and values are strings.
pub(super) fn env(interp: &mut Interp<'_, '_>, name: &str, args: &Args<'_>) -> Found {
    let at = args.at;
    let lookup = |interp: &Interp<'_, '_>, name: &str| interp.ctx.env.get(name).cloned();
    Ok(Some(match name {
        "[]" => Value::optional_str(lookup(interp, &args.text(0)?)),
        "fetch" => {
            args.count(1, 2)?;
            let wanted = args.text(0)?;
            match lookup(interp, &wanted) {
                Some(value) => Value::str(value),
                None if args.block.is_some() => call(interp, args, vec![Value::str(wanted)])?,
                None => match args.get(1) {
                    Some(default) => default.clone(),
                    None => {
                        let message = format!("key not found: {}", Value::str(wanted).inspect());
                        return Err(raise("KeyError", message, at));
                    }
                },
            }
        }
        "[]=" | "store" => {
            let variable = args.text(0)?;
            match args.get(1) {
                Some(Value::Nil) | None => drop(interp.ctx.env.remove(&variable)),
                Some(_) => {
                    let value = args.text(1)?;
                    if value.contains('\0') || variable.contains(['\0', '=']) || variable.is_empty() {
                        return Err(raise("ArgumentError", "bad environment variable", at));
                    }
                    interp.ctx.env.insert(variable, value);
                }
            }
            args.get(1).cloned().unwrap_or(Value::Nil)
        }
        "key?" | "has_key?" | "include?" | "member?" => Value::Bool(lookup(interp, &args.text(0)?).is_some()),
        "exclude?" => Value::Bool(lookup(interp, &args.text(0)?).is_none()),
        "delete" => Value::optional_str(interp.ctx.env.remove(&args.text(0)?)),
        "update" | "merge!" => {
            for other in args.list {
                let Value::Hash(map) = other else { return Ok(None) };
                for (key, value) in map.borrow().iter() {
                    interp.ctx.env.insert(key.value().to_text(), value.to_text());
                }
            }
            Value::Env
        }
        "inspect" | "==" | "nil?" | "present?" | "blank?" | "is_a?" | "class" => return Ok(None),
        "to_s" => Value::str("ENV"),
        _ => {
            let map = interp
                .ctx
                .env
                .iter()
                .map(|(key, value)| (Key::Str(key.clone()), Value::str(value.as_str())))
                .collect();
            let Value::Hash(map) = Value::hash(map) else {
                return Ok(None);
            };
            return hash(interp, &map, name, args);
        }
    }))
}
