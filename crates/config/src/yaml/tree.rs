//! The tree a configuration file becomes: Ruby's values, each with its place.

use indexmap::IndexMap;

/// Where a node stands. Lines and columns count from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    /// Index of the file: 0 is the base file, 1 the destination's.
    pub file: usize,
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

/// A value and its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Where it stands.
    pub place: Place,
    /// What it is.
    pub value: Value,
    /// The text of a plain scalar whose value is not that text, such as `0x1F` or `12:30`.
    pub raw: Option<String>,
}

/// What Psych (Ruby's YAML 1.1 reader) makes of a node.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// An integer that fits 64 bits.
    Int(i64),
    /// Decimal digits of an integer beyond 64 bits.
    BigInt(String),
    /// A number with a point.
    Float(f64),
    /// Text.
    Str(String),
    /// A Ruby symbol, without its colon.
    Symbol(String),
    /// A Ruby `Date` or `Time`, as Ruby's `to_s` shows it.
    Time(String),
    /// A list.
    Seq(Vec<Node>),
    /// A map.
    Map(Map),
}

/// A map that keeps the order of its keys; of equal keys the last value wins, at the first one's position.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Map {
    entries: IndexMap<String, (Node, Node)>,
}

impl Map {
    /// Number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The value of a text key.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entries.get(&text_identity(key)).map(|(_, value)| value)
    }

    /// The node of a text key itself.
    pub fn key_node(&self, key: &str) -> Option<&Node> {
        self.entries.get(&text_identity(key)).map(|(key, _)| key)
    }

    /// Sets a key; returns the former key node if there was one.
    pub fn insert(&mut self, key: Node, value: Node) -> Option<Node> {
        self.entries
            .insert(key.identity(), (key, value))
            .map(|(former, _)| former)
    }

    /// Keys and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Node, &Node)> {
        self.entries.values().map(|(key, value)| (key, value))
    }

    /// Takes the keys and values out, in order.
    pub fn into_entries(self) -> impl Iterator<Item = (Node, Node)> {
        self.entries.into_values()
    }

    /// Changes the value of a key in place, keeping its position, or adds it.
    pub fn merge_entry(&mut self, key: Node, value: Node, merge: impl FnOnce(&mut Node, Node)) {
        match self.entries.get_mut(&key.identity()) {
            Some((_, former)) => merge(former, value),
            None => {
                self.entries.insert(key.identity(), (key, value));
            }
        }
    }
}

fn text_identity(text: &str) -> String {
    format!("s{text}")
}

impl Node {
    /// A text node.
    pub fn text(place: Place, text: impl Into<String>) -> Self {
        Self {
            place,
            value: Value::Str(text.into()),
            raw: None,
        }
    }

    /// What makes two keys of a map equal: `1` and `"1"` are not.
    fn identity(&self) -> String {
        match &self.value {
            Value::Null => "n".to_owned(),
            Value::Bool(value) => format!("b{value}"),
            Value::Int(value) => format!("i{value}"),
            Value::BigInt(digits) => format!("i{digits}"),
            Value::Float(value) => format!("f{}", value.to_bits()),
            Value::Str(text) => text_identity(text),
            Value::Symbol(name) => format!(":{name}"),
            Value::Time(text) => format!("t{text}"),
            Value::Seq(_) | Value::Map(_) => format!("c{}", self.to_s()),
        }
    }

    /// The map, if it is one.
    pub fn as_map(&self) -> Option<&Map> {
        match &self.value {
            Value::Map(map) => Some(map),
            _ => None,
        }
    }

    /// The list, if it is one.
    pub fn as_seq(&self) -> Option<&[Node]> {
        match &self.value {
            Value::Seq(items) => Some(items),
            _ => None,
        }
    }

    /// The text, if it is text (not a number or symbol).
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The integer, if it is one that fits 64 bits.
    pub fn as_int(&self) -> Option<i64> {
        match self.value {
            Value::Int(value) => Some(value),
            _ => None,
        }
    }

    /// The boolean, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        match self.value {
            Value::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// The value of a text key, if this is a map that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.as_map().and_then(|map| map.get(key))
    }

    /// The value under a path of text keys.
    pub fn dig(&self, path: &[&str]) -> Option<&Node> {
        path.iter().try_fold(self, |node, key| node.get(key))
    }

    /// Ruby's truth: everything but `nil` and `false`.
    pub fn is_truthy(&self) -> bool {
        !matches!(self.value, Value::Null | Value::Bool(false))
    }

    /// Rails' `present?`: not `nil`, `false`, blank text, or an empty list or map.
    pub fn is_present(&self) -> bool {
        match &self.value {
            Value::Null | Value::Bool(false) => false,
            Value::Str(text) => !text.trim().is_empty(),
            Value::Symbol(name) => !name.is_empty(),
            Value::Seq(items) => !items.is_empty(),
            Value::Map(map) => !map.is_empty(),
            _ => true,
        }
    }

    /// Whether Kamal takes it for a string: text, symbol, number or boolean.
    pub fn is_stringish(&self) -> bool {
        !matches!(
            self.value,
            Value::Null | Value::Time(_) | Value::Seq(_) | Value::Map(_)
        )
    }

    /// Whether it is an integer only because YAML 1.1 counts `12:30` in base 60.
    pub fn is_base_60(&self) -> bool {
        matches!(self.value, Value::Int(_) | Value::BigInt(_) | Value::Float(_))
            && self.raw.as_deref().is_some_and(|raw| raw.contains(':'))
    }

    /// Ruby's `to_s`.
    pub fn to_s(&self) -> String {
        match &self.value {
            Value::Null => String::new(),
            Value::Str(text) => text.clone(),
            Value::Symbol(name) => name.clone(),
            Value::Time(text) => text.clone(),
            _ => self.inspect(),
        }
    }

    /// Ruby's `to_s` of the list of a key and its value.
    pub fn inspect_pair(key: &Self, value: &Self) -> String {
        format!("[{}, {}]", key.inspect(), value.inspect())
    }

    /// Ruby's `inspect` (3.3 and older: `{"a"=>1}`).
    fn inspect(&self) -> String {
        match &self.value {
            Value::Null => "nil".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::BigInt(digits) => digits.clone(),
            Value::Float(value) => crate::ruby::float_to_s(*value),
            Value::Str(text) => format!("{text:?}"),
            Value::Symbol(name) => format!(":{name}"),
            Value::Time(text) => text.clone(),
            Value::Seq(items) => {
                let items: Vec<_> = items.iter().map(Node::inspect).collect();
                format!("[{}]", items.join(", "))
            }
            Value::Map(map) => {
                let pairs: Vec<_> = map
                    .iter()
                    .map(|(key, value)| format!("{}=>{}", key.inspect(), value.inspect()))
                    .collect();
                format!("{{{}}}", pairs.join(", "))
            }
        }
    }

    /// As JSON: symbols and dates are text.
    pub fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Int(value) => (*value).into(),
            Value::Float(value) => (*value).into(),
            Value::BigInt(text) | Value::Str(text) | Value::Symbol(text) | Value::Time(text) => {
                text.clone().into()
            }
            Value::Seq(items) => items.iter().map(Node::to_json).collect(),
            Value::Map(map) => map
                .iter()
                .map(|(key, value)| (key.to_s(), value.to_json()))
                .collect(),
        }
    }
}
