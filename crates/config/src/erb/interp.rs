//! Evaluates the tree, with a bound on steps, depth and memory.

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
            "stdout" | "stderr" | "stdin" | "$" | ":" | "LOAD_PATH" | "PID" => {
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

    pub(super) fn assign(
        &mut self,
        target: &Target,
        value: Value,
        scope: &Rc<Scope>,
        myself: &Value,
        at: usize,
    ) -> Result<(), Flow> {
        match target {
            Target::Local(name) => scope.set(name, value),
            Target::Instance(name) => {
                self.instance.insert(name.clone(), value);
            }
            Target::Global(name) => {
                self.globals.insert(name.clone(), value);
            }
            Target::Constant(name) => {
                let full = match self.module.as_str() {
                    "" => name.clone(),
                    module => format!("{module}::{name}"),
                };
                self.constants.insert(full, value);
            }
            Target::Index(receiver, args) => {
                let receiver = self.eval(receiver, scope, myself)?;
                let mut args = self.arguments(args, scope, myself)?;
                args.push(value);
                self.send(receiver, "[]=", args, None, at)?;
            }
            Target::Splat(inner) => {
                let list = self.as_list(value, at)?;
                self.assign(inner, Value::array(list), scope, myself, at)?;
            }
            Target::Nested(targets) => self.destructure(targets, value, scope, myself, at)?,
        }
        Ok(())
    }

    fn as_list(&mut self, value: Value, at: usize) -> Result<Vec<Value>, Flow> {
        match &value {
            Value::Array(_) => self.elements(&value, at),
            Value::Nil => Ok(vec![Value::Nil]),
            _ => Ok(vec![value]),
        }
    }

    fn destructure(
        &mut self,
        targets: &[Target],
        value: Value,
        scope: &Rc<Scope>,
        myself: &Value,
        at: usize,
    ) -> Result<(), Flow> {
        let list = self.as_list(value, at)?;
        let splat = targets
            .iter()
            .position(|target| matches!(target, Target::Splat(_)));
        let after = splat.map_or(0, |index| targets.len() - index - 1);
        for (index, target) in targets.iter().enumerate() {
            let value = match splat {
                Some(splat) if index == splat => {
                    let end = list.len().saturating_sub(after).max(splat);
                    Value::array(list.get(splat..end).unwrap_or_default().to_vec())
                }
                Some(splat) if index > splat => {
                    let start = list.len().saturating_sub(after).max(splat);
                    list.get(start + index - splat - 1).cloned().unwrap_or(Value::Nil)
                }
                _ => list.get(index).cloned().unwrap_or(Value::Nil),
            };
            match target {
                Target::Splat(inner) => self.assign(inner, value, scope, myself, at)?,
                _ => self.assign(target, value, scope, myself, at)?,
            }
        }
        Ok(())
    }

    fn op_assign(
        &mut self,
        target: &Target,
        op: &str,
        value: &Node,
        scope: &Rc<Scope>,
        myself: &Value,
        at: usize,
    ) -> Eval {
        let (current, target) = match target {
            Target::Local(name) => (scope.get(name).unwrap_or(Value::Nil), target.clone()),
            Target::Instance(name) => (
                self.instance.get(name).cloned().unwrap_or(Value::Nil),
                target.clone(),
            ),
            Target::Global(name) => (
                self.globals.get(name).cloned().unwrap_or(Value::Nil),
                target.clone(),
            ),
            Target::Constant(name) => (
                self.constants.get(name).cloned().unwrap_or(Value::Nil),
                target.clone(),
            ),
            Target::Index(receiver, args) => {
                let receiver = self.eval(receiver, scope, myself)?;
                let args = self.arguments(args, scope, myself)?;
                let current = self.send(receiver.clone(), "[]", args.clone(), None, at)?;
                let new = match self.combine(&current, op, value, scope, myself, at)? {
                    Some(new) => new,
                    None => return Ok(current),
                };
                let mut args = args;
                args.push(new.clone());
                self.send(receiver, "[]=", args, None, at)?;
                return Ok(new);
            }
            Target::Splat(_) | Target::Nested(_) => return Err(unsupported("this assignment", at)),
        };
        match self.combine(&current, op, value, scope, myself, at)? {
            Some(new) => {
                self.assign(&target, new.clone(), scope, myself, at)?;
                Ok(new)
            }
            None => Ok(current),
        }
    }

    /// The new value of `current op= value`; `None` when `||=` or `&&=` leaves it.
    fn combine(
        &mut self,
        current: &Value,
        op: &str,
        value: &Node,
        scope: &Rc<Scope>,
        myself: &Value,
        at: usize,
    ) -> Result<Option<Value>, Flow> {
        match op {
            "||" if current.truthy() => Ok(None),
            "&&" if !current.truthy() => Ok(None),
            "||" | "&&" => self.eval(value, scope, myself).map(Some),
            _ => {
                let value = self.eval(value, scope, myself)?;
                self.send(current.clone(), op, vec![value], None, at).map(Some)
            }
        }
    }

    fn call(&mut self, call: &Call, scope: &Rc<Scope>, myself: &Value, at: usize) -> Eval {
        if call.bare
            && let Some(value) = scope.get(&call.name)
        {
            return Ok(value);
        }
        let receiver = match &call.receiver {
            Some(receiver) => Some(self.eval(receiver, scope, myself)?),
            None => None,
        };
        if call.safe && matches!(receiver, Some(Value::Nil)) {
            return Ok(Value::Nil);
        }
        let mut args = self.arguments(&call.args, scope, myself)?;
        let mut block = None;
        if matches!(
            call.args.last(),
            Some(Node {
                kind: Kind::BlockPass(_),
                ..
            })
        ) {
            block = match args.pop() {
                Some(Value::Symbol(name)) => Some(Value::Proc(Rc::new(Proc::Symbol(name)))),
                Some(Value::Nil) | None => None,
                Some(other) => Some(other),
            };
        }
        if let Some(body) = &call.block {
            block = Some(Value::Proc(Rc::new(Proc::Block {
                body: body.clone(),
                scope: scope.clone(),
                lambda: false,
                myself: myself.clone(),
            })));
        }
        self.enter(at)?;
        let result = match receiver {
            Some(receiver) => self.send(receiver, &call.name, args, block, at),
            None => self.call_own(call, args, block, scope, myself, at),
        };
        self.depth -= 1;
        match result {
            Err(Flow::Break(value)) if call.block.is_some() => Ok(value),
            other => other,
        }
    }

    /// A call without a receiver: a method of the file, else of Ruby's kernel.
    fn call_own(
        &mut self,
        call: &Call,
        args: Vec<Value>,
        block: Option<Value>,
        scope: &Rc<Scope>,
        myself: &Value,
        at: usize,
    ) -> Eval {
        let owner = match myself {
            Value::Module(name) => name.to_string(),
            _ => String::new(),
        };
        for owner in [owner, String::new()] {
            if let Some(method) = self.methods.get(&(owner, call.name.clone())).cloned() {
                return self.invoke(&method, myself, args, block, at);
            }
        }
        match call.name.as_str() {
            "binding" => return Ok(Value::object(Object::Binding(scope.clone(), myself.clone()))),
            "block_given?" => return Ok(Value::Bool(scope.block().is_some())),
            _ => {}
        }
        super::builtin::kernel(self, &call.name, &args, block.as_ref(), at)?.map_or_else(
            || {
                let message = if call.bare {
                    format!(
                        "undefined local variable or method `{}' for {}",
                        call.name,
                        myself.receiver_name()
                    )
                } else {
                    format!("undefined method `{}' for {}", call.name, myself.receiver_name())
                };
                let class = if call.bare { "NameError" } else { "NoMethodError" };
                Err(raise(class, message, at))
            },
            Ok,
        )
    }

    fn invoke(
        &mut self,
        method: &Rc<Method>,
        myself: &Value,
        args: Vec<Value>,
        block: Option<Value>,
        at: usize,
    ) -> Eval {
        let scope = Rc::new(Scope {
            block,
            ..Scope::default()
        });
        self.enter(at)?;
        self.bind(&method.body.params, args, &scope, myself, true, at)?;
        let result = self.eval(&method.body.body, &scope, myself);
        self.depth -= 1;
        match result {
            Err(Flow::Return(value)) => Ok(value),
            other => other,
        }
    }

    /// Calls a method of a value.
    pub(super) fn send(
        &mut self,
        receiver: Value,
        name: &str,
        args: Vec<Value>,
        block: Option<Value>,
        at: usize,
    ) -> Eval {
        self.work(1, at)?;
        if let Value::Module(module) = &receiver
            && let Some(method) = self.methods.get(&(module.to_string(), name.to_owned())).cloned()
        {
            return self.invoke(&method, &receiver, args, block, at);
        }
        super::builtin::method(self, &receiver, name, &args, block.as_ref(), at)
    }

    /// Calls a block, lambda or `&:name`.
    pub(super) fn call_block(&mut self, block: &Value, mut args: Vec<Value>, at: usize) -> Eval {
        let Value::Proc(callable) = block else {
            return Err(raise(
                "TypeError",
                format!("wrong argument type {} (expected Proc)", block.class()),
                at,
            ));
        };
        match &**callable {
            Proc::Symbol(name) => {
                if args.is_empty() {
                    return Err(raise("ArgumentError", "no receiver given", at));
                }
                let receiver = args.remove(0);
                self.send(receiver, name, args, None, at)
            }
            Proc::Method(receiver, name) => match receiver {
                Value::Main => {
                    let call = Call {
                        receiver: None,
                        name: name.clone(),
                        args: Vec::new(),
                        block: None,
                        safe: false,
                        bare: false,
                    };
                    self.call_own(&call, args, None, &Rc::default(), &Value::Main, at)
                }
                other => self.send(other.clone(), name, args, None, at),
            },
            Proc::Block {
                body,
                scope,
                lambda,
                myself,
            } => {
                let inner = Rc::new(Scope {
                    parent: Some(scope.clone()),
                    ..Scope::default()
                });
                // A block with several parameters takes an array apart.
                let spreads = body.params.len() > 1 && !*lambda;
                if let ([Value::Array(list)], true) = (args.as_slice(), spreads) {
                    let list = list.borrow().clone();
                    args = list;
                }
                if body.params.is_empty() {
                    let first = args.first().cloned().unwrap_or(Value::Nil);
                    if let Some(second) = args.get(1) {
                        inner.declare("_2", second.clone());
                        inner.declare("_1", first);
                    } else {
                        inner.declare("it", first.clone());
                        inner.declare("_1", first);
                    }
                    args.clear();
                }
                self.enter(at)?;
                self.bind(&body.params, args, &inner, myself, *lambda, at)?;
                let result = self.eval(&body.body, &inner, myself);
                self.depth -= 1;
                match result {
                    Err(Flow::Next(value)) => Ok(value),
                    Err(Flow::Return(value)) if *lambda => Ok(value),
                    other => other,
                }
            }
        }
    }

    /// Binds arguments to parameters; `strict` counts them, as methods and lambdas do.
    fn bind(
        &mut self,
        params: &[Param],
        mut args: Vec<Value>,
        scope: &Rc<Scope>,
        myself: &Value,
        strict: bool,
        at: usize,
    ) -> Result<(), Flow> {
        let has_keywords = params
            .iter()
            .any(|param| matches!(param, Param::Keyword(..) | Param::KeywordRest(_)));
        let mut keywords = IndexMap::new();
        if has_keywords && let Some(Value::Hash(map)) = args.last() {
            keywords = map.borrow().clone();
            args.pop();
        }
        let required = params
            .iter()
            .filter(|param| matches!(param, Param::Required(_) | Param::Nested(_)))
            .count();
        let optional = params
            .iter()
            .filter(|param| matches!(param, Param::Optional(..)))
            .count();
        let rest = params.iter().any(|param| matches!(param, Param::Rest(_)));
        if strict && (args.len() < required || (!rest && args.len() > required + optional)) {
            let expected = match (optional, rest) {
                (_, true) => format!("{required}+"),
                (0, false) => required.to_string(),
                (optional, false) => format!("{required}..{}", required + optional),
            };
            let message = format!(
                "wrong number of arguments (given {}, expected {expected})",
                args.len()
            );
            return Err(raise("ArgumentError", message, at));
        }
        let mut spare = args.len().saturating_sub(required);
        let mut args = args.into_iter();
        let rest_count = spare.saturating_sub(optional);
        for param in params {
            match param {
                Param::Required(name) => scope.declare(name, args.next().unwrap_or(Value::Nil)),
                Param::Optional(name, default) => {
                    let value = if spare > 0 {
                        spare -= 1;
                        args.next().unwrap_or(Value::Nil)
                    } else {
                        self.eval(default, scope, myself)?
                    };
                    scope.declare(name, value);
                }
                Param::Rest(name) => {
                    let list = args.by_ref().take(rest_count).collect();
                    scope.declare(name, Value::array(list));
                }
                Param::Nested(inner) => {
                    let value = args.next().unwrap_or(Value::Nil);
                    let list = self.as_list(value, at)?;
                    self.bind(inner, list, scope, myself, false, at)?;
                }
                Param::Keyword(name, default) => {
                    let key = super::value::Key::Symbol(Rc::from(name.as_str()));
                    let value = match (keywords.shift_remove(&key), default) {
                        (Some(value), _) => value,
                        (None, Some(default)) => self.eval(default, scope, myself)?,
                        (None, None) => {
                            return Err(raise("ArgumentError", format!("missing keyword: :{name}"), at));
                        }
                    };
                    scope.declare(name, value);
                }
                Param::KeywordRest(name) => scope.declare(name, Value::hash(std::mem::take(&mut keywords))),
                Param::Block(name) => scope.declare(name, scope.block().unwrap_or(Value::Nil)),
            }
        }
        if strict && let Some(key) = keywords.keys().next() {
            return Err(raise(
                "ArgumentError",
                format!("unknown keyword: {}", key.value().inspect()),
                at,
            ));
        }
        Ok(())
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
