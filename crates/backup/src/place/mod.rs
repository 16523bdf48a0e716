//! Where a data server's own programs run: its container, so that their version always fits.
//!
//! Large streams do not go through Docker's API: they go through a FIFO that both sides can open, which costs Docker no
//! processor time and loses nothing. The end of such a stream says nothing; the exit code does. So the side that is ours
//! keeps a second handle until the program has ended: a reader sees the end only after the exit code is known, and a
//! program that never opens its end cannot make us wait for ever.
//!
//! When our process dies, its ends close and the program ends with it: nothing is left that holds a snapshot.

mod local;
mod silence;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;

pub use local::LocalPlace;
pub(crate) use silence::listen;

/// How long a program may write nothing while we read: one in a container that hangs would keep every other backup waiting.
pub const SILENCE: Duration = Duration::from_secs(30 * 60);
/// What a program wrote is cut to this many bytes, on either stream.
pub const OUTPUT_LIMIT: usize = 64 << 20;

/// A program to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Job {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Additional environment.
    pub env: Vec<(String, String)>,
    /// FIFO that becomes its standard input.
    pub stdin: Option<String>,
    /// FIFO that becomes its standard output.
    pub stdout: Option<String>,
    /// It did its work with this code, too, and what it says is worth telling.
    pub grumbles: Option<i64>,
    /// How long it may write nothing to its FIFO while we read; [`SILENCE`] if absent.
    pub silence: Option<Duration>,
}

impl Job {
    /// A job of these words.
    pub fn new<S: Into<String>>(command: impl IntoIterator<Item = S>) -> Self {
        Self {
            command: command.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }
}

impl Job {
    /// Whether a program that ended so did its work.
    pub fn good(&self, ended: &Ended) -> bool {
        ended.code == 0 || self.grumbles == Some(ended.code)
    }
}

/// How a program ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ended {
    /// Exit code; 128 and more for signals.
    pub code: i64,
    /// What it wrote to standard output, unless that was a FIFO.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Ended {
    /// What standard error says about the reason: its lines with an error, else its last ones.
    pub fn complaint(&self) -> String {
        let lines: Vec<&str> = self
            .stderr
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        // Programs repeat the failed statement after the reason, and that may be long.
        let mut telling: Vec<&str> = lines
            .iter()
            .filter(|line| {
                ["error:", "detail:", "ERROR:", "FATAL:"]
                    .iter()
                    .any(|word| line.contains(word))
            })
            .copied()
            .collect();
        if telling.is_empty() {
            telling = lines;
        }
        let from = telling.len().saturating_sub(6);
        telling.get(from..).unwrap_or_default().join("; ")
    }
}

/// Why a program could not be run, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Not run at all.
    #[error("cannot run {program} in {place}")]
    Run {
        /// The program.
        program: String,
        /// Where.
        place: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No FIFO.
    #[error("cannot make a FIFO in {place}")]
    Pipe {
        /// Where.
        place: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended with another code than 0.
    #[error("{program} in {place} ended with code {code}: {complaint}")]
    Failed {
        /// The program.
        program: String,
        /// Where.
        place: String,
        /// The code.
        code: i64,
        /// What it said.
        complaint: String,
    },
    /// It does not end, and writes nothing.
    #[error(
        "{program} in {place} has written nothing for {seconds} s and is given up; is the container paused?"
    )]
    Silent {
        /// The program.
        program: String,
        /// Where.
        place: String,
        /// How long.
        seconds: u64,
    },
}

/// A FIFO that a program and we can both open; removed when dropped.
#[derive(Debug)]
pub struct Pipe {
    /// How we name it.
    pub outside: PathBuf,
    /// How the program names it.
    pub inside: String,
    /// Kept open while `outside` needs it.
    pub holder: Option<std::os::fd::OwnedFd>,
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let _gone_already = std::fs::remove_file(&self.outside);
    }
}

/// Somewhere programs can be run.
pub trait Place: Send + Sync {
    /// What it is called, for messages.
    fn name(&self) -> &str;

    /// Runs a program to its end.
    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Ended, PlaceError>>;

    /// Makes a FIFO; `name` is a random word.
    ///
    /// # Errors
    /// When it cannot be made.
    fn pipe(&self, name: &str) -> Result<Pipe, PlaceError>;

    /// Lets go of programs that wait for a FIFO whose other end died before it was opened.
    fn release_pipes(&self);
}

/// Runs a job that must succeed.
///
/// # Errors
/// When it cannot be run or ends with another code than 0.
pub async fn succeed(place: &dyn Place, job: &Job) -> Result<Ended, PlaceError> {
    let ended = place.run(job).await?;
    if ended.code == 0 {
        return Ok(ended);
    }
    Err(failed(place, job, &ended))
}

pub(crate) fn failed(place: &dyn Place, job: &Job, ended: &Ended) -> PlaceError {
    PlaceError::Failed {
        program: job.command.first().cloned().unwrap_or_default(),
        place: place.name().to_owned(),
        code: ended.code,
        complaint: ended.complaint(),
    }
}

/// Both ends of a FIFO, ours open: no program can make us wait.
pub(crate) struct Ends {
    pub(crate) ours: std::fs::File,
    /// The second handle; dropped once the program has ended.
    pub(crate) guard: std::fs::File,
}

/// Opens a FIFO to read what a program writes.
pub(crate) fn open_to_read(pipe: &Pipe) -> io::Result<Ends> {
    let ours = end(pipe, false)?;
    let guard = end(pipe, true)?;
    Ok(Ends { ours, guard })
}

/// Opens a FIFO to write what a program reads.
pub(crate) fn open_to_write(pipe: &Pipe) -> io::Result<Ends> {
    let guard = end(pipe, false)?;
    let ours = end(pipe, true)?;
    Ok(Ends { ours, guard })
}

/// A text that a program reads from a FIFO, of which it is told the name.
pub(crate) struct Offered {
    pipe: Pipe,
}

impl Offered {
    /// Offers `text`; the program that reads it has to be started while this lives.
    ///
    /// # Errors
    /// When there is no FIFO.
    pub(crate) fn new(place: &dyn Place, name: &str, text: String) -> Result<Self, PlaceError> {
        let pipe = place.pipe(name)?;
        let outside = pipe.outside.clone();
        // Waits until the program opens it, or this is dropped.
        tokio::task::spawn_blocking(move || {
            let written =
                open_offered(&outside).and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()));
            if let Err(error) = written {
                tracing::debug!("a program did not read what it was offered: {error}");
            }
        });
        Ok(Self { pipe })
    }

    /// How the program names it.
    pub(crate) fn inside(&self) -> &str {
        &self.pipe.inside
    }
}

/// Opens a FIFO to write, when a reader comes: never what was put into its place since. What runs in a container may put a
/// link there, which would be resolved outside of it.
fn open_offered(path: &Path) -> io::Result<std::fs::File> {
    use nix::fcntl::OFlag;
    use std::os::unix::fs::OpenOptionsExt as _;
    let file = std::fs::OpenOptions::new()
        .write(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits())
        .open(path)?;
    still_fifo(&file)?;
    Ok(file)
}

/// That what was opened is a FIFO.
///
/// # Errors
/// When it is anything else.
pub fn still_fifo(file: &std::fs::File) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt as _;
    match file.metadata()?.file_type().is_fifo() {
        true => Ok(()),
        false => Err(io::Error::other("it is not a FIFO any more")),
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        // Nobody waits for a program that never came for it.
        let _shown = end(&self.pipe, false);
    }
}

/// What a FIFO holds, in bytes: the most that Linux gives without being configured (`pipe-max-size`).
const PIPE: i32 = 1 << 20;

/// How often a program is looked after that may wait for an end which is gone.
const NUDGE: Duration = Duration::from_millis(100);

/// Runs a program whose FIFO has our end at the other side until `over`; a program that comes to open it only after
/// that would wait for ever, so it is shown an end for a moment, and finds the FIFO closed.
pub(crate) async fn run_on(
    place: &dyn Place,
    job: &Job,
    pipe: &Pipe,
    we_write: bool,
    over: &AtomicBool,
) -> Result<Ended, PlaceError> {
    let mut running = place.run(job);
    loop {
        tokio::select! {
            ended = &mut running => return ended,
            () = tokio::time::sleep(NUDGE) => {
                if over.load(Ordering::Acquire) {
                    // The FIFO may be gone already.
                    let _shown = end(pipe, we_write);
                }
            }
        }
    }
}

/// Says that our end is closed, however that came.
pub(crate) struct Over(pub(crate) Arc<AtomicBool>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Opens without waiting for the other side, then makes reads and writes wait.
fn end(pipe: &Pipe, write: bool) -> io::Result<std::fs::File> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use std::os::unix::fs::OpenOptionsExt as _;
    let file = std::fs::OpenOptions::new()
        .read(!write)
        .write(write)
        .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).bits())
        .open(&pipe.outside)?;
    still_fifo(&file)?;
    fcntl(&file, FcntlArg::F_SETFL(OFlag::empty()))?;
    // Programs write in pieces of 4 KiB: the more of them fit, the less often both sides wait for one another. Where the
    // system gives no more than it gives anyway, that is slower and nothing else.
    let _larger = fcntl(&file, FcntlArg::F_SETPIPE_SZ(PIPE));
    Ok(file)
}

#[cfg(test)]
#[allow(
    clippy::disallowed_methods,
    reason = "a test's files need not outlive a crash"
)]
mod tests {
    use super::*;

    #[test]
    fn what_took_a_fifos_place_is_not_written_to() {
        let directory = tempfile::tempdir().expect("a directory");
        let (secret, link) = (directory.path().join("secret"), directory.path().join("list"));
        std::fs::write(&secret, "of the host").expect("written");
        std::os::unix::fs::symlink(&secret, &link).expect("linked");
        open_offered(&link).expect_err("a link");
        open_offered(&secret).expect_err("a file");
        assert_eq!(std::fs::read(&secret).expect("read"), b"of the host");
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(
            &fifo,
            nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR,
        )
        .expect("made");
        let pipe = Pipe {
            outside: fifo.clone(),
            inside: String::new(),
            holder: None,
        };
        let _reader = end(&pipe, false).expect("opened");
        open_offered(&fifo).expect("a FIFO");
    }
}
