//! Ruby's own methods, as far as configurations use them.
//!
//! A method that Ruby has and we do not is *unsupported* (the file then goes to an installed `ruby`);
//! a method that Ruby does not have either raises `NoMethodError`, as in Ruby.

mod enumerable;
mod format;
mod kernel;
mod libraries;
mod list;
mod map;
mod number;
mod string;
mod system;
mod text;
mod time;

use std::rc::Rc;

pub(super) use kernel::{is_kernel_method, kernel};
pub(super) use list::{elements_of, range_includes};

use super::interp::{Eval, Flow, Interp, is_a, raise, unsupported};
use super::value::{Object, Value};

/// `None` when the receiver has no such method here.
type Found = Result<Option<Value>, Flow>;

/// What a method is called with.
struct Args<'a> {
    list: &'a [Value],
    block: Option<&'a Value>,
    at: usize,
}

impl Args<'_> {
    fn get(&self, index: usize) -> Option<&Value> {
        self.list.get(index)
    }

    /// The arguments must be this many.
    fn count(&self, least: usize, most: usize) -> Result<(), Flow> {
        let given = self.list.len();
        if (least..=most).contains(&given) {
            return Ok(());
        }
        let expected = match (least, most) {
            (least, most) if least == most => least.to_string(),
            (least, usize::MAX) => format!("{least}+"),
            (least, most) => format!("{least}..{most}"),
        };
        Err(raise(
            "ArgumentError",
            format!("wrong number of arguments (given {given}, expected {expected})"),
            self.at,
        ))
    }

    /// The argument at `index` as text.
    fn text(&self, index: usize) -> Result<String, Flow> {
        match self.get(index) {
            Some(Value::Str(text)) => Ok(text.borrow().clone()),
            Some(other) => Err(raise(
                "TypeError",
                format!("no implicit conversion of {} into String", implicit_name(other)),
                self.at,
            )),
            None => Err(raise(
                "ArgumentError",
                format!(
                    "wrong number of arguments (given {index}, expected {})",
                    index + 1
                ),
                self.at,
            )),
        }
    }

    /// The argument at `index` as an integer.
    fn int(&self, index: usize) -> Result<i64, Flow> {
        match self.get(index) {
            Some(Value::Int(value)) => Ok(*value),
            #[allow(clippy::cast_possible_truncation)]
            Some(Value::Float(value)) => Ok(*value as i64),
            Some(other) => Err(raise(
                "TypeError",
                format!("no implicit conversion of {} into Integer", implicit_name(other)),
                self.at,
            )),
            None => Err(raise(
                "ArgumentError",
                format!(
                    "wrong number of arguments (given {index}, expected {})",
                    index + 1
                ),
                self.at,
            )),
        }
    }

    /// The value of a trailing `name: value`.
    fn option(&self, name: &str) -> Option<Value> {
        let Some(Value::Hash(map)) = self.list.last() else {
            return None;
        };
        let map = map.borrow();
        map.get(&super::value::Key::Symbol(Rc::from(name))).cloned()
    }
}

/// `nil`, `true` and `false` are named by value in conversion errors.
fn implicit_name(value: &Value) -> String {
    match value {
        Value::Nil => "nil".to_owned(),
        Value::Bool(value) => value.to_string(),
        other => other.class(),
    }
}

/// Calls a method of a built-in value.
pub(super) fn method(
    interp: &mut Interp<'_, '_>,
    receiver: &Value,
    name: &str,
    args: &[Value],
    block: Option<&Value>,
    at: usize,
) -> Eval {
    let args = Args {
        list: args,
        block,
        at,
    };
    let found = match receiver {
        Value::Str(text) => string::method(interp, text, name, &args)?,
        Value::Symbol(symbol) => string::symbol(interp, symbol, name, &args)?,
        Value::Array(list) => list::array(interp, list, name, &args)?,
        Value::Range(range) => list::range(interp, range, name, &args)?,
        Value::Hash(map) => map::hash(interp, map, name, &args)?,
        Value::Env => map::env(interp, name, &args)?,
        Value::Int(_) | Value::Float(_) => number::method(interp, receiver, name, &args)?,
        Value::Time(..) => time::method(interp, receiver, name, &args)?,
        Value::Proc(_) => match name {
            "call" | "()" | "yield" | "===" | "[]" => {
                Some(interp.call_block(receiver, args.list.to_vec(), at)?)
            }
            "to_proc" => Some(receiver.clone()),
            _ => None,
        },
        Value::Regex(pattern) => string::regex(interp, pattern, name, &args)?,
        Value::Module(module) => system::module_method(interp, module, name, &args)?,
        Value::Object(object) => system::object_method(interp, object, name, &args)?,
        Value::Nil => match name {
            "to_a" => Some(Value::array(Vec::new())),
            "to_h" => Some(Value::hash(indexmap::IndexMap::new())),
            "to_i" => Some(Value::Int(0)),
            "to_f" => Some(Value::Float(0.0)),
            "&" => Some(Value::Bool(false)),
            "|" => Some(Value::Bool(args.get(0).is_some_and(Value::truthy))),
            "=~" => Some(Value::Nil),
            _ => None,
        },
        Value::Bool(this) => match name {
            "&" => Some(Value::Bool(*this && args.get(0).is_some_and(Value::truthy))),
            "|" => Some(Value::Bool(*this || args.get(0).is_some_and(Value::truthy))),
            "^" => Some(Value::Bool(*this != args.get(0).is_some_and(Value::truthy))),
            _ => None,
        },
        Value::Main => None,
    };
    if let Some(value) = found {
        return Ok(value);
    }
    if let Some(value) = object(interp, receiver, name, &args)? {
        return Ok(value);
    }
    // The methods of nil and booleans are all here, and an operator that is not defined is not defined in Ruby either.
    let complete = matches!(receiver, Value::Nil | Value::Bool(_) | Value::Main)
        || !name.starts_with(|c: char| c.is_alphanumeric() || c == '_');
    if complete {
        let message = format!("undefined method `{name}' for {}", receiver.receiver_name());
        return Err(raise("NoMethodError", message, at));
    }
    Err(unsupported(
        format!("the method `{name}' of {}", receiver.receiver_name()),
        at,
    ))
}

/// Methods of every object, ActiveSupport's that Kamal loads included.
fn object(interp: &mut Interp<'_, '_>, this: &Value, name: &str, args: &Args<'_>) -> Found {
    let at = args.at;
    Ok(Some(match name {
        "==" | "eql?" | "equal?" => Value::Bool(args.get(0).is_some_and(|other| this.equals(other))),
        "===" => match args.get(0) {
            Some(other) => Value::Bool(interp.case_equals(this, other, at)?),
            None => return Ok(None),
        },
        "!=" => Value::Bool(!args.get(0).is_some_and(|other| this.equals(other))),
        "!" => Value::Bool(!this.truthy()),
        "<=>" => args
            .get(0)
            .and_then(|other| this.compare(other))
            .map_or(Value::Nil, |order| Value::Int(order as i64)),
        "nil?" => Value::Bool(matches!(this, Value::Nil)),
        "to_s" => interp.new_str(this.to_text(), at)?,
        "inspect" => interp.new_str(this.inspect(), at)?,
        "class" => Value::Module(Rc::from(this.class())),
        "is_a?" | "kind_of?" | "instance_of?" => match args.get(0) {
            Some(Value::Module(class)) => Value::Bool(is_instance(this, class)),
            _ => return Err(raise("TypeError", "class or module required", at)),
        },
        "blank?" => Value::Bool(this.is_blank()),
        "present?" => Value::Bool(!this.is_blank()),
        "presence" if this.is_blank() => Value::Nil,
        "presence" | "itself" | "freeze" => this.clone(),
        "dup" | "clone" => duplicate(this),
        "frozen?" => Value::Bool(!matches!(this, Value::Str(_) | Value::Array(_) | Value::Hash(_))),
        "in?" => match args.get(0) {
            Some(list) => {
                let list = interp.elements(list, at)?;
                Value::Bool(list.iter().any(|item| item.equals(this)))
            }
            None => return Ok(None),
        },
        "to_json" if args.list.is_empty() => {
            let text = libraries::to_json(this, at)?;
            interp.new_str(text, at)?
        }
        "tap" => {
            call(interp, args, vec![this.clone()])?;
            this.clone()
        }
        "then" | "yield_self" => call(interp, args, vec![this.clone()])?,
        "try" | "send" | "public_send" | "__send__" => {
            let method = match args.get(0) {
                Some(Value::Symbol(method)) => method.to_string(),
                Some(Value::Str(method)) => method.borrow().clone(),
                _ => return Ok(None),
            };
            if name == "try" && matches!(this, Value::Nil) {
                return Ok(Some(Value::Nil));
            }
            interp.send(
                this.clone(),
                &method,
                args.list[1..].to_vec(),
                args.block.cloned(),
                at,
            )?
        }
        "method" => match args.get(0) {
            Some(Value::Symbol(method)) => Value::Proc(Rc::new(super::value::Proc::Method(
                this.clone(),
                method.to_string(),
            ))),
            _ => return Ok(None),
        },
        "instance_variables"
        | "object_id"
        | "hash"
        | "methods"
        | "respond_to?"
        | "extend"
        | "instance_variable_get"
        | "instance_variable_set"
        | "define_singleton_method"
        | "display"
        | "enum_for"
        | "to_enum"
        | "to_json"
        | "to_yaml"
        | "to_query"
        | "to_param"
        | "with_options"
        | "instance_values"
        | "acts_like?"
        | "duplicable?"
        | "deep_dup"
        | "html_safe?"
        | "instance_eval"
        | "instance_exec"
        | "singleton_class" => {
            return Err(unsupported(format!("`{name}'"), at));
        }
        _ => return Ok(None),
    }))
}

/// Calls the block of a method that needs one.
fn call(interp: &mut Interp<'_, '_>, args: &Args<'_>, values: Vec<Value>) -> Eval {
    match args.block {
        Some(block) => {
            interp.work(1, args.at)?;
            interp.call_block(block, values, args.at)
        }
        None => Err(unsupported("an enumerator (a method without its block)", args.at)),
    }
}

fn duplicate(value: &Value) -> Value {
    match value {
        Value::Str(text) => Value::str(text.borrow().clone()),
        Value::Array(list) => Value::array(list.borrow().clone()),
        Value::Hash(map) => Value::hash(map.borrow().clone()),
        other => other.clone(),
    }
}

/// Whether `value` is an instance of `class` or of one that inherits from it.
pub(super) fn is_instance(value: &Value, class: &str) -> bool {
    let own = value.class();
    match class {
        "Object" | "BasicObject" | "Kernel" => true,
        "Numeric" | "Comparable" if matches!(value, Value::Int(_) | Value::Float(_)) => true,
        "Comparable" => matches!(value, Value::Str(_)),
        "Enumerable" => matches!(value, Value::Array(_) | Value::Hash(_) | Value::Range(_)),
        _ => match value {
            Value::Object(object) if matches!(**object, Object::Exception { .. }) => is_a(&own, class),
            _ => own == class || own.starts_with("URI::") && class == "URI::Generic",
        },
    }
}

/// Constants that exist in Ruby as Kamal starts it.
const CONSTANTS: &[&str] = &[
    "Array",
    "Base64",
    "Comparable",
    "Date",
    "Dir",
    "Dotenv",
    "ERB",
    "Enumerable",
    "Errno",
    "Errno::ENOENT",
    "Exception",
    "File",
    "FileTest",
    "Float",
    "Hash",
    "IO",
    "IndexError",
    "Integer",
    "JSON",
    "Kamal",
    "Kamal::Utils",
    "KeyError",
    "Kernel",
    "LoadError",
    "NameError",
    "NilClass",
    "NoMethodError",
    "Numeric",
    "Object",
    "Proc",
    "Process",
    "Range",
    "Regexp",
    "RuntimeError",
    "ScriptError",
    "Shellwords",
    "StandardError",
    "String",
    "Symbol",
    "SystemExit",
    "Time",
    "TrueClass",
    "FalseClass",
    "TypeError",
    "ArgumentError",
    "URI",
    "URI::HTTP",
    "URI::HTTPS",
    "URI::Generic",
    "URI::InvalidURIError",
    "Psych",
    "Psych::SyntaxError",
    "YAML",
    "JSON::ParserError",
    "Exception",
    "Math",
    "ZeroDivisionError",
    "Etc",
    "Socket",
];

/// Constants that Ruby, its standard library or Kamal's gems have and we do not.
const UNSUPPORTED_CONSTANTS: &[&str] = &[
    "ARGV",
    "ActiveSupport",
    "BasicObject",
    "Benchmark",
    "BigDecimal",
    "Bundler",
    "CGI",
    "CSV",
    "Class",
    "Complex",
    "Concurrent",
    "Data",
    "DateTime",
    "Digest",
    "ENVIRONMENT",
    "Encoding",
    "Enumerator",
    "Fiber",
    "FileUtils",
    "Find",
    "Forwardable",
    "GC",
    "Gem",
    "IPAddr",
    "Logger",
    "Marshal",
    "Method",
    "Module",
    "Monitor",
    "Mutex",
    "Net",
    "Object",
    "ObjectSpace",
    "Open3",
    "OpenSSL",
    "OpenStruct",
    "OptionParser",
    "Pathname",
    "PP",
    "Queue",
    "Ractor",
    "Random",
    "Rational",
    "RbConfig",
    "Resolv",
    "RubyVM",
    "SSHKit",
    "SecureRandom",
    "Set",
    "Signal",
    "Singleton",
    "StringIO",
    "Struct",
    "Tempfile",
    "Thor",
    "Thread",
    "Timeout",
    "TracePoint",
    "Zeitwerk",
    "Zlib",
    "Pathname",
    "TOPLEVEL_BINDING",
    "ARGF",
    "STDERR",
    "STDIN",
    "STDOUT",
    "Delegator",
    "DidYouMean",
    "EOFError",
    "EncodingError",
    "FloatDomainError",
    "FrozenError",
    "IOError",
    "Interrupt",
    "LocalJumpError",
    "Matrix",
    "NoMatchingPatternError",
    "NotImplementedError",
    "Prime",
    "RangeError",
    "RegexpError",
    "RUBY_DESCRIPTION",
    "RUBY_PATCHLEVEL",
    "SecurityError",
    "SignalException",
    "SimpleDelegator",
    "StopIteration",
    "SystemCallError",
    "SystemStackError",
    "UncaughtThrowError",
];

/// The value of a constant that the files did not define.
pub(super) fn constant(name: &str, at: usize) -> Eval {
    Ok(match name {
        "ENV" => Value::Env,
        "RUBY_ENGINE" => Value::str("ruby"),
        "RUBY_VERSION" | "RUBY_ENGINE_VERSION" => Value::str("3.4.7"),
        "RUBY_PLATFORM" => Value::str(format!("{}-linux", std::env::consts::ARCH)),
        "File::SEPARATOR" => Value::str("/"),
        "Float::INFINITY" => Value::Float(f64::INFINITY),
        "Math::PI" => Value::Float(std::f64::consts::PI),
        "Kamal::VERSION" => Value::str("2.12.0"),
        "URI::DEFAULT_PARSER" => return Err(unsupported(name, at)),
        _ if CONSTANTS.contains(&name) => Value::Module(Rc::from(name)),
        _ => {
            let root = name.split("::").next().unwrap_or(name);
            if UNSUPPORTED_CONSTANTS.contains(&root) || (CONSTANTS.contains(&root) && root != name) {
                return Err(unsupported(format!("the constant {name}"), at));
            }
            return Err(raise("NameError", format!("uninitialized constant {name}"), at));
        }
    })
}

impl Interp<'_, '_> {
    /// The elements of an array, hash or range.
    pub(super) fn elements(&mut self, value: &Value, at: usize) -> Result<Vec<Value>, Flow> {
        elements_of(self, value, at)
    }
}
