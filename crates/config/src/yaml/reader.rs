//! Events of libyaml become a tree with places. This is the only file that names the YAML crate.
//!
//! Bounds: [`MAX_DEPTH`] levels of nesting, [`MAX_EXPANSION`] for what aliases add. Only the first document is read.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use libyaml_safer::{Encoding, Event, EventData, Mark, Parser, ScalarStyle};

use super::scalar;
use super::tree::{Map, Node, Place, Value};

/// Deepest nesting that is read; real configurations stay below 12.
const MAX_DEPTH: usize = 100;

/// How much aliases may add to a document, in bytes of text plus [`NODE_WEIGHT`] for each node.
const MAX_EXPANSION: usize = 16 << 20;

/// What one node counts for, on top of its text.
const NODE_WEIGHT: usize = 64;

/// What was read.
#[derive(Debug)]
pub struct Document {
    /// The first document; `None` when there is none.
    pub root: Option<Node>,
    /// Keys that stand twice in one map: the first of them, and the one that wins.
    pub duplicates: Vec<(Node, Node)>,
}

/// Why a text is not read.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct YamlError {
    /// Where.
    pub place: Place,
    /// What is wrong, in libyaml's words where it is syntax.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

/// Reads the first document of `text`, which stands in file number `file`.
/// `origin` tells where a line and column (from 1) of the text come from.
///
/// # Errors
/// Where Psych refuses the text; and where nesting or aliases go beyond the bounds.
pub fn read(
    text: &str,
    file: usize,
    origin: &dyn Fn(usize, usize) -> (usize, usize),
) -> Result<Document, YamlError> {
    // libyaml-safer 0.3.0 panics where a block scalar ends the text without a line break; see `Builder::lent_break`.
    let complete = text.is_empty() || text.ends_with(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']);
    let lent = if complete {
        String::new()
    } else {
        format!("{text}\n")
    };
    let lent_break = (!complete).then_some(text.len() as u64);
    let text = if complete { text } else { lent.as_str() };
    let mut parser = Parser::new();
    // Psych sets the encoding itself, so libyaml does not skip a byte order mark: it takes a column, and the first
    // map ends with its first key.
    parser.set_encoding(Encoding::Utf8);
    parser.set_input(text.as_bytes());
    let mut builder = Builder {
        parser,
        text,
        file,
        origin,
        anchors: HashMap::new(),
        expansion: 0,
        in_extension: false,
        lent_break,
        end: text.trim_end().chars().count() as u64,
        last: Mark::default(),
        duplicates: Vec::new(),
    };
    let root = loop {
        let event = builder.next()?;
        match event.data {
            EventData::StreamStart { .. } | EventData::DocumentStart { .. } => {}
            EventData::StreamEnd => break None,
            _ => {
                let root = builder.node(event, 0)?.node;
                // Psych parses to the end of the first document.
                builder.next()?;
                break Some(root);
            }
        }
    };
    Ok(Document {
        root,
        duplicates: builder.duplicates,
    })
}

/// Keeps panics of the YAML library, which [`read`] catches and turns into errors, off standard error.
///
/// For programs to call once when they start: a library does not touch the process's panic hook on its own.
pub fn silence_caught_panics() {
    let shown = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let caught = info
            .location()
            .is_some_and(|place| place.file().contains("libyaml-safer-"));
        if !caught {
            shown(info);
        }
    }));
}

struct Builder<'a, 't> {
    parser: Parser<&'t [u8]>,
    text: &'t str,
    file: usize,
    origin: &'a dyn Fn(usize, usize) -> (usize, usize),
    anchors: HashMap<String, Anchor>,
    expansion: usize,
    /// Whether the reader is below a root key that starts with `x-`.
    in_extension: bool,
    /// Where a line break was added to the text; a block scalar that reaches it gives it back.
    lent_break: Option<u64>,
    /// Number of characters in the text, blanks at its end left out.
    end: u64,
    /// End of the last event that was read.
    last: Mark,
    duplicates: Vec<(Node, Node)>,
}

/// What an anchor stands for.
enum Anchor {
    /// Its list or map is still being read: an alias to it would never end.
    Open(Value),
    /// A node and its weight.
    Done(Node, usize),
}

/// A node as it stood in the text.
struct Read {
    node: Node,
    weight: usize,
    shape: Shape,
    tag: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Scalar,
    Seq,
    Map,
    Alias,
}

impl Builder<'_, '_> {
    fn next(&mut self) -> Result<Event, YamlError> {
        let parser = &mut self.parser;
        // libyaml-safer 0.3.0 panics on a few texts (found by fuzzing): an empty value whose tag touches a comma, and
        // some that end inside a value; its state is not used again.
        let Ok(parsed) = catch_unwind(AssertUnwindSafe(|| parser.parse())) else {
            return self.refuse(
                self.place(self.last),
                "what follows this place cannot be read",
                "write an empty value with a tag as !tag '', and complete the last value of the file",
            );
        };
        if let Ok(event) = &parsed {
            self.last = event.end_mark;
        }
        parsed.map_err(|error| {
            let problem = error.problem_mark();
            // What the text's end leaves open is told where it opens; there is nothing to see at the end.
            let at_end = problem.is_some_and(|mark| mark.index >= self.end);
            let mark = match error.context_mark() {
                Some(context) if at_end && is_opening(error.context()) => context,
                context => problem.or(context).unwrap_or_default(),
            };
            let message = match error.context().filter(|context| !context.is_empty()) {
                Some(context) => format!("{} {context}", error.problem()),
                None => error.problem().to_owned(),
            };
            YamlError {
                hint: hint_for(&message, self.text, &mark),
                place: self.place(mark),
                message,
            }
        })
    }

    fn place(&self, mark: Mark) -> Place {
        let number = |value: u64| usize::try_from(value).unwrap_or(usize::MAX - 1) + 1;
        let (line, column) = (self.origin)(number(mark.line), number(mark.column));
        Place {
            file: self.file,
            line,
            column,
        }
    }

    fn refuse<T>(&self, place: Place, message: impl Into<String>, hint: &str) -> Result<T, YamlError> {
        Err(YamlError {
            place,
            message: message.into(),
            hint: Some(hint.to_owned()),
        })
    }

    fn node(&mut self, event: Event, depth: usize) -> Result<Read, YamlError> {
        let place = self.place(event.start_mark);
        if depth > MAX_DEPTH {
            return self.refuse(
                place,
                format!("nested deeper than {MAX_DEPTH} levels"),
                "no configuration needs that; flatten it",
            );
        }
        let (mut read, anchor) = match event.data {
            EventData::Alias { anchor } => return self.alias(place, &anchor),
            EventData::Scalar {
                anchor,
                tag,
                mut value,
                quoted_implicit,
                style,
                ..
            } => {
                let is_block = matches!(style, ScalarStyle::Literal | ScalarStyle::Folded);
                let reaches_end = self.lent_break.is_some_and(|end| event.end_mark.index >= end);
                if is_block && reaches_end && value.ends_with('\n') {
                    value.pop();
                }
                let weight = value.len() + NODE_WEIGHT;
                let node = self.scalar(place, tag.as_deref(), value, quoted_implicit)?;
                let read = Read {
                    node,
                    weight,
                    shape: Shape::Scalar,
                    tag,
                };
                (read, anchor)
            }
            EventData::SequenceStart { anchor, tag, .. } => {
                self.open(anchor.as_deref(), Value::Seq(Vec::new()));
                self.check_tag(place, tag.as_deref())?;
                (self.sequence(place, tag, depth)?, anchor)
            }
            EventData::MappingStart { anchor, tag, .. } => {
                self.open(anchor.as_deref(), Value::Map(Map::default()));
                self.check_tag(place, tag.as_deref())?;
                (self.mapping(place, tag, depth)?, anchor)
            }
            _ => return self.refuse(place, "unexpected end of the document", "complete the last value"),
        };
        if let Some(name) = anchor {
            read.weight += name.len();
            self.anchors
                .insert(name, Anchor::Done(read.node.clone(), read.weight));
        }
        Ok(read)
    }

    fn open(&mut self, anchor: Option<&str>, empty: Value) {
        if let Some(name) = anchor {
            self.anchors.insert(name.to_owned(), Anchor::Open(empty));
        }
    }

    fn alias(&mut self, place: Place, name: &str) -> Result<Read, YamlError> {
        let (node, weight) = match self.anchors.get(name) {
            Some(Anchor::Done(node, weight)) => (node, *weight),
            // Nothing looks below `x-` keys, where Kamal accepts values that contain themselves.
            Some(Anchor::Open(empty)) if self.in_extension => (
                &Node {
                    place,
                    value: empty.clone(),
                    raw: None,
                },
                NODE_WEIGHT,
            ),
            Some(Anchor::Open(_)) => {
                return self.refuse(
                    place,
                    format!("the alias *{name} stands inside the value it repeats"),
                    "move the alias out of its own anchor",
                );
            }
            None => {
                return self.refuse(
                    place,
                    format!("an alias referenced an unknown anchor: {name}"),
                    "anchors (&name) must stand before their aliases, in the same file",
                );
            }
        };
        self.expansion = self.expansion.saturating_add(weight);
        if self.expansion > MAX_EXPANSION {
            return self.refuse(
                place,
                "aliases repeat more than 16 MiB of values",
                "write the values out, or repeat less",
            );
        }
        let mut node = node.clone();
        node.place = place;
        Ok(Read {
            node,
            weight,
            shape: Shape::Alias,
            tag: None,
        })
    }

    fn sequence(&mut self, place: Place, tag: Option<String>, depth: usize) -> Result<Read, YamlError> {
        let mut items = Vec::new();
        let mut weight = NODE_WEIGHT;
        loop {
            let event = self.next()?;
            if matches!(event.data, EventData::SequenceEnd) {
                break;
            }
            let item = self.node(event, depth + 1)?;
            weight = weight.saturating_add(item.weight);
            items.push(item.node);
        }
        let value = match tag.as_deref() {
            Some("!omap" | "tag:yaml.org,2002:omap") => ordered_map(items),
            _ => Value::Seq(items),
        };
        Ok(Read {
            node: Node {
                place,
                value,
                raw: None,
            },
            weight,
            shape: Shape::Seq,
            tag,
        })
    }

    fn mapping(&mut self, place: Place, tag: Option<String>, depth: usize) -> Result<Read, YamlError> {
        let mut map = Map::default();
        let mut weight = NODE_WEIGHT;
        loop {
            let event = self.next()?;
            if matches!(event.data, EventData::MappingEnd) {
                break;
            }
            let key = self.node(event, depth + 1)?;
            if depth == 0 {
                self.in_extension = key.node.as_str().is_some_and(|key| key.starts_with("x-"));
            }
            let event = self.next()?;
            let value = self.node(event, depth + 1)?;
            weight = weight.saturating_add(key.weight).saturating_add(value.weight);
            let merging = key.node.as_str() == Some("<<") && key.tag.as_deref() != Some(STR_TAG);
            let value = if merging {
                merge(&mut map, value)
            } else {
                Some(value.node)
            };
            if let Some(value) = value
                && let Some(former) = map.insert(key.node.clone(), value)
            {
                self.duplicates.push((former, key.node));
            }
        }
        Ok(Read {
            node: Node {
                place,
                value: Value::Map(map),
                raw: None,
            },
            weight,
            shape: Shape::Map,
            tag,
        })
    }

    /// Maps and lists do not become Ruby objects here; other tags on them are ignored, as in Psych.
    fn check_tag(&self, place: Place, tag: Option<&str>) -> Result<(), YamlError> {
        match tag {
            Some(tag) if tag.starts_with("!ruby/") => self.refuse_object(place, tag),
            _ => Ok(()),
        }
    }

    fn refuse_object<T>(&self, place: Place, tag: &str) -> Result<T, YamlError> {
        self.refuse(
            place,
            format!("the tag {tag} makes a Ruby object, which is not supported"),
            "write the value as plain YAML",
        )
    }

    fn scalar(&self, place: Place, tag: Option<&str>, text: String, quoted: bool) -> Result<Node, YamlError> {
        let value = match tag {
            None if quoted => Value::Str(text.clone()),
            None => scalar::resolve(&text),
            Some(STR_TAG | "!str" | "!ruby/string") => Value::Str(text.clone()),
            Some("!binary" | "tag:yaml.org,2002:binary") => Value::Str(base64_text(&text)),
            Some("!float" | "tag:yaml.org,2002:float") => match scalar::resolve(&text) {
                #[expect(clippy::cast_precision_loss, reason = "Ruby's Float() loses the same digits")]
                Value::Int(value) => Value::Float(value as f64),
                Value::Float(value) => Value::Float(value),
                _ => {
                    return self.refuse(
                        place,
                        format!("invalid value for Float(): {text:?}"),
                        "leave the !!float tag out",
                    );
                }
            },
            Some("!ruby/sym" | "!ruby/symbol") => Value::Symbol(text.clone()),
            Some(tag) if RUBY_SCALARS.iter().any(|known| tag.starts_with(known)) => {
                return self.refuse_object(place, tag);
            }
            Some(_) => scalar::resolve(&text),
        };
        let raw = match &value {
            Value::Str(_) | Value::Null => None,
            _ => Some(text),
        };
        Ok(Node { place, value, raw })
    }
}

/// Tags by which Psych makes objects of scalars; of others, Ruby's among them, it takes no notice.
const RUBY_SCALARS: &[&str] = &[
    "!ruby/regexp",
    "!ruby/range",
    "!ruby/class",
    "!ruby/module",
    "!ruby/encoding",
    "!ruby/object:BigDecimal",
    "!ruby/object:DateTime",
    "!ruby/object:Complex",
    "!ruby/object:Rational",
];

const STR_TAG: &str = "tag:yaml.org,2002:str";

/// `<<`: merges what `value` names into `map`, as Psych does (what is merged overrides what stood before).
/// Gives the value back if it cannot be merged; Psych then keeps `<<` as an ordinary key.
fn merge(map: &mut Map, value: Read) -> Option<Node> {
    let mut sources = match (&value.node.value, value.shape) {
        (Value::Map(source), Shape::Map | Shape::Alias) => vec![source.clone()],
        (Value::Seq(items), Shape::Seq) if items.iter().all(|item| item.as_map().is_some()) => {
            // The first of several wins, so it comes last.
            items
                .iter()
                .rev()
                .filter_map(|item| item.as_map().cloned())
                .collect()
        }
        _ => return Some(value.node),
    };
    for source in sources.drain(..) {
        for (key, value) in source.into_entries() {
            map.insert(key, value);
        }
    }
    None
}

/// `!!omap`: a list of maps of one key each is one map.
fn ordered_map(items: Vec<Node>) -> Value {
    let mut map = Map::default();
    for item in items {
        if let Value::Map(pair) = item.value
            && let Some((key, value)) = pair.into_entries().next()
        {
            map.insert(key, value);
        }
    }
    Value::Map(map)
}

/// Ruby's lenient `unpack("m")`, as text.
fn base64_text(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut bits: u32 = 0;
    let mut count = 0;
    for letter in text.bytes() {
        let digit = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => break,
            _ => continue,
        };
        bits = (bits << 6) | u32::from(digit);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from((bits >> count) & 0xff).expect("eight bits were masked out"));
            bits &= (1 << count) - 1;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether what was being read (in libyaml's words) has a sign that opens it.
fn is_opening(context: Option<&str>) -> bool {
    context.is_some_and(|context| {
        ["quoted scalar", "flow sequence", "flow mapping"]
            .iter()
            .any(|opened| context.contains(opened))
    })
}

/// What usually causes a syntax error.
fn hint_for(message: &str, text: &str, mark: &Mark) -> Option<String> {
    let line_number = usize::try_from(mark.line).unwrap_or(usize::MAX);
    if (message.contains("mapping values are not allowed") || message.contains("could not find expected ':'"))
        && let Some(line) = glued_key(text, line_number)
    {
        return Some(format!("write a space after the colon: {line}"));
    }
    let at = usize::try_from(mark.column).unwrap_or(usize::MAX);
    let starts_with_colon = text
        .lines()
        .nth(line_number)
        .and_then(|line| line.chars().nth(at))
        .is_some_and(|letter| letter == ':');
    let hint = if starts_with_colon && message.contains("flow") {
        "inside { } and [ ] no value starts with a colon; write it without, or on a line of its own"
    } else if message.contains("cannot start any token") {
        "tabs cannot indent, and a value that starts with @, ` or % needs quotes"
    } else if message.contains("mapping values are not allowed") {
        "a text with \": \" needs quotes, and a key needs its own line"
    } else if message.contains("expected alphabetic or numeric") {
        "a value that starts with * or & needs quotes"
    } else if message.contains("could not find expected ':'") {
        "write `key: value`, with a space after the colon"
    } else if message.contains("unexpected end of stream") {
        "close the quote that opens here"
    } else if message.contains("did not find expected ',' or") {
        "close the bracket that opens here, and separate its items by commas"
    } else if message.contains("did not find expected key") || message.contains("did not find expected '-'") {
        "check the indentation (keys of one map start in the same column), and that quotes before this are closed"
    } else if message.contains("control characters") {
        "remove the invisible control character"
    } else {
        return None;
    };
    Some(hint.to_owned())
}

/// The nearest line above that is `key:value`, as it should be: without a space it is the start of a text.
/// Only the key is shown, the value may be a secret.
fn glued_key(text: &str, line: usize) -> Option<String> {
    let above: Vec<&str> = text.lines().take(line).collect();
    let last = above.iter().rev().find(|line| {
        let line = line.trim_start();
        !line.is_empty() && !line.starts_with('#')
    })?;
    let (key, value) = last.trim_start().trim_start_matches("- ").split_once(':')?;
    let is_key = key
        .chars()
        .all(|letter| letter.is_alphanumeric() || "_-".contains(letter));
    let glued = !key.is_empty() && value.starts_with(|letter: char| !letter.is_whitespace());
    (is_key && glued).then(|| format!("{key}: …"))
}
