//! Ruby values, and how they are printed, compared and used as keys.

use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::rc::Rc;

use indexmap::IndexMap;

use super::ast::Body;
use super::pattern::Pattern;

/// A Ruby object.
#[derive(Clone)]
pub(super) enum Value {
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Rc<RefCell<String>>),
    Symbol(Rc<str>),
    Array(Rc<RefCell<Vec<Value>>>),
    Hash(Rc<RefCell<IndexMap<Key, Value>>>),
    Range(Rc<Range>),
    Regex(Rc<Pattern>),
    Proc(Rc<Proc>),
    /// `Time`, or `Date` when the flag is set.
    Time(Rc<jiff::Zoned>, bool),
    /// A class or module, by its full name.
    Module(Rc<str>),
    /// The environment, `ENV`.
    Env,
    /// The object at the top, `main`.
    Main,
    Object(Rc<Object>),
}

/// `low..high`.
pub(super) struct Range {
    pub(super) low: Value,
    pub(super) high: Value,
    pub(super) exclusive: bool,
}

/// Something callable.
pub(super) enum Proc {
    Block {
        body: Rc<Body>,
        scope: Rc<Scope>,
        lambda: bool,
        myself: Value,
    },
    /// `&:name`
    Symbol(Rc<str>),
    /// `method(:name)`
    Method(Value, String),
}

/// The less common objects.
pub(super) enum Object {
    Uri(Uri),
    Template {
        text: String,
        trim: super::template::Trim,
    },
    Match(Match),
    Exception {
        class: String,
        message: String,
    },
    Binding(Rc<Scope>, Value),
    Status(Option<i32>),
    /// Elements, and the method that was called without its block.
    Enumerator(Vec<Value>, String),
}

/// What `URI.parse` finds.
#[derive(Default, Clone)]
pub(super) struct Uri {
    pub(super) text: String,
    pub(super) scheme: Option<String>,
    pub(super) userinfo: Option<String>,
    pub(super) host: Option<String>,
    pub(super) port: Option<i64>,
    pub(super) path: String,
    pub(super) query: Option<String>,
    pub(super) fragment: Option<String>,
}

/// The groups of a match; group 0 is the whole.
#[derive(Clone)]
pub(super) struct Match {
    pub(super) groups: Vec<Option<String>>,
    pub(super) names: Vec<(String, usize)>,
    pub(super) before: String,
    pub(super) after: String,
}

/// Local variables; a block sees those around it.
#[derive(Default)]
pub(super) struct Scope {
    pub(super) vars: RefCell<HashMap<String, Value>>,
    pub(super) parent: Option<Rc<Scope>>,
    /// The block passed to the method this scope belongs to.
    pub(super) block: Option<Value>,
}

impl Scope {
    pub(super) fn get(&self, name: &str) -> Option<Value> {
        let own = self.vars.borrow().get(name).cloned();
        own.or_else(|| self.parent.as_ref()?.get(name))
    }

    pub(super) fn set(&self, name: &str, value: Value) {
        if !self.replace(name, &value) {
            self.vars.borrow_mut().insert(name.to_owned(), value);
        }
    }

    pub(super) fn declare(&self, name: &str, value: Value) {
        self.vars.borrow_mut().insert(name.to_owned(), value);
    }

    fn replace(&self, name: &str, value: &Value) -> bool {
        if let Some(slot) = self.vars.borrow_mut().get_mut(name) {
            *slot = value.clone();
            return true;
        }
        self.parent
            .as_ref()
            .is_some_and(|parent| parent.replace(name, value))
    }

    pub(super) fn block(&self) -> Option<Value> {
        self.block.clone().or_else(|| self.parent.as_ref()?.block())
    }
}

/// A hash key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Nil,
    Bool(bool),
    Int(i64),
    Str(String),
    Symbol(Rc<str>),
    Array(Vec<Key>),
}

impl Key {
    pub(super) fn value(&self) -> Value {
        match self {
            Self::Nil => Value::Nil,
            Self::Bool(value) => Value::Bool(*value),
            Self::Int(value) => Value::Int(*value),
            Self::Str(text) => Value::str(text.as_str()),
            Self::Symbol(name) => Value::Symbol(name.clone()),
            Self::Array(keys) => Value::array(keys.iter().map(Key::value).collect()),
        }
    }
}

impl Value {
    pub(super) fn str(text: impl Into<String>) -> Self {
        Self::Str(Rc::new(RefCell::new(text.into())))
    }

    pub(super) fn symbol(name: &str) -> Self {
        Self::Symbol(Rc::from(name))
    }

    pub(super) fn array(list: Vec<Value>) -> Self {
        Self::Array(Rc::new(RefCell::new(list)))
    }

    pub(super) fn hash(map: IndexMap<Key, Value>) -> Self {
        Self::Hash(Rc::new(RefCell::new(map)))
    }

    pub(super) fn object(object: Object) -> Self {
        Self::Object(Rc::new(object))
    }

    pub(super) fn optional_str(text: Option<String>) -> Self {
        text.map_or(Self::Nil, Self::str)
    }

    pub(super) fn truthy(&self) -> bool {
        !matches!(self, Self::Nil | Self::Bool(false))
    }

    /// The key this value makes, if it may be one here.
    pub(super) fn key(&self) -> Option<Key> {
        self.key_within(&Budget::default())
    }

    fn key_within(&self, budget: &Budget) -> Option<Key> {
        budget.spend()?;
        Some(match self {
            Self::Nil => Key::Nil,
            Self::Bool(value) => Key::Bool(*value),
            Self::Int(value) => Key::Int(*value),
            Self::Str(text) => Key::Str(text.borrow().clone()),
            Self::Symbol(name) => Key::Symbol(name.clone()),
            Self::Array(list) => {
                let _nested = budget.nest()?;
                Key::Array(
                    list.borrow()
                        .iter()
                        .map(|item| item.key_within(budget))
                        .collect::<Option<_>>()?,
                )
            }
            _ => return None,
        })
    }

    /// Ruby's class name.
    pub(super) fn class(&self) -> String {
        match self {
            Self::Nil => "NilClass",
            Self::Bool(true) => "TrueClass",
            Self::Bool(false) => "FalseClass",
            Self::Int(_) => "Integer",
            Self::Float(_) => "Float",
            Self::Str(_) => "String",
            Self::Symbol(_) => "Symbol",
            Self::Array(_) => "Array",
            Self::Hash(_) => "Hash",
            Self::Range(_) => "Range",
            Self::Regex(_) => "Regexp",
            Self::Proc(_) => "Proc",
            Self::Time(_, false) => "Time",
            Self::Time(_, true) => "Date",
            Self::Module(_) => "Module",
            Self::Env | Self::Main => "Object",
            Self::Object(object) => match &**object {
                Object::Uri(uri) => match uri.scheme.as_deref() {
                    Some("http") => "URI::HTTP",
                    Some("https") => "URI::HTTPS",
                    _ => "URI::Generic",
                },
                Object::Template { .. } => "ERB",
                Object::Match(_) => "MatchData",
                Object::Exception { class, .. } => return class.clone(),
                Object::Binding(..) => "Binding",
                Object::Status(_) => "Process::Status",
                Object::Enumerator(..) => "Enumerator",
            },
        }
        .to_owned()
    }

    /// How Ruby names the receiver in `undefined method … for …`.
    pub(super) fn receiver_name(&self) -> String {
        match self {
            Self::Nil => "nil".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Main => "main".to_owned(),
            Self::Module(name) => format!("module {name}"),
            other => format!("an instance of {}", other.class()),
        }
    }

    /// `to_s`.
    pub(super) fn to_text(&self) -> String {
        match self {
            Self::Nil => String::new(),
            Self::Bool(value) => value.to_string(),
            Self::Int(value) => value.to_string(),
            Self::Float(value) => crate::ruby::float_to_s(*value),
            Self::Str(text) => text.borrow().clone(),
            Self::Symbol(name) => name.to_string(),
            Self::Array(_) | Self::Hash(_) => self.inspect(),
            Self::Range(range) => format!(
                "{}{}{}",
                range.low.to_text(),
                if range.exclusive { "..." } else { ".." },
                range.high.to_text()
            ),
            Self::Regex(pattern) => format!("(?-mix:{})", pattern.source),
            Self::Proc(_) => "#<Proc>".to_owned(),
            Self::Time(time, true) => time.date().to_string(),
            Self::Time(time, false) => time_text(time),
            Self::Module(name) => name.to_string(),
            Self::Env => "ENV".to_owned(),
            Self::Main => "main".to_owned(),
            Self::Object(object) => match &**object {
                Object::Uri(uri) => uri.text.clone(),
                Object::Match(found) => found.groups.first().cloned().flatten().unwrap_or_default(),
                Object::Exception { message, .. } => message.clone(),
                Object::Status(code) => format!("exit {}", code.unwrap_or_default()),
                _ => format!("#<{}>", self.class()),
            },
        }
    }

    /// `inspect`, in the form of Ruby 3.3 (`{"a"=>1}`); what nests without end ends in dots.
    pub(super) fn inspect(&self) -> String {
        let mut out = String::new();
        self.inspect_into(&mut out, &Budget::default());
        out
    }

    fn inspect_into(&self, out: &mut String, budget: &Budget) {
        let nested = budget.spend().and_then(|()| budget.nest());
        let (true, Some(_nested)) = (out.len() < MAX_INSPECT, nested) else {
            out.push_str("...");
            return;
        };
        match self {
            Self::Nil => out.push_str("nil"),
            Self::Str(text) => out.push_str(&quote(&text.borrow())),
            Self::Symbol(name) if is_plain_symbol(name) => {
                let _infallible = write!(out, ":{name}");
            }
            Self::Symbol(name) => {
                let _infallible = write!(out, ":{}", quote(name));
            }
            Self::Array(list) => {
                out.push('[');
                for (index, item) in list.borrow().iter().enumerate() {
                    if index > 0 {
                        out.push_str(", ");
                    }
                    item.inspect_into(out, budget);
                }
                out.push(']');
            }
            Self::Hash(map) => {
                out.push('{');
                for (index, (key, value)) in map.borrow().iter().enumerate() {
                    if index > 0 {
                        out.push_str(", ");
                    }
                    key.value().inspect_into(out, budget);
                    out.push_str("=>");
                    value.inspect_into(out, budget);
                }
                out.push('}');
            }
            Self::Range(range) => {
                range.low.inspect_into(out, budget);
                out.push_str(if range.exclusive { "..." } else { ".." });
                if !matches!(range.high, Self::Nil) {
                    range.high.inspect_into(out, budget);
                }
            }
            Self::Regex(pattern) => {
                let _infallible = write!(out, "/{}/", pattern.source);
            }
            other => out.push_str(&other.to_text()),
        }
    }

    /// `==`.
    pub(super) fn equals(&self, other: &Self) -> bool {
        self.equals_within(other, &Budget::default())
    }

    fn equals_within(&self, other: &Self, budget: &Budget) -> bool {
        let Some(_nested) = budget.spend().and_then(|()| budget.nest()) else {
            return false;
        };
        match (self, other) {
            (Self::Nil, Self::Nil) | (Self::Env, Self::Env) | (Self::Main, Self::Main) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Int(a), Self::Int(b)) => a == b,
            #[allow(clippy::cast_precision_loss)]
            (Self::Int(a), Self::Float(b)) | (Self::Float(b), Self::Int(a)) => *a as f64 == *b,
            (Self::Float(a), Self::Float(b)) => a == b,
            (Self::Str(a), Self::Str(b)) => Rc::ptr_eq(a, b) || *a.borrow() == *b.borrow(),
            (Self::Symbol(a), Self::Symbol(b)) | (Self::Module(a), Self::Module(b)) => a == b,
            (Self::Array(a), Self::Array(b)) => {
                Rc::ptr_eq(a, b) || {
                    let (a, b) = (a.borrow(), b.borrow());
                    a.len() == b.len() && a.iter().zip(b.iter()).all(|(a, b)| a.equals_within(b, budget))
                }
            }
            (Self::Hash(a), Self::Hash(b)) => {
                Rc::ptr_eq(a, b) || {
                    let (a, b) = (a.borrow(), b.borrow());
                    a.len() == b.len()
                        && a.iter().all(|(key, value)| {
                            b.get(key).is_some_and(|other| value.equals_within(other, budget))
                        })
                }
            }
            (Self::Range(a), Self::Range(b)) => {
                a.low.equals(&b.low) && a.high.equals(&b.high) && a.exclusive == b.exclusive
            }
            (Self::Regex(a), Self::Regex(b)) => a.source == b.source,
            (Self::Time(a, _), Self::Time(b, _)) => a.timestamp() == b.timestamp(),
            (Self::Object(a), Self::Object(b)) => Rc::ptr_eq(a, b) || self.to_text() == other.to_text(),
            _ => false,
        }
    }

    /// `<=>`; `None` where Ruby gives nil.
    pub(super) fn compare(&self, other: &Self) -> Option<Ordering> {
        self.compare_within(other, &Budget::default())
    }

    fn compare_within(&self, other: &Self, budget: &Budget) -> Option<Ordering> {
        budget.spend()?;
        let _nested = budget.nest()?;
        match (self, other) {
            (Self::Int(a), Self::Int(b)) => Some(a.cmp(b)),
            #[allow(clippy::cast_precision_loss)]
            (Self::Int(a), Self::Float(b)) => (*a as f64).partial_cmp(b),
            #[allow(clippy::cast_precision_loss)]
            (Self::Float(a), Self::Int(b)) => a.partial_cmp(&(*b as f64)),
            (Self::Float(a), Self::Float(b)) => a.partial_cmp(b),
            (Self::Str(a), Self::Str(b)) => Some(a.borrow().as_str().cmp(b.borrow().as_str())),
            (Self::Symbol(a), Self::Symbol(b)) => Some(a.cmp(b)),
            (Self::Time(a, _), Self::Time(b, _)) => Some(a.timestamp().cmp(&b.timestamp())),
            (Self::Array(a), Self::Array(b)) => {
                let (a, b) = (a.borrow(), b.borrow());
                for (a, b) in a.iter().zip(b.iter()) {
                    match a.compare_within(b, budget)? {
                        Ordering::Equal => {}
                        other => return Some(other),
                    }
                }
                Some(a.len().cmp(&b.len()))
            }
            _ => self.equals(other).then_some(Ordering::Equal),
        }
    }

    /// ActiveSupport's `blank?`, which Kamal loads.
    pub(super) fn is_blank(&self) -> bool {
        match self {
            Self::Nil | Self::Bool(false) => true,
            Self::Str(text) => text.borrow().chars().all(char::is_whitespace),
            Self::Array(list) => list.borrow().is_empty(),
            Self::Hash(map) => map.borrow().is_empty(),
            Self::Symbol(name) => name.is_empty(),
            _ => false,
        }
    }
}

/// Longest text of `inspect`, in bytes.
const MAX_INSPECT: usize = 1 << 20;

/// Values may hold one another, or share parts so often that walking them takes for ever: a walk has an end.
struct Budget {
    steps: Cell<u32>,
    depth: Rc<Cell<u32>>,
}

/// One level deeper, as long as it lives.
struct Nested(Rc<Cell<u32>>);

impl Drop for Nested {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            steps: Cell::new(50_000),
            depth: Rc::new(Cell::new(100)),
        }
    }
}

impl Budget {
    fn spend(&self) -> Option<()> {
        self.steps.set(self.steps.get().checked_sub(1)?);
        Some(())
    }

    fn nest(&self) -> Option<Nested> {
        self.depth.set(self.depth.get().checked_sub(1)?);
        Some(Nested(self.depth.clone()))
    }
}

fn time_text(time: &jiff::Zoned) -> String {
    let utc = time.time_zone() == &jiff::tz::TimeZone::UTC;
    time.strftime(if utc {
        "%Y-%m-%d %H:%M:%S UTC"
    } else {
        "%Y-%m-%d %H:%M:%S %z"
    })
    .to_string()
}

fn is_plain_symbol(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_alphabetic() || c == '_')
        && name
            .trim_end_matches(['?', '!', '='])
            .chars()
            .all(|c| c.is_alphanumeric() || c == '_')
}

/// A string as Ruby's `inspect` shows it.
pub(super) fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            '\u{1b}' => quoted.push_str("\\e"),
            '#' if matches!(chars.peek(), Some('{' | '$' | '@')) => quoted.push_str("\\#"),
            c if c.is_control() => {
                let _infallible = write!(quoted, "\\x{:02X}", c as u32);
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
