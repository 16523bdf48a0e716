//! Methods called without a receiver.

use super::super::interp::{Flow, Interp, raise, unsupported};
use super::super::value::{Object, Value};
use super::{Args, Found, call, format, libraries, system};

/// Kernel methods of Ruby that we leave to Ruby.
const LEFT_TO_RUBY: &[&str] = &[
    "autoload",
    "caller",
    "caller_locations",
    "catch",
    "eval",
    "exec",
    "fork",
    "gets",
    "getc",
    "instance_eval",
    "local_variables",
    "global_variables",
    "open",
    "pp",
    "putc",
    "rand",
    "readline",
    "readlines",
    "select",
    "set_trace_func",
    "sleep",
    "spawn",
    "srand",
    "syscall",
    "test",
    "throw",
    "trap",
    "warn",
    "yaml",
    "include",
    "extend",
    "private",
    "public",
    "using",
    "define_method",
    "Rational",
    "Complex",
    "Pathname",
    "BigDecimal",
    "at_exit",
    "instance_variable_get",
    "instance_variable_set",
    "attr_accessor",
    "attr_reader",
    "private_class_method",
    "refine",
    "private_constant",
    "protected",
    "alias_method",
];

/// Whether Ruby's kernel has the method.
pub(in super::super) fn is_kernel_method(name: &str) -> bool {
    LEFT_TO_RUBY.contains(&name)
        || matches!(
            name,
            "puts"
                | "print"
                | "p"
                | "raise"
                | "fail"
                | "abort"
                | "exit"
                | "require"
                | "require_relative"
                | "load"
                | "format"
                | "sprintf"
                | "system"
                | "binding"
                | "loop"
                | "lambda"
                | "proc"
                | "block_given?"
                | "Integer"
                | "Float"
                | "String"
                | "Array"
        )
}

/// Calls a kernel method; `None` when Ruby has none of that name.
pub(in super::super) fn kernel(
    interp: &mut Interp<'_, '_>,
    name: &str,
    list: &[Value],
    block: Option<&Value>,
    at: usize,
) -> Found {
    let args = &Args { list, block, at };
    Ok(Some(match name {
        // What a template writes to the terminal is not part of its result.
        "puts" | "print" | "warn" => Value::Nil,
        "p" | "pp" => args.get(0).cloned().unwrap_or(Value::Nil),
        "raise" | "fail" => return Err(raised(args)),
        "abort" => {
            let message = if list.is_empty() {
                "exit".to_owned()
            } else {
                args.text(0)?
            };
            return Err(raise("SystemExit", message, at));
        }
        "exit" | "exit!" => return Err(raise("SystemExit", "exit", at)),
        "require" => system::require(interp, &args.text(0)?, at)?,
        "require_relative" => system::load_ruby(interp, &args.text(0)?, true, at)?,
        "load" => system::load_ruby(interp, &args.text(0)?, false, at)?,
        "format" | "sprintf" => {
            let text = format::format(&args.text(0)?, &list[1..], at)?;
            interp.new_str(text, at)?
        }
        "system" => system::system(interp, args)?,
        "`" => interp.backtick(&args.text(0)?, at)?,
        "loop" => loop {
            match call(interp, args, Vec::new()) {
                Err(Flow::Break(value)) => return Ok(Some(value)),
                Err(Flow::Raise { class, .. }) if class == "StopIteration" => break Value::Nil,
                other => drop(other?),
            }
        },
        "Integer" => integer(args)?,
        "Float" => match args.get(0) {
            #[allow(clippy::cast_precision_loss)]
            Some(Value::Int(value)) => Value::Float(*value as f64),
            Some(Value::Float(value)) => Value::Float(*value),
            Some(Value::Nil) => return Err(raise("TypeError", "can't convert nil into Float", at)),
            Some(other) => {
                let text = other.to_text();
                let plain = text.trim().replace('_', "");
                let valid =
                    plain.ends_with(|c: char| c.is_ascii_digit()) && !plain.contains(['i', 'n', 'N', 'I']);
                match plain.parse().ok().filter(|_| valid) {
                    Some(value) => Value::Float(value),
                    None => {
                        let message = format!("invalid value for Float(): {}", other.inspect());
                        return Err(raise("ArgumentError", message, at));
                    }
                }
            }
            None => return Ok(None),
        },
        "String" => Value::str(args.get(0).map(Value::to_text).unwrap_or_default()),
        "Array" => match args.get(0) {
            Some(Value::Nil) | None => Value::array(Vec::new()),
            Some(value @ Value::Array(_)) => value.clone(),
            Some(value @ (Value::Hash(_) | Value::Range(_))) => Value::array(interp.elements(value, at)?),
            Some(other) => Value::array(vec![other.clone()]),
        },
        "URI" => libraries::uri(&args.text(0)?, at)?,
        "__dir__" => Value::str("."),
        "__FILE__" => Value::str("(erb)"),
        "__method__" => Value::Nil,
        "module_function" => Value::Nil,
        "method" => match args.get(0) {
            Some(method @ (Value::Symbol(_) | Value::Str(_))) => Value::Proc(std::rc::Rc::new(
                super::super::value::Proc::Method(Value::Main, method.to_text()),
            )),
            _ => return Ok(None),
        },
        "send" | "public_send" | "__send__" => match args.get(0) {
            Some(method) => return kernel(interp, &method.to_text(), &list[1..], block, at),
            None => return Ok(None),
        },
        "freeze" | "itself" => Value::Main,
        "to_s" | "inspect" => Value::str("main"),
        "nil?" => Value::Bool(false),
        _ if LEFT_TO_RUBY.contains(&name) => return Err(unsupported(format!("`{name}'"), at)),
        _ => return Ok(None),
    }))
}

/// The exception `raise` means: a message, a class, or both.
fn raised(args: &Args<'_>) -> Flow {
    let message = args.get(1).map(Value::to_text);
    match args.get(0) {
        None => raise("RuntimeError", "unhandled exception", args.at),
        Some(Value::Str(text)) => raise("RuntimeError", text.borrow().as_str(), args.at),
        Some(Value::Module(class)) => raise(class, message.unwrap_or_else(|| class.to_string()), args.at),
        Some(Value::Object(object)) => match &**object {
            Object::Exception { class, message: own } => {
                raise(class, message.unwrap_or_else(|| own.clone()), args.at)
            }
            _ => raise("TypeError", "exception class/object expected", args.at),
        },
        Some(_) => raise("TypeError", "exception class/object expected", args.at),
    }
}

fn integer(args: &Args<'_>) -> super::Eval {
    let at = args.at;
    let forgiving = args.option("exception").is_some_and(|value| !value.truthy());
    match args.get(0) {
        Some(value @ Value::Int(_)) => Ok(value.clone()),
        #[allow(clippy::cast_possible_truncation)]
        Some(Value::Float(value)) => Ok(Value::Int(*value as i64)),
        Some(Value::Str(text)) => match strict_int(&text.borrow()) {
            Some(value) => Ok(Value::Int(value)),
            None if forgiving => Ok(Value::Nil),
            None => {
                let message = format!("invalid value for Integer(): {}", args.list[0].inspect());
                Err(raise("ArgumentError", message, at))
            }
        },
        _ if forgiving => Ok(Value::Nil),
        other => {
            let class = other.map_or_else(|| "nil".to_owned(), super::implicit_name);
            Err(raise(
                "TypeError",
                format!("can't convert {class} into Integer"),
                at,
            ))
        }
    }
}

/// `Integer("…")`: the whole text must be a number; `0x`, `0b`, `0o` and a leading zero choose the base.
pub(super) fn strict_int(text: &str) -> Option<i64> {
    let text = text.trim();
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.get(..2) {
        Some("0x") => (16, &lower[2..]),
        Some("0b") => (2, &lower[2..]),
        Some("0o") => (8, &lower[2..]),
        Some(_) if lower.starts_with('0') => (8, lower[1..].trim_start_matches('_')),
        _ => (10, lower.as_str()),
    };
    let misplaced = digits.starts_with('_') || digits.ends_with('_') || digits.contains("__");
    if misplaced || digits.starts_with(['+', '-']) {
        return None;
    }
    i64::from_str_radix(&digits.replace('_', ""), radix)
        .ok()
        .map(|value| value * sign)
}
