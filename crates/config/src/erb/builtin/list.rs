//! `Array`, `Range` and `Enumerable`.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::rc::Rc;

use indexmap::IndexMap;

use super::super::interp::{Flow, Interp, raise, unsupported};
use super::super::value::{Key, Range, Value};
use super::string::{count, place};
use super::text::successor;
use super::{Args, Found, call, enumerable};

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
        _ => return enumerable::enumerable(interp, list, name, args),
    }))
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

pub(super) fn insert_pair(map: &mut IndexMap<Key, Value>, pair: &Value, at: usize) -> Result<(), Flow> {
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
