//! What reaches outside the template: files, commands, dotenv, and the libraries configurations `require`.

use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use indexmap::IndexMap;

use super::super::interp::{Eval, Flow, Interp, raise, unsupported};
use super::super::template::Trim;
use super::super::value::{Object, Scope, Value};
use super::{Args, Found, call, libraries, string, time};
use crate::runner::{Invocation, Outcome};

/// Files larger than this are not configuration.
const LARGEST_FILE: u64 = 16 << 20;

/// Libraries whose `require` needs nothing from us.
const LIBRARIES: &[&str] = &[
    "English",
    "active_support",
    "active_support/all",
    "active_support/core_ext",
    "base64",
    "date",
    "dotenv",
    "dotenv/load",
    "erb",
    "etc",
    "fileutils",
    "json",
    "kamal",
    "open3",
    "pathname",
    "securerandom",
    "set",
    "shellwords",
    "socket",
    "time",
    "uri",
    "yaml",
    "psych",
    "digest",
    "openssl",
    "net/http",
    "ostruct",
    "tempfile",
    "bundler/setup",
    "logger",
    "stringio",
];

impl Interp<'_, '_> {
    /// Runs a command as Ruby's back-ticks do: its output, whatever its exit status.
    pub(in super::super) fn backtick(&mut self, command: &str, at: usize) -> Eval {
        let outcome = run(self, command, at)?;
        self.remember_status(outcome.code);
        let text = String::from_utf8(outcome.stdout)
            .map_err(|_| unsupported("command output that is not UTF-8", at))?;
        self.new_str(text, at)
    }
}

/// Ruby starts a command directly when no character means anything to a shell.
fn needs_shell(command: &str) -> bool {
    const RESERVED: &[&str] = &[
        "!", ".", ":", "break", "case", "cd", "continue", "do", "done", "elif", "else", "esac", "eval",
        "exec", "exit", "export", "fi", "for", "if", "in", "read", "readonly", "return", "set", "shift",
        "then", "times", "trap", "umask", "unset", "until", "wait", "while", "command", "type", "ulimit",
    ];
    let first = command.split_ascii_whitespace().next().unwrap_or("");
    command.contains(|c| "*?{}[]<>()~&|\\$;'`\"\n#%".contains(c))
        || first.contains('=')
        || RESERVED.contains(&first)
}

fn run(interp: &mut Interp<'_, '_>, command: &str, at: usize) -> Result<Outcome, Flow> {
    let shell = needs_shell(command);
    let argv: Vec<String> = match shell {
        true => vec!["sh".to_owned(), "-c".to_owned(), command.to_owned()],
        false => command.split_ascii_whitespace().map(str::to_owned).collect(),
    };
    let program = argv.first().cloned().unwrap_or_default();
    let invocation = Invocation {
        argv,
        env: interp.ctx.env.clone(),
        directory: interp.ctx.directory.clone(),
        stdin: None,
    };
    match interp.ctx.runner.run(&invocation) {
        Ok(outcome) => Ok(outcome),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !shell => Err(raise(
            "Errno::ENOENT",
            format!("No such file or directory - {program}"),
            at,
        )),
        Err(source) => Err(Flow::Run { program, source, at }),
    }
}

/// `system("…")`: true, false, or nil when there is no such program.
pub(super) fn system(interp: &mut Interp<'_, '_>, args: &Args<'_>) -> Eval {
    if args.list.len() != 1 {
        return Err(unsupported("`system' with several arguments", args.at));
    }
    match run(interp, &args.text(0)?, args.at) {
        Ok(outcome) => {
            interp.remember_status(outcome.code);
            Ok(Value::Bool(outcome.success()))
        }
        Err(Flow::Raise { .. }) => Ok(Value::Nil),
        Err(other) => Err(other),
    }
}

fn resolve(interp: &Interp<'_, '_>, path: &str) -> PathBuf {
    interp.ctx.directory.join(path)
}

/// The option of the readers of JSON and YAML that makes keys symbols.
fn symbol_names(args: &Args<'_>) -> bool {
    args.option("symbolize_names").is_some_and(|value| value.truthy())
}

pub(super) fn read(interp: &mut Interp<'_, '_>, path: &str, at: usize) -> Result<String, Flow> {
    let file = resolve(interp, path);
    let trouble = |error: &std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => raise(
            "Errno::ENOENT",
            format!("No such file or directory @ rb_sysopen - {path}"),
            at,
        ),
        std::io::ErrorKind::PermissionDenied => raise(
            "Errno::EACCES",
            format!("Permission denied @ rb_sysopen - {path}"),
            at,
        ),
        _ => raise("IOError", format!("{error} - {path}"), at),
    };
    let found = std::fs::metadata(&file).map_err(|error| trouble(&error))?;
    if found.is_dir() {
        return Err(raise(
            "Errno::EISDIR",
            format!("Is a directory @ io_fread - {path}"),
            at,
        ));
    }
    if !found.is_file() || found.len() > LARGEST_FILE {
        return Err(unsupported(
            format!("reading {path}, which is not a small regular file"),
            at,
        ));
    }
    let bytes = std::fs::read(&file).map_err(|error| trouble(&error))?;
    interp.charge(bytes.len(), at)?;
    String::from_utf8(bytes).map_err(|_| unsupported(format!("reading {path}, which is not UTF-8"), at))
}

/// `require`: a known library, or a file of the project by its path.
pub(super) fn require(interp: &mut Interp<'_, '_>, name: &str, at: usize) -> Eval {
    if LIBRARIES.contains(&name) || name.starts_with("active_support/core_ext/") {
        if name == "dotenv/load" {
            libraries::dotenv_load(interp, vec![".env".to_owned()], false, false, at)?;
        }
        return Ok(Value::Bool(true));
    }
    if name.starts_with(['/', '.']) {
        return load_ruby(interp, name, true, at);
    }
    Err(unsupported(format!("the library {name:?}"), at))
}

/// Evaluates a Ruby file; `once` remembers it, as `require` does.
pub(super) fn load_ruby(interp: &mut Interp<'_, '_>, name: &str, once: bool, at: usize) -> Eval {
    let mut path = name.to_owned();
    if once && !path.ends_with(".rb") {
        path.push_str(".rb");
    }
    let file = normal(&resolve(interp, &path));
    if once && interp.required.contains(&file) {
        return Ok(Value::Bool(false));
    }
    if !file.is_file() {
        return Err(raise("LoadError", format!("cannot load such file -- {name}"), at));
    }
    interp.required.push(file);
    let code = read(interp, &path, at)?;
    interp.ruby_file(&code, at)?;
    Ok(Value::Bool(true))
}

/// Takes `.` and `..` out, by text as Ruby's `File.expand_path` does.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            Component::Normal(name) => out.push(name),
            _ => {}
        }
    }
    out
}

/// The home directory: `HOME`, else the entry of our own user.
fn home(interp: &Interp<'_, '_>, at: usize) -> Result<String, Flow> {
    use std::os::unix::fs::MetadataExt as _;
    if let Some(home) = interp.ctx.env.get("HOME").filter(|home| !home.is_empty()) {
        return Ok(home.clone());
    }
    let user = std::fs::metadata("/proc/self")
        .map(|found| found.uid().to_string())
        .ok();
    let table = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    table
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.get(2).copied() == user.as_deref())
        .and_then(|fields| fields.get(5).map(ToString::to_string))
        .ok_or_else(|| {
            raise(
                "ArgumentError",
                "couldn't find HOME environment -- expanding `~'",
                at,
            )
        })
}

pub(super) fn expand_path(
    interp: &Interp<'_, '_>,
    path: &str,
    base: Option<&str>,
    at: usize,
) -> Result<String, Flow> {
    let rooted = |path: &str| -> Result<PathBuf, Flow> {
        if path == "~" {
            return Ok(PathBuf::from(home(interp, at)?));
        }
        if let Some(rest) = path.strip_prefix("~/") {
            return Ok(Path::new(&home(interp, at)?).join(rest));
        }
        if path.starts_with('~') {
            return Err(unsupported("another user's home directory", at));
        }
        Ok(interp.ctx.directory.join(path))
    };
    let full = match base {
        Some(base) if !path.starts_with(['/', '~']) => rooted(base)?.join(path),
        _ => rooted(path)?,
    };
    Ok(normal(&full).to_string_lossy().into_owned())
}

/// Methods of classes and modules.
pub(super) fn module_method(
    interp: &mut Interp<'_, '_>,
    module: &Rc<str>,
    name: &str,
    args: &Args<'_>,
) -> Found {
    let at = args.at;
    if let Some(value) = time::module(interp, module, name) {
        return Ok(Some(value));
    }
    Ok(Some(match (&**module, name) {
        ("File" | "IO" | "FileTest", _) => return file(interp, name, args),
        ("Dir", _) => return dir(interp, name, args),
        ("Dotenv", _) => return libraries::dotenv(interp, name, args),
        ("ERB", "new") => {
            let mode = args.option("trim_mode").or_else(|| args.get(2).cloned());
            let trim = match mode.map(|mode| mode.to_text()).as_deref() {
                None | Some("" | "0") => Trim::None,
                Some("-") => Trim::Explicit,
                Some("1" | ">") => Trim::After,
                Some("2" | "<>") => Trim::Lines,
                Some(other) => return Err(unsupported(format!("the ERB trim mode {other:?}"), at)),
            };
            Value::object(Object::Template {
                text: args.text(0)?,
                trim,
            })
        }
        ("URI", "parse") => libraries::uri(&args.text(0)?, at)?,
        (
            "URI",
            "join"
            | "encode_www_form"
            | "encode_www_form_component"
            | "decode_www_form_component"
            | "extract"
            | "regexp",
        ) => {
            return Err(unsupported(format!("URI.{name}"), at));
        }
        ("Shellwords", "escape" | "shellescape") => Value::str(crate::secrets::shell::escape(&args.text(0)?)),
        ("Shellwords", "split" | "shellsplit" | "shellwords") => {
            let words = crate::secrets::shell::split(&args.text(0)?)
                .map_err(|what| raise("ArgumentError", what, at))?;
            Value::array(words.into_iter().map(Value::str).collect())
        }
        ("JSON", "parse") => {
            let symbols = symbol_names(args);
            let parsed: serde_json::Value = serde_json::from_str(&args.text(0)?)
                .map_err(|error| raise("JSON::ParserError", error.to_string(), at))?;
            libraries::from_json(parsed, symbols)
        }
        ("YAML" | "Psych", "load" | "safe_load" | "unsafe_load") => {
            let text = args.text(0)?;
            libraries::from_yaml(&text, symbol_names(args), at)?
        }
        ("YAML" | "Psych", "load_file" | "safe_load_file" | "unsafe_load_file") => {
            let text = read(interp, &args.text(0)?, at)?;
            libraries::from_yaml(&text, symbol_names(args), at)?
        }
        ("YAML" | "Psych", _) => return Err(unsupported(format!("{module}.{name}"), at)),
        ("Regexp", _) => return string::regexp_module(name, args),
        ("Kamal::Utils", "docker_arch") => docker_arch(interp, at)?,
        ("JSON", "generate" | "dump") if args.list.len() == 1 => {
            let text = libraries::to_json(&args.list[0], at)?;
            interp.new_str(text, at)?
        }
        ("Base64", _) => {
            let text = libraries::base64(name, &args.text(0)?, at)?;
            interp.new_str(text, at)?
        }
        ("Process", "pid") | ("Etc", _) | ("Socket", _) => {
            return Err(unsupported(format!("{module}.{name}"), at));
        }
        ("Kernel", _) => return super::kernel(interp, name, args.list, args.block, at),
        ("Date", "new" | "parse" | "iso8601") => time::date(name, args)?,
        ("Integer", "sqrt") | ("Math", _) | ("Time" | "Date", _) => {
            return Err(unsupported(format!("{module}.{name}"), at));
        }
        (_, "name" | "to_s") => Value::str(&**module),
        (_, "===") => Value::Bool(args.get(0).is_some_and(|value| super::is_instance(value, module))),
        ("String", "new") => Value::str(if args.list.is_empty() {
            String::new()
        } else {
            args.text(0)?
        }),
        ("Array", "new") if args.list.is_empty() => Value::array(Vec::new()),
        ("Hash", "new") if args.list.is_empty() && args.block.is_none() => Value::hash(IndexMap::new()),
        (class, "new" | "exception")
            if super::super::interp::is_a(class, "Exception") && class.ends_with("Error") =>
        {
            let message = args.get(0).map_or_else(|| class.to_owned(), Value::to_text);
            Value::object(Object::Exception {
                class: class.to_owned(),
                message,
            })
        }
        _ => return Ok(None),
    }))
}

/// `Kamal::Utils.docker_arch`: what the local Docker says, else this machine.
fn docker_arch(interp: &mut Interp<'_, '_>, at: usize) -> Eval {
    let printed = match run(interp, "docker info --format '{{.Architecture}}'", at) {
        Ok(outcome) if outcome.success() => String::from_utf8_lossy(&outcome.stdout).trim().to_owned(),
        _ => std::env::consts::ARCH.to_owned(),
    };
    Ok(Value::str(match printed.as_str() {
        arch if arch.contains("aarch64") => "arm64",
        arch if arch.contains("x86_64") => "amd64",
        other => other,
    }))
}

fn file(interp: &mut Interp<'_, '_>, name: &str, args: &Args<'_>) -> Found {
    let at = args.at;
    let test = |interp: &Interp<'_, '_>, check: fn(&std::fs::Metadata) -> bool| -> Result<Value, Flow> {
        let path = resolve(interp, &args.text(0)?);
        Ok(Value::Bool(
            std::fs::metadata(path).is_ok_and(|found| check(&found)),
        ))
    };
    Ok(Some(match name {
        "read" | "binread" => Value::str(read(interp, &args.text(0)?, at)?),
        "readlines" | "foreach" => {
            let text = read(interp, &args.text(0)?, at)?;
            let chomp = args.option("chomp").is_some_and(|value| value.truthy());
            let lines: Vec<Value> = text
                .split_inclusive('\n')
                .map(|line| {
                    Value::str(if chomp {
                        line.trim_end_matches(['\n', '\r'])
                    } else {
                        line
                    })
                })
                .collect();
            if name == "readlines" || args.block.is_none() {
                return Ok(Some(Value::array(lines)));
            }
            for line in lines {
                call(interp, args, vec![line])?;
            }
            Value::Nil
        }
        "open" | "new" | "write" | "binwrite" | "delete" | "unlink" | "rename" | "chmod" | "symlink"
        | "mtime" | "stat" | "utime" => {
            return Err(unsupported(format!("File.{name}"), at));
        }
        "exist?" => test(interp, |_| true)?,
        "file?" => test(interp, std::fs::Metadata::is_file)?,
        "directory?" => test(interp, std::fs::Metadata::is_dir)?,
        "readable?" => test(interp, |_| true)?,
        "zero?" | "empty?" => test(interp, |found| found.is_file() && found.len() == 0)?,
        "size" | "size?" => match std::fs::metadata(resolve(interp, &args.text(0)?)) {
            Ok(found) => Value::Int(i64::try_from(found.len()).unwrap_or(i64::MAX)),
            Err(_) if name == "size?" => Value::Nil,
            Err(_) => {
                let message = format!("No such file or directory @ rb_file_s_size - {}", args.text(0)?);
                return Err(raise("Errno::ENOENT", message, at));
            }
        },
        "join" => Value::str(join(interp, args)?),
        "basename" => {
            let path = args.text(0)?;
            let trimmed = path.trim_end_matches('/');
            let base = trimmed.rsplit('/').next().unwrap_or(trimmed);
            let base = if trimmed.is_empty() && !path.is_empty() {
                "/"
            } else {
                base
            };
            match args.get(1) {
                Some(_) => {
                    let suffix = args.text(1)?;
                    match suffix.as_str() {
                        ".*" => Value::str(&base[..base.len() - extension(base).len()]),
                        _ => Value::str(
                            base.strip_suffix(&suffix)
                                .filter(|rest| !rest.is_empty())
                                .unwrap_or(base),
                        ),
                    }
                }
                None => Value::str(base),
            }
        }
        "dirname" => {
            let path = args.text(0)?;
            let trimmed = path.trim_end_matches('/');
            Value::str(match trimmed.rfind('/') {
                Some(0) => "/",
                Some(cut) => trimmed[..cut].trim_end_matches('/'),
                None if trimmed.is_empty() && !path.is_empty() => "/",
                None => ".",
            })
        }
        "extname" => {
            let path = args.text(0)?;
            let base = path.rsplit('/').next().unwrap_or(&path);
            Value::str(extension(base))
        }
        "expand_path" | "absolute_path" => {
            let base = match args.get(1) {
                Some(Value::Nil) | None => None,
                Some(_) => Some(args.text(1)?),
            };
            Value::str(expand_path(interp, &args.text(0)?, base.as_deref(), at)?)
        }
        "realpath" => {
            let path = args.text(0)?;
            match resolve(interp, &path).canonicalize() {
                Ok(real) => Value::str(real.to_string_lossy()),
                Err(_) => {
                    let message = format!("No such file or directory @ rb_realpath_internal - {path}");
                    return Err(raise("Errno::ENOENT", message, at));
                }
            }
        }
        "split" => {
            let path = args.text(0)?;
            let (directory, base) = path.rsplit_once('/').unwrap_or((".", &path));
            Value::array(vec![Value::str(directory), Value::str(base)])
        }
        _ => return Ok(None),
    }))
}

fn extension(base: &str) -> &str {
    match base.rfind('.') {
        Some(0) | None => "",
        Some(dot) if dot + 1 == base.len() => "",
        Some(dot) => &base[dot..],
    }
}

/// `File.join`: exactly one slash between the parts.
fn join(interp: &mut Interp<'_, '_>, args: &Args<'_>) -> Result<String, Flow> {
    let mut parts = Vec::new();
    for item in args.list {
        match item {
            Value::Array(inner) => parts.extend(inner.borrow().iter().map(Value::to_text)),
            Value::Str(text) => parts.push(text.borrow().clone()),
            other => {
                let message = format!(
                    "no implicit conversion of {} into String",
                    super::implicit_name(other)
                );
                return Err(raise("TypeError", message, args.at));
            }
        }
    }
    let mut path = String::new();
    for (index, part) in parts.iter().enumerate() {
        if index == 0 {
            path.push_str(part);
            continue;
        }
        let kept = path.trim_end_matches('/').len();
        path.truncate(kept);
        path.push('/');
        path.push_str(part.trim_start_matches('/'));
    }
    interp.charge(path.len(), args.at)?;
    Ok(path)
}

fn dir(interp: &mut Interp<'_, '_>, name: &str, args: &Args<'_>) -> Found {
    let at = args.at;
    Ok(Some(match name {
        "pwd" | "getwd" => Value::str(interp.ctx.directory.to_string_lossy()),
        "home" => Value::str(home(interp, at)?),
        "exist?" => Value::Bool(resolve(interp, &args.text(0)?).is_dir()),
        "empty?" => Value::Bool(
            std::fs::read_dir(resolve(interp, &args.text(0)?)).is_ok_and(|mut list| list.next().is_none()),
        ),
        "children" | "entries" | "each_child" => {
            let path = args.text(0)?;
            let Ok(list) = std::fs::read_dir(resolve(interp, &path)) else {
                let message = format!("No such file or directory @ dir_initialize - {path}");
                return Err(raise("Errno::ENOENT", message, at));
            };
            let mut names: Vec<String> = list
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect();
            names.sort();
            if name == "entries" {
                names.splice(0..0, [".".to_owned(), "..".to_owned()]);
            }
            Value::array(names.into_iter().map(Value::str).collect())
        }
        "glob" | "[]" => return Err(unsupported("Dir.glob", at)),
        _ => return Ok(None),
    }))
}

/// Methods of the less common objects.
pub(super) fn object_method(
    interp: &mut Interp<'_, '_>,
    object: &Rc<Object>,
    name: &str,
    args: &Args<'_>,
) -> Found {
    Ok(Some(match &**object {
        Object::Uri(uri) => match name {
            "scheme" => Value::optional_str(uri.scheme.clone()),
            "host" | "hostname" => Value::optional_str(uri.host.clone()),
            "port" => uri.port.map_or(Value::Nil, Value::Int),
            "path" | "request_uri" if name == "path" => Value::str(uri.path.as_str()),
            "query" => Value::optional_str(uri.query.clone()),
            "fragment" => Value::optional_str(uri.fragment.clone()),
            "userinfo" => Value::optional_str(uri.userinfo.clone()),
            "user" => Value::optional_str(
                uri.userinfo
                    .as_deref()
                    .map(|info| info.split(':').next().unwrap_or(info).to_owned()),
            ),
            "password" => Value::optional_str(
                uri.userinfo
                    .as_deref()
                    .and_then(|info| info.split_once(':').map(|(_, password)| password.to_owned())),
            ),
            _ => return Ok(None),
        },
        Object::Template { text, trim } => match name {
            "result" | "result_with_hash" => {
                let scope = Rc::new(Scope::default());
                let (scope, myself) = match args.get(0) {
                    Some(Value::Object(binding)) => match &**binding {
                        Object::Binding(scope, myself) => (scope.clone(), myself.clone()),
                        _ => return Ok(None),
                    },
                    Some(Value::Hash(map)) if name == "result_with_hash" => {
                        for (key, value) in map.borrow().iter() {
                            scope.declare(&key.value().to_text(), value.clone());
                        }
                        (scope, Value::Main)
                    }
                    _ => (scope, Value::Main),
                };
                interp.nested(text, *trim, &scope, &myself, args.at)?
            }
            _ => return Ok(None),
        },
        Object::Match(_) => match string::as_match(object) {
            Some(found) => return string::match_data(found, name, args),
            None => return Ok(None),
        },
        Object::Exception { message, .. } => match name {
            "message" | "to_s" | "full_message" => Value::str(message.as_str()),
            _ => return Ok(None),
        },
        Object::Binding(scope, _) => match name {
            "local_variable_get" => scope.get(&args.text(0)?).unwrap_or(Value::Nil),
            "local_variable_defined?" => Value::Bool(match args.get(0) {
                Some(name) => scope.get(&name.to_text()).is_some(),
                None => false,
            }),
            "local_variable_set" => {
                let value = args.get(1).cloned().unwrap_or(Value::Nil);
                if let Some(name) = args.get(0) {
                    scope.set(&name.to_text(), value.clone());
                }
                value
            }
            _ => return Ok(None),
        },
        Object::Enumerator(list, method) => {
            return super::enumerable::enumerator(interp, list, method, name, args);
        }
        Object::Status(code) => match name {
            "success?" => Value::Bool(*code == Some(0)),
            "exitstatus" | "to_i" => code.map_or(Value::Nil, |code| Value::Int(i64::from(code))),
            _ => return Ok(None),
        },
    }))
}
