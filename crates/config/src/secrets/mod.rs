//! `.kamal/secrets*`: the dotenv grammar, its commands, and the password managers behind them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;

use crate::runner::{Invocation, Runner};

pub mod adapters;
pub mod dotenv;
mod inline;
pub mod shell;

#[cfg(test)]
mod tests;

pub use inline::{InlineError, extract, printed};

/// A secret value: shown only on purpose.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The clear text.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}

/// Where secrets are looked for, and how their commands are run.
pub struct Options<'a> {
    /// The directory relative paths start at, and where commands run.
    pub directory: &'a Path,
    /// Base name of the files, `.kamal/secrets` unless `secrets_path` says otherwise.
    pub secrets_path: &'a str,
    /// The destination, if any: `<secrets_path>.<dest>` is then read instead of `<secrets_path>`.
    pub destination: Option<&'a str>,
    /// The process environment: for `$NAME` and for commands.
    pub env: &'a BTreeMap<String, String>,
    /// `APPLIANCE_SECRETS_SHELL`: runs every `$(...)` as `SHELL -c TEXT`. `None` means `sh`, with
    /// `kamal secrets …` and `appliance secrets …` run in this process.
    pub shell: Option<&'a str>,
    /// Runs the commands.
    pub runner: &'a dyn Runner,
}

/// The secrets of one destination.
#[derive(Debug, Clone)]
pub struct Secrets {
    files: Vec<String>,
    names: Vec<String>,
    values: IndexMap<String, Secret>,
}

/// Why secrets could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Kamal's message; some file exists.
    #[error("Secret '{name}' not found in {}", files.join(", "))]
    NotFound {
        /// The name looked up.
        name: String,
        /// The files that were read.
        files: Vec<String>,
    },
    /// Kamal's message; no file exists.
    #[error("Secret '{name}' not found, no secret files ({}) provided", files.join(", "))]
    NoFiles {
        /// The name looked up.
        name: String,
        /// The files that were looked for.
        files: Vec<String>,
    },
    /// A file could not be read.
    #[error("cannot read the secrets file {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A line of a file is not valid.
    #[error("{}:{line}: {what}", file.display())]
    Format {
        /// The file.
        file: PathBuf,
        /// Line in the file, from 1.
        line: usize,
        /// What is wrong; names, never values.
        what: String,
    },
    /// A command of a file failed, or printed something that is not text.
    #[error("{site}: the command for {} failed with {status}: $({})", site.name, site.command)]
    Command {
        /// Where.
        site: Box<Site>,
        /// Exit status in words.
        status: String,
        /// The end of what it wrote to standard error.
        stderr: String,
    },
    /// A command of a file could not be started.
    #[error("{site}: cannot run the shell {shell} for {}", site.name)]
    Shell {
        /// Where.
        site: Box<Site>,
        /// The shell.
        shell: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// `kamal secrets …` failed.
    #[error("{site}: $({}) for {} failed", site.command, site.name)]
    Inline {
        /// Where.
        site: Box<Site>,
        /// Why.
        #[source]
        source: Box<InlineError>,
    },
}

/// A command in a secrets file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// The file.
    pub file: PathBuf,
    /// Line in the file, from 1.
    pub line: usize,
    /// The variable being assigned.
    pub name: String,
    /// The command as it stands in the file, before variables are put in: it shows no secret.
    pub command: String,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

impl SecretError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotFound { name, files } => files
                .last()
                .map(|file| format!("add a line `{name}=…` to {file}")),
            Self::NoFiles { name, files } => files
                .last()
                .map(|file| format!("write {file} with a line `{name}=…`")),
            Self::Command { stderr, .. } if !stderr.is_empty() => Some(stderr.clone()),
            Self::Command { site, .. } => Some(format!("run it by hand and see: {}", site.command)),
            Self::Inline { source, .. } => source.hint(),
            _ => None,
        }
    }
}

impl Secrets {
    /// The files of `options` that exist, without running anything.
    pub fn files_of(options: &Options<'_>) -> Vec<String> {
        names(options)
            .into_iter()
            .filter(|name| options.directory.join(name).exists())
            .collect()
    }

    /// Reads the files and runs their commands.
    ///
    /// # Errors
    /// Unreadable files, malformed lines and failing commands.
    pub fn load(options: &Options<'_>) -> Result<Self, SecretError> {
        let files = Self::files_of(options);
        let mut env = options.env.clone();
        match options.destination {
            Some(destination) => env.insert("KAMAL_DESTINATION".to_owned(), destination.to_owned()),
            None => env.remove("KAMAL_DESTINATION"),
        };
        let mut values = IndexMap::new();
        for file in &files {
            let path = options.directory.join(file);
            let read = |source| SecretError::Read {
                file: PathBuf::from(file),
                source,
            };
            let bytes = std::fs::read(&path).map_err(read)?;
            let text = String::from_utf8(bytes).map_err(|_| {
                read(std::io::Error::new(
                    std::io::ErrorKind::InvalidData,
                    "it is not UTF-8",
                ))
            })?;
            // Each file on its own: Kamal does not show the values of one file to the next.
            let parsed = dotenv::parse(&text, &env, true, &mut |command| {
                substitute(command, file, &env, options)
            });
            let parsed = parsed.map_err(|trouble| match trouble {
                dotenv::Trouble::Command(error) => error,
                dotenv::Trouble::Format { line, what } => SecretError::Format {
                    file: PathBuf::from(file),
                    line,
                    what,
                },
            })?;
            values.extend(parsed.into_iter().map(|(name, value)| (name, Secret(value))));
        }
        Ok(Self {
            names: names(options),
            files,
            values,
        })
    }

    /// The value of a secret.
    ///
    /// # Errors
    /// [`SecretError::NotFound`] or [`SecretError::NoFiles`], with Kamal's words.
    pub fn get(&self, name: &str) -> Result<&str, SecretError> {
        match self.values.get(name) {
            Some(value) => Ok(value.expose()),
            None if self.files.is_empty() => Err(SecretError::NoFiles {
                name: name.to_owned(),
                files: self.names.clone(),
            }),
            None => Err(SecretError::NotFound {
                name: name.to_owned(),
                files: self.files.clone(),
            }),
        }
    }

    /// The files that were read, as written in the configuration.
    pub fn files(&self) -> &[String] {
        &self.files
    }

    /// All values, in the order of the files.
    pub fn values(&self) -> &IndexMap<String, Secret> {
        &self.values
    }
}

/// The files Kamal looks for, in its order: later ones override earlier ones.
fn names(options: &Options<'_>) -> Vec<String> {
    let path = options.secrets_path;
    let own = match options.destination {
        Some(destination) => format!("{path}.{destination}"),
        None => path.to_owned(),
    };
    vec![format!("{path}-common"), own]
}

/// What a `$(...)` stands for.
fn substitute(
    command: &dotenv::Command<'_>,
    file: &str,
    env: &BTreeMap<String, String>,
    options: &Options<'_>,
) -> Result<String, SecretError> {
    let site = || {
        Box::new(Site {
            file: PathBuf::from(file),
            line: command.line,
            name: command.name.to_owned(),
            command: command.written.to_owned(),
        })
    };
    if options.shell.is_none()
        && let Some(words) = inline::command(command.text)
    {
        let tools = adapters::Tools {
            runner: options.runner,
            env,
            directory: options.directory,
        };
        return inline::run(words, &tools).map_err(|source| SecretError::Inline {
            site: site(),
            source: Box::new(source),
        });
    }
    let shell = options.shell.unwrap_or("sh");
    let outcome = options.runner.run(&Invocation {
        argv: vec![shell.to_owned(), "-c".to_owned(), command.text.to_owned()],
        env: env.clone(),
        directory: options.directory.to_path_buf(),
        stdin: None,
    });
    let outcome = outcome.map_err(|source| SecretError::Shell {
        site: site(),
        shell: shell.to_owned(),
        source,
    })?;
    let failed = |status: String, stderr: String| SecretError::Command {
        site: site(),
        status,
        stderr,
    };
    match outcome.code {
        Some(0) => String::from_utf8(outcome.stdout)
            .map_err(|_| failed("output that is not UTF-8".to_owned(), String::new())),
        Some(code) => Err(failed(format!("exit code {code}"), outcome.stderr)),
        None => Err(failed("a signal".to_owned(), outcome.stderr)),
    }
}
