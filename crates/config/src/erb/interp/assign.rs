//! Assignments: to variables, elements, several at once, and with an operator.

use std::rc::Rc;

use super::{Eval, Flow, Interp, Node, Scope, Target, Value, unsupported};

impl Interp<'_, '_> {
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

    pub(super) fn as_list(&mut self, value: Value, at: usize) -> Result<Vec<Value>, Flow> {
        match &value {
            Value::Array(_) => self.elements(&value, at),
            Value::Nil => Ok(vec![Value::Nil]),
            _ => Ok(vec![value]),
        }
    }

    pub(super) fn destructure(
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

    pub(super) fn op_assign(
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
    pub(super) fn combine(
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
}
