//! Evaluates the tree, with a bound on steps, depth and memory.

mod assign;
mod calls;

use std::collections::HashMap;
use std::rc::Rc;

use indexmap::IndexMap;

use super::ast::{Body, Call, Kind, Node, Pair, Param, Piece, Target};
use super::pattern::Pattern;
use super::template::{self, Trim};
use super::value::{Object, Proc, Range, Scope, Value};
use super::{Context, parser};

/// Nodes evaluated before we give up.
const MAX_STEPS: u64 = 500_000;
/// Bytes of text built before we give up.
const MAX_BYTES: usize = 64 << 20;
/// Calls inside calls before Ruby's `SystemStackError`.
const MAX_DEPTH: usize = 400;

/// Why evaluation of a node ended early.
pub(super) enum Flow {
    Raise {
        class: String,
        message: String,
        at: usize,
    },
    Break(Value),
    Next(Value),
    Return(Value),
    Unsupported {
        what: String,
        at: usize,
    },
    Syntax {
        what: String,
        at: usize,
    },
    Budget {
        limit: &'static str,
        at: usize,
    },
    Run {
        program: String,
        source: std::io::Error,
        at: usize,
    },
}

pub(super) type Eval = Result<Value, Flow>;

pub(super) fn raise(class: &str, message: impl Into<String>, at: usize) -> Flow {
    Flow::Raise {
        class: class.to_owned(),
        message: message.into(),
        at,
    }
}

pub(super) fn unsupported(what: impl Into<String>, at: usize) -> Flow {
    Flow::Unsupported {
        what: what.into(),
        at,
    }
}

struct Method {
    body: Rc<Body>,
}

pub(super) struct Interp<'c, 'r> {
    pub(super) ctx: &'c mut Context<'r>,
    pub(super) out: String,
    /// `(offset in out, offset in template, copied text)` for each stretch of output.
    pub(super) marks: Vec<(usize, usize, bool)>,
    /// The template being rendered: its text, and where its code came from.
    program: Rc<template::Program>,
    instance: HashMap<String, Value>,
    globals: HashMap<String, Value>,
    constants: HashMap<String, Value>,
    methods: HashMap<(String, String), Rc<Method>>,
    /// The module whose body is being evaluated, or an empty name.
    module: String,
    steps: u64,
    bytes: usize,
    depth: usize,
    /// Files being required, to stop circles.
    pub(super) required: Vec<std::path::PathBuf>,
}

impl<'c, 'r> Interp<'c, 'r> {
    pub(super) fn new(ctx: &'c mut Context<'r>) -> Self {
        Self {
            ctx,
            out: String::new(),
            marks: Vec::new(),
            program: Rc::default(),
            instance: HashMap::new(),
            globals: HashMap::new(),
            constants: HashMap::new(),
            methods: HashMap::new(),
            module: String::new(),
            steps: 0,
            bytes: 0,
            depth: 0,
            required: Vec::new(),
        }
    }

    /// Renders a template into `self.out`. Offsets of errors are those of this template.
    pub(super) fn template(
        &mut self,
        text: &str,
        trim: Trim,
        scope: &Rc<Scope>,
        myself: &Value,
    ) -> Result<(), Flow> {
        let program = template::compile(text, trim).map_err(|(at, what)| Flow::Syntax {
            what: what.to_owned(),
            at,
        })?;
        let program = Rc::new(program);
        let outer = std::mem::replace(&mut self.program, program.clone());
        let result = parser::parse(&program.code)
            .map_err(|trouble| match trouble.unsupported {
                true => unsupported(trouble.what, trouble.at),
                false => Flow::Syntax {
                    what: trouble.what,
                    at: trouble.at,
                },
            })
            .and_then(|tree| self.eval(&tree, scope, myself));
        self.program = outer;
        result
            .map(drop)
            .map_err(|flow| move_to(flow, |at| program.source(at)))
    }

    /// Renders a template on its own, as `ERB#result` does.
    pub(super) fn nested(
        &mut self,
        text: &str,
        trim: Trim,
        scope: &Rc<Scope>,
        myself: &Value,
        at: usize,
    ) -> Eval {
        self.enter(at)?;
        let out = std::mem::take(&mut self.out);
        let marks = std::mem::take(&mut self.marks);
        let result = self.template(text, trim, scope, myself);
        let printed = std::mem::replace(&mut self.out, out);
        self.marks = marks;
        self.depth -= 1;
        result.map_err(|flow| move_to(flow, |_| at))?;
        Ok(Value::str(printed))
    }

    /// Evaluates a Ruby file of the project.
    pub(super) fn ruby_file(&mut self, code: &str, at: usize) -> Eval {
        self.enter(at)?;
        let result = parser::parse(code)
            .map_err(|trouble| match trouble.unsupported {
                true => unsupported(trouble.what, at),
                false => raise("SyntaxError", trouble.what, at),
            })
            .and_then(|tree| self.eval(&tree, &Rc::default(), &Value::Main));
        self.depth -= 1;
        result.map_err(|flow| move_to(flow, |_| at))
    }

    fn enter(&mut self, at: usize) -> Result<(), Flow> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(raise("SystemStackError", "stack level too deep", at));
        }
        Ok(())
    }

    /// Counts text that was built.
    pub(super) fn charge(&mut self, bytes: usize, at: usize) -> Result<(), Flow> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > MAX_BYTES {
            return Err(Flow::Budget {
                limit: "64 MiB of text",
                at,
            });
        }
        Ok(())
    }

    /// Counts work that a built-in method does per element.
    pub(super) fn work(&mut self, steps: usize, at: usize) -> Result<(), Flow> {
        self.steps = self.steps.saturating_add(steps as u64);
        if self.steps > MAX_STEPS {
            return Err(Flow::Budget {
                limit: "500000 steps",
                at,
            });
        }
        Ok(())
    }

    pub(super) fn new_str(&mut self, text: impl Into<String>, at: usize) -> Eval {
        let text = text.into();
        self.charge(text.len(), at)?;
        Ok(Value::str(text))
    }

    pub(super) fn eval(&mut self, node: &Node, scope: &Rc<Scope>, myself: &Value) -> Eval {
        self.work(1, node.at)?;
        let at = node.at;
        Ok(match &node.kind {
            Kind::Nil => Value::Nil,
            Kind::True => Value::Bool(true),
            Kind::False => Value::Bool(false),
            Kind::Myself => myself.clone(),
            Kind::Int(value) => Value::Int(*value),
            Kind::Float(value) => Value::Float(*value),
            Kind::Str(pieces) => {
                let text = self.pieces(pieces, scope, myself)?;
                self.new_str(text, at)?
            }
            Kind::Symbol(pieces) => Value::symbol(&self.pieces(pieces, scope, myself)?),
            Kind::Command(pieces) => {
                let command = self.pieces(pieces, scope, myself)?;
                self.backtick(&command, at)?
            }
            Kind::Regex(pieces, flags) => {
                let source = self.pieces(pieces, scope, myself)?;
                let pattern = Pattern::compile(&source, flags).map_err(|what| unsupported(what, at))?;
                Value::Regex(Rc::new(pattern))
            }
            Kind::Array(items) => Value::array(self.arguments(items, scope, myself)?),
            Kind::Hash(pairs) => self.hash(pairs, scope, myself)?,
            Kind::Range(low, high, exclusive) => {
                let mut end = |node: &Option<Box<Node>>| match node {
                    Some(node) => self.eval(node, scope, myself),
                    None => Ok(Value::Nil),
                };
                Value::Range(Rc::new(Range {
                    low: end(low)?,
                    high: end(high)?,
                    exclusive: *exclusive,
                }))
            }
            Kind::Splat(inner) => Value::array(self.splat(inner, scope, myself)?),
            Kind::BlockPass(inner) => self.eval(inner, scope, myself)?,
            Kind::Instance(name) => self.instance.get(name).cloned().unwrap_or(Value::Nil),
            Kind::Global(name) => self.global(name, at)?,
            Kind::Constant(parent, name) => self.constant(parent.as_deref(), name, scope, myself, at)?,
            Kind::Call(call) => self.call(call, scope, myself, at)?,
            Kind::Assign(target, value) => {
                let value = self.eval(value, scope, myself)?;
                self.assign(target, value.clone(), scope, myself, at)?;
                value
            }
            Kind::OpAssign(target, op, value) => self.op_assign(target, op, value, scope, myself, at)?,
            Kind::MultiAssign(targets, value) => {
                let value = self.eval(value, scope, myself)?;
                self.destructure(targets, value.clone(), scope, myself, at)?;
                value
            }
            Kind::And(left, right) => match self.eval(left, scope, myself)? {
                left if left.truthy() => self.eval(right, scope, myself)?,
                left => left,
            },
            Kind::Or(left, right) => match self.eval(left, scope, myself)? {
                left if left.truthy() => left,
                _ => self.eval(right, scope, myself)?,
            },
            Kind::Not(inner) => Value::Bool(!self.eval(inner, scope, myself)?.truthy()),
            Kind::If(condition, then, otherwise) => {
                let branch = if self.eval(condition, scope, myself)?.truthy() {
                    then
                } else {
                    otherwise
                };
                self.eval(branch, scope, myself)?
            }
            Kind::While {
                condition,
                body,
                until,
                body_first,
            } => self.while_loop((condition, body, *until, *body_first), scope, myself)?,
            Kind::For(target, list, body) => {
                let list = self.eval(list, scope, myself)?;
                for item in self.elements(&list, at)? {
                    self.assign(target, item, scope, myself, at)?;
                    match self.eval(body, scope, myself) {
                        Err(Flow::Break(value)) => return Ok(value),
                        Err(Flow::Next(_)) => {}
                        other => drop(other?),
                    }
                }
                list
            }
            Kind::Case(subject, branches, otherwise) => {
                let subject = match subject {
                    Some(subject) => Some(self.eval(subject, scope, myself)?),
                    None => None,
                };
                for (values, body) in branches {
                    for value in self.arguments(values, scope, myself)? {
                        let hit = match &subject {
                            Some(subject) => self.case_equals(&value, subject, at)?,
                            None => value.truthy(),
                        };
                        if hit {
                            return self.eval(body, scope, myself);
                        }
                    }
                }
                self.eval(otherwise, scope, myself)?
            }
            Kind::Begin { .. } => self.begin(node, scope, myself)?,
            Kind::Def { on_self, name, body } => {
                let owner = if *on_self || !self.module.is_empty() {
                    self.module.clone()
                } else {
                    String::new()
                };
                self.methods
                    .insert((owner, name.clone()), Rc::new(Method { body: body.clone() }));
                Value::symbol(name)
            }
            Kind::Module(name, body) => {
                let full = match self.module.as_str() {
                    "" => name.clone(),
                    outer => format!("{outer}::{name}"),
                };
                let value = Value::Module(Rc::from(full.as_str()));
                self.constants.insert(full.clone(), value.clone());
                let outer = std::mem::replace(&mut self.module, full);
                let result = self.eval(body, &Rc::default(), &value);
                self.module = outer;
                result?
            }
            Kind::Return(value) => {
                return Err(Flow::Return(self.optional(value.as_deref(), scope, myself)?));
            }
            Kind::Next(value) => return Err(Flow::Next(self.optional(value.as_deref(), scope, myself)?)),
            Kind::Break(value) => return Err(Flow::Break(self.optional(value.as_deref(), scope, myself)?)),
            Kind::Yield(args) => {
                let args = self.arguments(args, scope, myself)?;
                let Some(block) = scope.block() else {
                    return Err(raise("LocalJumpError", "no block given (yield)", at));
                };
                self.call_block(&block, args, at)?
            }
            Kind::Lambda(body) => Value::Proc(Rc::new(Proc::Block {
                body: body.clone(),
                scope: scope.clone(),
                lambda: true,
                myself: myself.clone(),
            })),
            Kind::Defined(inner) => self.defined(inner, scope, myself),
            Kind::Sequence(list) => {
                let mut last = Value::Nil;
                for node in list {
                    last = self.eval(node, scope, myself)?;
                }
                last
            }
            Kind::Text(index) => {
                let program = self.program.clone();
                let Some((text, start)) = program.texts.get(*index) else {
                    return Err(unsupported("text printed by a method of another file", at));
                };
                self.print(text, *start, true, at)?;
                Value::Nil
            }
            Kind::Print(inner) => {
                let value = self.eval(inner, scope, myself)?;
                let text = value.to_text();
                let start = self.program.source(at);
                self.print(&text, start, false, at)?;
                Value::Nil
            }
        })
    }

    fn print(&mut self, text: &str, source: usize, copied: bool, at: usize) -> Result<(), Flow> {
        self.charge(text.len(), at)?;
        self.marks.push((self.out.len(), source, copied));
        self.out.push_str(text);
        Ok(())
    }

    fn optional(&mut self, node: Option<&Node>, scope: &Rc<Scope>, myself: &Value) -> Eval {
        match node {
            Some(node) => self.eval(node, scope, myself),
            None => Ok(Value::Nil),
        }
    }

    fn pieces(&mut self, pieces: &[Piece], scope: &Rc<Scope>, myself: &Value) -> Result<String, Flow> {
        let mut text = String::new();
        for piece in pieces {
            match piece {
                Piece::Text(part) => text.push_str(part),
                Piece::Code(node) => {
                    let value = self.eval(node, scope, myself)?;
                    match &value {
                        // A pattern put into another keeps its meaning.
                        Value::Regex(pattern) => text.push_str(&format!("(?:{})", pattern.source)),
                        other => text.push_str(&other.to_text()),
                    }
                    self.charge(text.len(), node.at)?;
                }
            }
        }
        Ok(text)
    }

    fn splat(&mut self, node: &Node, scope: &Rc<Scope>, myself: &Value) -> Result<Vec<Value>, Flow> {
        let value = self.eval(node, scope, myself)?;
        match &value {
            Value::Nil => Ok(Vec::new()),
            Value::Array(_) | Value::Hash(_) | Value::Range(_) => self.elements(&value, node.at),
            _ => Ok(vec![value]),
        }
    }

    fn arguments(&mut self, nodes: &[Node], scope: &Rc<Scope>, myself: &Value) -> Result<Vec<Value>, Flow> {
        let mut values = Vec::with_capacity(nodes.len());
        for node in nodes {
            match &node.kind {
                Kind::Splat(inner) => values.extend(self.splat(inner, scope, myself)?),
                _ => values.push(self.eval(node, scope, myself)?),
            }
        }
        Ok(values)
    }

    fn hash(&mut self, pairs: &[Pair], scope: &Rc<Scope>, myself: &Value) -> Eval {
        let mut map = IndexMap::new();
        for pair in pairs {
            match pair {
                Pair::Entry(key, value) => {
                    let at = key.at;
                    let key = self.eval(key, scope, myself)?;
                    let key = key
                        .key()
                        .ok_or_else(|| unsupported(format!("{} as a hash key", key.class()), at))?;
                    let value = self.eval(value, scope, myself)?;
                    map.insert(key, value);
                }
                Pair::Splat(node) => match self.eval(node, scope, myself)? {
                    Value::Hash(other) => map.extend(other.borrow().clone()),
                    Value::Nil => {}
                    other => {
                        let message = format!("no implicit conversion of {} into Hash", other.class());
                        return Err(raise("TypeError", message, node.at));
                    }
                },
            }
        }
        Ok(Value::hash(map))
    }

    fn while_loop(&mut self, parts: (&Node, &Node, bool, bool), scope: &Rc<Scope>, myself: &Value) -> Eval {
        let (condition, body, until, body_first) = parts;
        let mut first = body_first;
        while first || self.eval(condition, scope, myself)?.truthy() != until {
            first = false;
            match self.eval(body, scope, myself) {
                Err(Flow::Break(value)) => return Ok(value),
                Err(Flow::Next(_)) => {}
                other => drop(other?),
            }
        }
        Ok(Value::Nil)
    }

    fn begin(&mut self, node: &Node, scope: &Rc<Scope>, myself: &Value) -> Eval {
        let Kind::Begin {
            body,
            rescues,
            otherwise,
            ensure,
        } = &node.kind
        else {
            return Ok(Value::Nil);
        };
        let mut result = self.eval(body, scope, myself);
        if let Err(Flow::Raise { class, message, at }) = result {
            let mut handler = None;
            for rescue in rescues {
                let classes = self.arguments(&rescue.classes, scope, myself)?;
                let hit = match classes.is_empty() {
                    true => is_a(&class, "StandardError"),
                    false => classes.iter().any(|wanted| is_a(&class, &wanted.to_text())),
                };
                if hit {
                    handler = Some(rescue);
                    break;
                }
            }
            result = match handler {
                Some(rescue) => {
                    let error = Value::object(Object::Exception { class, message });
                    if let Some(name) = &rescue.name {
                        scope.set(name, error.clone());
                    }
                    self.globals.insert("!".to_owned(), error);
                    self.eval(&rescue.body, scope, myself)
                }
                None => Err(Flow::Raise { class, message, at }),
            };
        } else if let (Ok(_), Some(otherwise)) = (&result, otherwise) {
            result = self.eval(otherwise, scope, myself);
        }
        if let Some(ensure) = ensure {
            self.eval(ensure, scope, myself)?;
        }
        result
    }

    fn global(&mut self, name: &str, at: usize) -> Eval {
        if let Some(value) = self.globals.get(name) {
            return Ok(value.clone());
        }
        match name {
            "0" | "PROGRAM_NAME" => Ok(Value::str("kamal")),
            "?" | "~" | "!" | "1" | "2" | "3" | "4" | "5" | "6" | "7" | "8" | "9" => Ok(Value::Nil),
            "stdout" | "stderr" | "stdin" | "$" | ":" | "LOAD_PATH" | "PID" | "`" | "'" | "+" | "/" | "@" => {
                Err(unsupported(format!("${name}"), at))
            }
            _ => Ok(Value::Nil),
        }
    }

    /// Sets `$~` and `$1`… after a match.
    pub(super) fn remember_match(&mut self, found: Option<super::value::Match>) -> Value {
        for index in 1..=9 {
            let group = found
                .as_ref()
                .and_then(|found| found.groups.get(index).cloned().flatten());
            self.globals.insert(index.to_string(), Value::optional_str(group));
        }
        let whole = found
            .as_ref()
            .and_then(|found| found.groups.first().cloned().flatten());
        self.globals.insert("&".to_owned(), Value::optional_str(whole));
        let value = found.map_or(Value::Nil, |found| Value::object(Object::Match(found)));
        self.globals.insert("~".to_owned(), value.clone());
        value
    }

    /// Sets `$?` after a command.
    pub(super) fn remember_status(&mut self, code: Option<i32>) {
        self.globals
            .insert("?".to_owned(), Value::object(Object::Status(code)));
    }

    fn constant(
        &mut self,
        parent: Option<&Node>,
        name: &str,
        scope: &Rc<Scope>,
        myself: &Value,
        at: usize,
    ) -> Eval {
        let full = match parent {
            Some(parent) => format!("{}::{name}", self.eval(parent, scope, myself)?.to_text()),
            None => name.to_owned(),
        };
        let mut holder = match parent {
            Some(_) => String::new(),
            None => match myself {
                Value::Module(module) => module.to_string(),
                _ => self.module.clone(),
            },
        };
        loop {
            let candidate = match holder.as_str() {
                "" => full.clone(),
                holder => format!("{holder}::{full}"),
            };
            if let Some(value) = self.constants.get(&candidate) {
                return Ok(value.clone());
            }
            match holder.rfind("::") {
                _ if holder.is_empty() => break,
                Some(cut) => holder.truncate(cut),
                None => holder.clear(),
            }
        }
        super::builtin::constant(&full, at)
    }

    fn defined(&mut self, node: &Node, scope: &Rc<Scope>, myself: &Value) -> Value {
        let found = match &node.kind {
            Kind::Sequence(list) if list.len() == 1 => return self.defined(&list[0], scope, myself),
            Kind::Instance(name) => self.instance.contains_key(name).then_some("instance-variable"),
            Kind::Global(name) => self.globals.contains_key(name).then_some("global-variable"),
            Kind::Constant(..) => match self.eval(node, scope, myself) {
                Err(Flow::Raise { .. }) => None,
                _ => Some("constant"),
            },
            Kind::Call(call) if call.bare && scope.get(&call.name).is_some() => Some("local-variable"),
            Kind::Call(call) if call.receiver.is_none() => {
                let known = self.methods.keys().any(|(_, name)| *name == call.name);
                (known || super::builtin::is_kernel_method(&call.name)).then_some("method")
            }
            Kind::Call(_) => match self.eval(node, scope, myself) {
                Ok(_) => Some("method"),
                Err(_) => None,
            },
            Kind::Nil => Some("expression"),
            _ => Some("expression"),
        };
        found.map_or(Value::Nil, Value::str)
    }

    /// `pattern === value`.
    pub(super) fn case_equals(&mut self, pattern: &Value, value: &Value, at: usize) -> Result<bool, Flow> {
        Ok(match (pattern, value) {
            (Value::Regex(regex), Value::Str(text)) => {
                let found = regex.captures(&text.borrow());
                self.remember_match(found).truthy()
            }
            (Value::Regex(regex), Value::Symbol(text)) => regex.is_match(text),
            (Value::Regex(_), _) => false,
            (Value::Range(_), _) => super::builtin::range_includes(pattern, value),
            (Value::Module(class), _) => super::builtin::is_instance(value, class),
            (Value::Proc(_), _) => self.call_block(pattern, vec![value.clone()], at)?.truthy(),
            _ => pattern.equals(value),
        })
    }
}

/// Whether Ruby's exception class `class` is, or inherits from, `wanted`.
pub(super) fn is_a(class: &str, wanted: &str) -> bool {
    let parent = match class {
        _ if class == wanted => return true,
        "Exception" => return false,
        "SystemExit" | "SystemStackError" | "ScriptError" | "NoMemoryError" | "StandardError" => "Exception",
        "LoadError" | "SyntaxError" | "NotImplementedError" => "ScriptError",
        "KeyError" | "StopIteration" => "IndexError",
        "NoMethodError" => "NameError",
        "FrozenError" => "RuntimeError",
        "ZeroDivisionError" => "StandardError",
        _ if class.starts_with("Errno::") => "SystemCallError",
        _ => "StandardError",
    };
    is_a(parent, wanted)
}

/// Moves the place of an error.
fn move_to(flow: Flow, place: impl Fn(usize) -> usize) -> Flow {
    match flow {
        Flow::Raise { class, message, at } => Flow::Raise {
            class,
            message,
            at: place(at),
        },
        Flow::Unsupported { what, at } => Flow::Unsupported { what, at: place(at) },
        Flow::Syntax { what, at } => Flow::Syntax { what, at: place(at) },
        Flow::Budget { limit, at } => Flow::Budget { limit, at: place(at) },
        Flow::Run { program, source, at } => Flow::Run {
            program,
            source,
            at: place(at),
        },
        other => other,
    }
}
