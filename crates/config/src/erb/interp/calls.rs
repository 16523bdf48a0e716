//! Calls: of methods of the file, of Ruby's own, and of blocks.

use std::rc::Rc;

use indexmap::IndexMap;

use super::{Call, Eval, Flow, Interp, Kind, Method, Node, Object, Param, Proc, Scope, Value, raise};
use crate::erb::{builtin, value};

impl Interp<'_, '_> {
    pub(super) fn call(&mut self, call: &Call, scope: &Rc<Scope>, myself: &Value, at: usize) -> Eval {
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
    pub(super) fn call_own(
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
        builtin::kernel(self, &call.name, &args, block.as_ref(), at)?.map_or_else(
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

    pub(super) fn invoke(
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
    pub(in crate::erb) fn send(
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
        builtin::method(self, &receiver, name, &args, block.as_ref(), at)
    }

    /// Calls a block, lambda or `&:name`.
    pub(in crate::erb) fn call_block(&mut self, block: &Value, mut args: Vec<Value>, at: usize) -> Eval {
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
    pub(super) fn bind(
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
                    let key = value::Key::Symbol(Rc::from(name.as_str()));
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
}
