//! The libraries that configurations `require`: dotenv, URI, JSON and YAML.

use std::path::Path;
use std::rc::Rc;

use indexmap::IndexMap;

use super::super::interp::{Eval, Flow, Interp, raise, unsupported};
use super::super::value::{Key, Object, Uri, Value};
use super::system::{expand_path, read};
use super::{Args, Found};
use crate::yaml::tree::{self, Node};

pub(super) fn dotenv(interp: &mut Interp<'_, '_>, name: &str, args: &Args<'_>) -> Found {
    let at = args.at;
    let mut files = Vec::new();
    for item in args.list {
        match item {
            Value::Str(file) => files.push(file.borrow().clone()),
            Value::Array(list) => files.extend(list.borrow().iter().map(Value::to_text)),
            _ => {}
        }
    }
    if files.is_empty() {
        files.push(".env".to_owned());
    }
    let overwrite = args.option("overwrite").is_some_and(|value| value.truthy());
    Ok(Some(match name {
        "load" => dotenv_load(interp, files, overwrite, false, at)?,
        "load!" => dotenv_load(interp, files, overwrite, true, at)?,
        "overload" | "overwrite" => dotenv_load(interp, files, true, false, at)?,
        "overload!" | "overwrite!" => dotenv_load(interp, files, true, true, at)?,
        "parse" => {
            let mut all = IndexMap::new();
            for file in files {
                for (name, value) in dotenv_file(interp, &file, overwrite, false, at)? {
                    all.entry(name).or_insert(value);
                }
            }
            Value::hash(
                all.into_iter()
                    .map(|(name, value)| (Key::Str(name), Value::str(value)))
                    .collect(),
            )
        }
        "require_keys" => {
            for name in &files {
                if !interp.ctx.env.contains_key(name) {
                    let message = format!(
                        "Missing required configuration key: [{}]",
                        Value::str(name.as_str()).inspect()
                    );
                    return Err(raise("Dotenv::MissingKeys", message, at));
                }
            }
            Value::Nil
        }
        _ => return Ok(None),
    }))
}

/// Sets the variables of the files: those already set win, unless `overwrite`.
pub(super) fn dotenv_load(
    interp: &mut Interp<'_, '_>,
    files: Vec<String>,
    overwrite: bool,
    must_exist: bool,
    at: usize,
) -> Eval {
    let mut all = IndexMap::new();
    let ordered: Vec<String> = if overwrite {
        files.into_iter().rev().collect()
    } else {
        files
    };
    for file in ordered {
        for (name, value) in dotenv_file(interp, &file, overwrite, must_exist, at)? {
            if overwrite || !interp.ctx.env.contains_key(&name) {
                interp.ctx.env.insert(name.clone(), value.clone());
            }
            all.insert(Key::Str(name), Value::str(value));
        }
    }
    Ok(Value::hash(all))
}

fn dotenv_file(
    interp: &mut Interp<'_, '_>,
    file: &str,
    overwrite: bool,
    must_exist: bool,
    at: usize,
) -> Result<IndexMap<String, String>, Flow> {
    let path = expand_path(interp, file, None, at)?;
    if !Path::new(&path).exists() {
        if must_exist {
            let message = format!("No such file or directory @ rb_sysopen - {path}");
            return Err(raise("Errno::ENOENT", message, at));
        }
        return Ok(IndexMap::new());
    }
    let text = read(interp, &path, at)?;
    let env = interp.ctx.env.clone();
    let parsed = crate::secrets::dotenv::parse(&text, &env, overwrite, &mut |command| {
        let printed = interp.backtick(command.text, at)?.to_text();
        Ok(printed)
    });
    parsed.map_err(|trouble| match trouble {
        crate::secrets::dotenv::Trouble::Command(flow) => flow,
        crate::secrets::dotenv::Trouble::Format { what, .. } => raise("Dotenv::FormatError", what, at),
    })
}

/// `URI.parse`.
pub(super) fn uri(text: &str, at: usize) -> Eval {
    let bad = || {
        raise(
            "URI::InvalidURIError",
            format!("bad URI (is not URI?): {}", Value::str(text).inspect()),
            at,
        )
    };
    if text
        .chars()
        .any(|c| c.is_whitespace() || c.is_control() || !c.is_ascii() || "<>\"{}|\\^`".contains(c))
    {
        return Err(bad());
    }
    let mut uri = Uri {
        text: text.to_owned(),
        ..Uri::default()
    };
    let mut rest = text;
    if let Some((head, fragment)) = rest.split_once('#') {
        uri.fragment = Some(fragment.to_owned());
        rest = head;
    }
    if let Some((head, query)) = rest.split_once('?') {
        uri.query = Some(query.to_owned());
        rest = head;
    }
    if let Some((scheme, after)) = rest.split_once(':')
        && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    {
        uri.scheme = Some(scheme.to_ascii_lowercase());
        rest = after;
    }
    if let Some(authority) = rest.strip_prefix("//") {
        let end = authority.find('/').unwrap_or(authority.len());
        let (authority, path) = authority.split_at(end);
        rest = path;
        let host_port = match authority.rsplit_once('@') {
            Some((userinfo, host_port)) => {
                uri.userinfo = Some(userinfo.to_owned());
                host_port
            }
            None => authority,
        };
        let port_at = host_port.rfind(':').filter(|at| !host_port[*at..].contains(']'));
        let (host, port) = match port_at {
            Some(at) => (&host_port[..at], Some(&host_port[at + 1..])),
            None => (host_port, None),
        };
        uri.host = Some(host.to_owned());
        uri.port = match port {
            Some(port) if !port.is_empty() => Some(port.parse().map_err(|_| bad())?),
            _ => None,
        };
    }
    uri.port = uri.port.or(match uri.scheme.as_deref() {
        Some("http" | "ws") => Some(80),
        Some("https" | "wss") => Some(443),
        Some("ftp") => Some(21),
        _ => None,
    });
    uri.path = rest.to_owned();
    Ok(Value::object(Object::Uri(uri)))
}

/// `Base64.…`; what decodes to bytes that are no text needs Ruby itself.
pub(super) fn base64(name: &str, text: &str, at: usize) -> Result<String, Flow> {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};
    let decoded = match name {
        "strict_encode64" => return Ok(STANDARD.encode(text)),
        "urlsafe_encode64" => return Ok(URL_SAFE.encode(text)),
        "encode64" => {
            let encoded = STANDARD.encode(text);
            let lines = encoded.as_bytes().chunks(60);
            return Ok(lines
                .map(|line| format!("{}\n", String::from_utf8_lossy(line)))
                .collect());
        }
        "strict_decode64" => STANDARD
            .decode(text)
            .map_err(|_| raise("ArgumentError", "invalid base64", at))?,
        // Ruby's lenient decoding takes more than this.
        "decode64" => {
            let plain: String = text.split_whitespace().collect();
            STANDARD
                .decode(plain)
                .map_err(|_| unsupported("Base64.decode64 of such a text", at))?
        }
        _ => return Err(unsupported(format!("Base64.{name}"), at)),
    };
    String::from_utf8(decoded).map_err(|_| unsupported("bytes that are not UTF-8", at))
}

/// `JSON.generate` and `to_json`.
pub(super) fn to_json(value: &Value, at: usize) -> Result<String, Flow> {
    let quoted = |text: &str| {
        // With ActiveSupport's JSON loaded these are escaped, without they are not.
        if text.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
            return Err(unsupported("such a text in JSON", at));
        }
        Ok(serde_json::Value::from(text).to_string())
    };
    Ok(match value {
        Value::Nil => "null".to_owned(),
        Value::Bool(_) | Value::Int(_) => value.to_text(),
        Value::Str(text) => quoted(&text.borrow())?,
        Value::Symbol(name) => quoted(name)?,
        Value::Array(list) => {
            let items: Result<Vec<String>, Flow> =
                list.borrow().iter().map(|item| to_json(item, at)).collect();
            format!("[{}]", items?.join(","))
        }
        Value::Hash(map) => {
            let mut entries = Vec::new();
            for (key, value) in map.borrow().iter() {
                let key = match key {
                    Key::Str(name) => quoted(name)?,
                    Key::Symbol(name) => quoted(name)?,
                    Key::Int(number) => format!("\"{number}\""),
                    _ => return Err(unsupported("such a key in JSON", at)),
                };
                entries.push(format!("{key}:{}", to_json(value, at)?));
            }
            format!("{{{}}}", entries.join(","))
        }
        _ => return Err(unsupported("such a value in JSON", at)),
    })
}

pub(super) fn from_json(value: serde_json::Value, symbols: bool) -> Value {
    match value {
        serde_json::Value::Null => Value::Nil,
        serde_json::Value::Bool(value) => Value::Bool(value),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(whole) => Value::Int(whole),
            None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(text) => Value::str(text),
        serde_json::Value::Array(list) => {
            Value::array(list.into_iter().map(|item| from_json(item, symbols)).collect())
        }
        serde_json::Value::Object(map) => Value::hash(
            map.into_iter()
                .map(|(key, value)| {
                    let key = if symbols {
                        Key::Symbol(Rc::from(key))
                    } else {
                        Key::Str(key)
                    };
                    (key, from_json(value, symbols))
                })
                .collect(),
        ),
    }
}

/// What `YAML.load` makes of a text; dates and numbers beyond 64 bits need Ruby itself.
pub(super) fn from_yaml(text: &str, symbols: bool, at: usize) -> Eval {
    let document = crate::yaml::read(text, 0, &|line, column| (line, column))
        .map_err(|error| raise("Psych::SyntaxError", error.to_string(), at))?;
    document
        .root
        .map_or(Ok(Value::Bool(false)), |root| from_node(root, symbols, at))
}

fn from_node(node: Node, symbols: bool, at: usize) -> Eval {
    Ok(match node.value {
        tree::Value::Null => Value::Nil,
        tree::Value::Bool(value) => Value::Bool(value),
        tree::Value::Int(value) => Value::Int(value),
        tree::Value::Float(value) => Value::Float(value),
        tree::Value::Str(text) => Value::str(text),
        tree::Value::Symbol(name) => Value::Symbol(Rc::from(name)),
        tree::Value::BigInt(_) | tree::Value::Time(_) => {
            return Err(unsupported("dates and huge numbers in a YAML file", at));
        }
        tree::Value::Seq(list) => Value::array(
            list.into_iter()
                .map(|item| from_node(item, symbols, at))
                .collect::<Result<_, _>>()?,
        ),
        tree::Value::Map(map) => {
            let mut hash = IndexMap::new();
            for (key, value) in map.into_entries() {
                let key = match key.value {
                    tree::Value::Null => Key::Nil,
                    tree::Value::Bool(value) => Key::Bool(value),
                    tree::Value::Int(value) => Key::Int(value),
                    tree::Value::Symbol(name) => Key::Symbol(Rc::from(name)),
                    tree::Value::Str(name) if symbols => Key::Symbol(Rc::from(name)),
                    tree::Value::Str(name) => Key::Str(name),
                    _ => return Err(unsupported("such a key in a YAML file", at)),
                };
                hash.insert(key, from_node(value, symbols, at)?);
            }
            Value::hash(hash)
        }
    })
}
