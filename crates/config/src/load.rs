//! From the files of a project to the resolved configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::erb;
use crate::extension::Extension;
use crate::model::Resolved;
use crate::problem::{Problem, Problems};
use crate::resolve::{self, Facts};
use crate::runner::{Invocation, Runner};
use crate::secrets;
use crate::source::Sources;
use crate::validate::{self, Surroundings, raw};
use crate::yaml::tree::{Node, Place, Value};
use crate::yaml::{self};

/// Largest configuration file that is read, in bytes.
const LARGEST_FILE: u64 = 32 << 20;

/// How many problems are told at most.
pub(crate) const MOST_PROBLEMS: usize = 100;

/// What to load, and the surroundings Kamal would see.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// The project, absolute: relative paths start here, commands run here.
    pub directory: PathBuf,
    /// The configuration file (`-c`), relative to the directory; `config/deploy.yml` by default.
    pub config_file: PathBuf,
    /// The destination (`-d`).
    pub destination: Option<String>,
    /// The version (`--version`); else `$VERSION`, else the git revision.
    pub version: Option<String>,
    /// The process environment.
    pub env: BTreeMap<String, String>,
    /// Ruby's clock.
    pub now: jiff::Zoned,
    /// Docker's name for this machine's processor, such as `amd64`: decides what a remote builder builds.
    pub local_arch: String,
}

impl LoadOptions {
    /// The defaults for a project: `config/deploy.yml`, no destination, this machine's processor.
    ///
    /// `SOURCE_DATE_EPOCH` in the environment (seconds since 1970, the convention for reproducible output) takes the
    /// place of `now`.
    pub fn new(directory: impl Into<PathBuf>, env: BTreeMap<String, String>, now: jiff::Zoned) -> Self {
        let fixed = env
            .get("SOURCE_DATE_EPOCH")
            .and_then(|seconds| seconds.parse().ok())
            .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
            .map(|time| time.to_zoned(jiff::tz::TimeZone::UTC));
        Self {
            directory: directory.into(),
            config_file: PathBuf::from("config/deploy.yml"),
            destination: None,
            version: None,
            env,
            now: fixed.unwrap_or(now),
            local_arch: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            }
            .to_owned(),
        }
    }

    /// The file of the destination: its name goes before the extension.
    fn destination_file(&self, destination: &str) -> PathBuf {
        let mut name = self.config_file.file_stem().unwrap_or_default().to_owned();
        name.push(format!(".{destination}.yml"));
        self.config_file.with_file_name(name)
    }

    /// The destinations that have a file, in alphabetical order.
    fn destinations(&self) -> Vec<String> {
        let stem = self.config_file.file_stem().unwrap_or_default().to_string_lossy();
        let folder = self.config_file.parent().unwrap_or(Path::new(""));
        let files = std::fs::read_dir(self.directory.join(folder));
        let mut found: Vec<String> = files
            .into_iter()
            .flatten()
            .filter_map(|file| file.ok()?.file_name().into_string().ok())
            .filter_map(|name| {
                let inner = name.strip_prefix(&*stem)?.strip_prefix('.')?;
                Some(inner.strip_suffix(".yml")?.to_owned())
            })
            .collect();
        found.sort();
        found
    }
}

/// A configuration that passed every check.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The resolved configuration.
    pub config: Resolved,
    /// `x-appliance:`, with its defaults.
    pub extension: Extension,
    /// What will hurt, but is no error; without the silenced ones.
    pub warnings: Vec<Problem>,
    /// The environment after the files were rendered: `Dotenv.load` in them sets what `.kamal/secrets` then refers to.
    pub env: BTreeMap<String, String>,
    /// The merged tree, `x-` keys included.
    pub tree: Node,
    /// The texts, for showing the line of a further problem.
    pub sources: Sources,
}

/// Loads, merges, checks and resolves the configuration.
///
/// # Errors
/// Everything that is wrong; the first is the one Kamal would stop at.
pub fn load(options: &LoadOptions, runner: &dyn Runner) -> Result<Loaded, Problems> {
    let mut loader = Loader {
        options,
        context: erb::Context {
            env: options.env.clone(),
            directory: options.directory.clone(),
            runner,
            now: options.now.clone(),
        },
        sources: Sources::default(),
        warnings: Vec::new(),
    };
    match &options.destination {
        Some(destination) => loader
            .context
            .env
            .insert("KAMAL_DESTINATION".to_owned(), destination.clone()),
        None => loader.context.env.remove("KAMAL_DESTINATION"),
    };
    let mut tree = loader.file(&options.config_file)?;
    if let Some(destination) = &options.destination {
        let over = loader.file(&options.destination_file(destination))?;
        raw::deep_merge(&mut tree, over);
    }
    let Loader {
        context,
        sources,
        mut warnings,
        ..
    } = loader;
    let mut problems = validate::check(
        &tree,
        &sources,
        &Surroundings {
            directory: &options.directory,
            destination: options.destination.as_deref(),
            local_arch: &options.local_arch,
        },
    );
    let extension = Extension::read(&tree, &sources).unwrap_or_else(|mistakes| {
        problems.extend(mistakes);
        Extension::default()
    });
    problems.extend(crate::sense::check(&tree, &sources));
    if !problems.is_empty() {
        if sources.starts_with_mark() {
            // All that follows the first key is lost, so only the first problem means anything.
            problems.truncate(1);
            problems[0].hint = Some(
                "the file starts with a byte order mark, and YAML then ends after the first key; save it without one"
                    .to_owned(),
            );
        }
        return Err(Problems(limited(problems)));
    }
    let root = tree.as_map().expect("the check refuses anything but a map");
    let builds_working_tree = root
        .get("builder")
        .and_then(|builder| builder.get("context"))
        .is_some();
    let version = version(options, &context.env, builds_working_tree, runner)?;
    warnings.extend(crate::oddities::find(root, &sources));
    let raw = raw::Raw::new(root);
    let secrets_path = raw
        .text("secrets_path")
        .unwrap_or_else(|| ".kamal/secrets".to_owned());
    let secret_files = secrets::Secrets::files_of(&secrets::Options {
        directory: &options.directory,
        secrets_path: &secrets_path,
        destination: options.destination.as_deref(),
        env: &options.env,
        shell: None,
        runner,
    });
    let config = resolve::resolve(
        root,
        &Facts {
            directory: &options.directory,
            home: options.env.get("HOME").map(String::as_str),
            destination: options.destination.as_deref(),
            version: &version,
            local_arch: &options.local_arch,
            secret_files,
        },
    );
    warnings.extend(crate::warnings::find(
        &config,
        &tree,
        &sources,
        &options.destinations(),
    ));
    warnings.retain(|warning| {
        warning
            .name
            .as_ref()
            .is_none_or(|name| !extension.silence.contains(name))
    });
    Ok(Loaded {
        config,
        extension,
        warnings,
        env: context.env,
        tree,
        sources,
    })
}

/// At most [`MOST_PROBLEMS`], and how many more there are.
fn limited(mut problems: Vec<Problem>) -> Vec<Problem> {
    let more = problems.len().saturating_sub(MOST_PROBLEMS);
    if more > 0 {
        problems.truncate(MOST_PROBLEMS);
        problems.push(Problem::new(format!("and {more} more")).with_hint("mend these first"));
    }
    problems
}

struct Loader<'a> {
    options: &'a LoadOptions,
    context: erb::Context<'a>,
    sources: Sources,
    warnings: Vec<Problem>,
}

impl Loader<'_> {
    /// Reads one file: ERB, then YAML, then a map with text keys at its root.
    fn file(&mut self, file: &Path) -> Result<Node, Problems> {
        let shown = file.to_string_lossy().into_owned();
        let text = self.text(file, &shown)?;
        let number = self.sources.add(shown, text.as_str());
        let place = |line, column| Place {
            file: number,
            line,
            column,
        };
        let rendered = erb::render(&text, file, &mut self.context).map_err(|error| {
            let mut message = error.to_string();
            if let Some(source) = std::error::Error::source(&error) {
                message = format!("{message}: {source}");
            }
            let mut problem = self
                .sources
                .problem(place(error.line(), error.column()), "", message);
            problem.hint = error.hint();
            let line = text
                .lines()
                .nth(error.line().saturating_sub(1))
                .unwrap_or_default();
            if line.trim_start().starts_with('#') {
                problem.hint =
                    Some("ERB runs in YAML comments too: write <%# … %>, or take the tag out".to_owned());
            }
            Problems(vec![problem])
        })?;
        self.sources.attach(number, rendered);
        // Places are mapped back only when a problem is told: nodes may be many.
        let document = yaml::read(self.sources.rendered_text(number), number, &|line, column| {
            (line, column)
        })
        .map_err(|error| {
            let mut problem = self.sources.problem(error.place, "", error.message);
            problem.hint = error.hint;
            Problems(vec![problem])
        })?;
        for (first, last) in document.duplicates.iter().take(MOST_PROBLEMS) {
            let name = last.to_s();
            let mut warning = self.sources.problem(
                last.place,
                &name,
                format!(
                    "{name} stands twice; this one replaces line {}",
                    self.sources.origin(first.place).0
                ),
            );
            warning.hint = Some("remove one of them".to_owned());
            warning.name = Some("duplicate-key".to_owned());
            self.warnings.push(warning);
        }
        match document.root {
            Some(mut root) if root.as_map().is_some() => {
                symbolize_keys(&mut root);
                Ok(root)
            }
            other => {
                let place = other.map_or(place(1, 1), |root| root.place);
                Err(Problems(vec![
                    self.sources
                        .problem(place, "", "the file should be a hash of settings")
                        .with_hint("start with `service: NAME`; a destination that changes nothing is `{}`"),
                ]))
            }
        }
    }

    fn text(&self, file: &Path, shown: &str) -> Result<String, Problems> {
        let path = self.options.directory.join(file);
        let at_file = |message: String, hint: &str| {
            let mut problem = Problem::new(message).with_hint(hint);
            problem.file = Some(shown.to_owned());
            Problems(vec![problem])
        };
        let too_large = std::fs::metadata(&path).is_ok_and(|found| found.len() > LARGEST_FILE);
        if too_large {
            return Err(at_file(
                format!("the file is larger than {} MiB", LARGEST_FILE >> 20),
                "no configuration needs that; is this the right file?",
            ));
        }
        let bytes = std::fs::read(&path).map_err(|error| {
            if error.kind() == std::io::ErrorKind::NotFound {
                at_file(
                    format!("Configuration file not found in {}", path.display()),
                    "run this in the project's directory, name the file with -c, or make one with `appliance init`",
                )
            } else {
                at_file(
                    format!("cannot read the configuration file: {error}"),
                    "check that it is a file you may read",
                )
            }
        })?;
        String::from_utf8(bytes).map_err(|error| {
            let line = error.as_bytes()[..error.utf8_error().valid_up_to()]
                .iter()
                .filter(|byte| **byte == b'\n')
                .count()
                + 1;
            let mut problems = at_file("the file is not UTF-8".to_owned(), "save it as UTF-8");
            problems.0[0].line = Some(line);
            problems
        })
    }
}

/// Root keys are symbols in Kamal, so `:service` and `service` are the same there.
fn symbolize_keys(root: &mut Node) {
    let Value::Map(map) = &mut root.value else { return };
    let entries = std::mem::take(map);
    for (mut key, value) in entries.into_entries() {
        if let Value::Symbol(name) = key.value {
            key.value = Value::Str(name);
        }
        map.insert(key, value);
    }
}

/// `--version`, else `$VERSION`, else git's revision of the checked-out commit; marked and made unique by the clock when
/// the build takes a working tree that differs from it.
fn version(
    options: &LoadOptions,
    env: &BTreeMap<String, String>,
    builds_working_tree: bool,
    runner: &dyn Runner,
) -> Result<String, Problems> {
    if let Some(version) = options
        .version
        .as_ref()
        .filter(|version| !version.trim().is_empty())
    {
        return Ok(version.clone());
    }
    if let Some(version) = env.get("VERSION") {
        return Ok(version.clone());
    }
    let git = |arguments: &[&str]| {
        let outcome = runner.run(&Invocation {
            argv: std::iter::once("git")
                .chain(arguments.iter().copied())
                .map(ToOwned::to_owned)
                .collect(),
            env: options.env.clone(),
            directory: options.directory.clone(),
            stdin: Some(Vec::new()),
        });
        match outcome {
            Ok(outcome) if outcome.success() => {
                Some(String::from_utf8_lossy(&outcome.stdout).trim().to_owned())
            }
            _ => None,
        }
    };
    let revision = git(&["rev-parse", "HEAD"])
        .filter(|revision| !revision.is_empty())
        .ok_or_else(|| {
            let problem = Problem::new(format!(
                "Can't use commit hash as version, no git repository found in {}",
                options.directory.display()
            ))
            .with_hint("commit the project to git, or give `--version VERSION`");
            Problems(vec![problem])
        })?;
    let is_dirty =
        builds_working_tree && git(&["status", "--porcelain"]).is_some_and(|changes| !changes.is_empty());
    Ok(if is_dirty {
        let moment = options.now.timestamp().as_nanosecond();
        format!("{revision}_uncommitted_{moment:016x}")
    } else {
        revision
    })
}
