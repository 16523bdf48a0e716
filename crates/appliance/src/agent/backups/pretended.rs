//! A place whose files are names and words and whose programs are pretended; each of its commands can be made to fail.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use appliance_backup::place::{Ended, Job, Pipe, Place, PlaceError};
use futures_util::future::BoxFuture;

/// Files by name.
pub(super) type Files = BTreeMap<String, String>;

/// What the place's own programs do.
type Program = Box<dyn Fn(&mut Files, &[&str]) -> Option<String> + Send + Sync>;

/// Such a place.
pub(super) struct Pretended {
    program: Program,
    state: Mutex<State>,
}

struct State {
    files: Files,
    ran: usize,
    fail_at: usize,
}

impl Pretended {
    /// A place with these files; `program` does what is none of `test -e`, `cp`, `mv`, `rm`: what it prints, or a failure.
    pub(super) fn new(
        program: impl Fn(&mut Files, &[&str]) -> Option<String> + Send + Sync + 'static,
        files: &[(&str, &str)],
    ) -> Self {
        let own = |(name, content): &(&str, &str)| ((*name).to_owned(), (*content).to_owned());
        Self {
            program: Box::new(program),
            state: Mutex::new(State {
                files: files.iter().map(own).collect(),
                ran: 0,
                fail_at: usize::MAX,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the command fail of which `count` come before, and each one after it, as after a crash or on a full disk.
    pub(super) fn fail_at(&self, count: usize) {
        let mut state = self.state();
        (state.ran, state.fail_at) = (0, count);
    }

    pub(super) fn file(&self, name: &str) -> Option<String> {
        self.state().files.get(name).cloned()
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.state().files.keys().cloned().collect()
    }
}

impl Place for Pretended {
    fn name(&self) -> &str {
        "pretended"
    }

    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Ended, PlaceError>> {
        let mut state = self.state();
        let failing = state.ran >= state.fail_at;
        state.ran += 1;
        let words: Vec<&str> = job.command.iter().map(String::as_str).collect();
        if failing {
            let failed = PlaceError::Run {
                program: words.concat(),
                place: "pretended".to_owned(),
                source: "made to fail".into(),
            };
            return Box::pin(async move { Err(failed) });
        }
        let files = &mut state.files;
        let said = match words.as_slice() {
            ["test", "-e", name] => files.contains_key(*name).then(String::new),
            ["cp", "-f", from, to] => files.get(*from).cloned().map(|content| {
                files.insert((*to).to_owned(), content);
                String::new()
            }),
            ["mv", "-f", from, to] => files.remove(*from).map(|content| {
                files.insert((*to).to_owned(), content);
                String::new()
            }),
            ["rm", "-f", names @ ..] => {
                for name in names {
                    files.remove(*name);
                }
                Some(String::new())
            }
            words => (self.program)(files, words),
        };
        let ended = Ended {
            code: i64::from(said.is_none()),
            stdout: said.unwrap_or_default().into_bytes(),
            stderr: String::new(),
        };
        Box::pin(async move { Ok(ended) })
    }

    fn pipe(&self, _name: &str) -> Result<Pipe, PlaceError> {
        Err(PlaceError::Pipe {
            place: "pretended".to_owned(),
            source: std::io::ErrorKind::Unsupported.into(),
        })
    }

    fn release_pipes(&self) {}
}
