//! Content on its way from a source into volumes, and from volumes into a program.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use age::x25519;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::manifest::{Manifest, Object};
use crate::names::BackupId;
use crate::place::{self, Ended, Job, Place, PlaceError};
use crate::repository::Repository;
use crate::seal::{self, Arriving, Piece, SealError, Summary};
use crate::spool;
use crate::tap::Tap;
use crate::volumes::{self, Pace, VolumeError};

/// Parts that wait between two stages.
const QUEUE: usize = 1;

/// What is said of a spool that was too small.
const FULL: &str =
    "the disk had no room for all of what waits there (spool), so the dump waited for the place";

/// Where content comes from.
pub enum Feed {
    /// What a program writes to its standard output.
    Job {
        /// Where it runs.
        place: Arc<dyn Place>,
        /// The program.
        job: Job,
    },
    /// What a reader reads; it is whole when it ends without an error.
    Reader(Box<dyn Read + Send>),
}

/// Why content did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The program failed.
    #[error(transparent)]
    Program(#[from] PlaceError),
    /// Sealing or opening failed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The volumes failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The FIFO cannot be used.
    #[error("cannot use the FIFO to the program")]
    Pipe(#[source] io::Error),
    /// A thread ended in a panic.
    #[error("a thread of the pipeline ended unexpectedly")]
    Thread(#[source] tokio::task::JoinError),
}

/// How content travels into a store.
pub(crate) struct Way<'a> {
    /// The backup.
    pub(crate) id: &'a BackupId,
    /// How fast.
    pub(crate) pace: Pace,
    /// Told when the program that writes the content has ended well.
    pub(crate) dumped: Option<oneshot::Sender<()>>,
}

/// Stores what `feed` gives as volumes below `prefix`.
///
/// # Errors
/// When any stage fails; nothing is left that has a manifest.
pub(crate) async fn store(
    repository: &Repository,
    prefix: &str,
    feed: Feed,
    tap: Option<Tap>,
    way: Way<'_>,
    note: &mut (dyn FnMut(&str, &str) -> io::Result<()> + Send),
) -> Result<(Vec<Object>, Summary), StreamError> {
    let Way {
        id,
        mut pace,
        mut dumped,
    } = way;
    let (pieces, arriving) = mpsc::channel(QUEUE);
    let recipients = repository.recipients().to_vec();
    let mut full = false;
    let uploading = async {
        let mut upload = async |mut arriving: mpsc::Receiver<Piece>| {
            // Owned here, so that a failed upload closes the channel and with it the whole pipeline.
            volumes::upload(&*repository.store, prefix, &mut arriving, &mut pace, note).await
        };
        let Some(spool) = &repository.spool else {
            return upload(arriving).await;
        };
        let (leaving, waiting) = mpsc::channel(QUEUE);
        let directory = spool.directory.join(id.as_str());
        let passing = spool::through(directory, spool.reserve, arriving, leaving);
        let (passed, uploaded) = tokio::join!(passing, upload(waiting));
        // Without the disk the upload breaks off: the disk is the reason.
        full = passed.map_err(VolumeError::Spool)?;
        uploaded
    };
    let (sealed, uploaded, ran) = match feed {
        Feed::Reader(mut reader) => {
            let sealing = tokio::task::spawn_blocking(move || {
                seal::seal(&mut *reader, tap, &recipients, &pieces, || true)
            });
            let (sealed, uploaded) = tokio::join!(sealing, uploading);
            (sealed, uploaded, Ok(None))
        }
        Feed::Job { place, mut job } => {
            let pipe = place.pipe(id.tail())?;
            let ends = place::open_to_read(&pipe).map_err(StreamError::Pipe)?;
            job.stdout = Some(pipe.inside.clone());
            let (verdict, judged) = oneshot::channel();
            let (mut ours, listener) = place::listen(ends.ours);
            let over = Arc::new(AtomicBool::new(false));
            let closed = place::Over(Arc::clone(&over));
            let sealing = tokio::task::spawn_blocking(move || {
                let _closed = closed;
                seal::seal(&mut ours, tap, &recipients, &pieces, || {
                    judged.blocking_recv().unwrap_or(false)
                })
            });
            let guard = ends.guard;
            let running = async {
                let ended = place::run_on(&*place, &job, &pipe, false, &over).await;
                let good = ended.as_ref().is_ok_and(|ended| job.good(ended));
                let _sealing_gave_up = verdict.send(good);
                drop(guard);
                if let (true, Some(dumped)) = (good, dumped.take()) {
                    let _nobody_asked = dumped.send(());
                }
                ended
            };
            let silence = job.silence.unwrap_or(place::SILENCE);
            let (sealed, uploaded, ran) = tokio::select! {
                all = async { tokio::join!(sealing, uploading, running) } => all,
                () = listener.silent(&pipe, silence) => return Err(PlaceError::Silent {
                    program: job.command.first().cloned().unwrap_or_default(),
                    place: place.name().to_owned(),
                    seconds: silence.as_secs(),
                }
                .into()),
            };
            (sealed, uploaded, ran.map(|ended| Some((ended, place, job))))
        }
    };
    let sealed = sealed.map_err(StreamError::Thread)?;
    match (sealed, uploaded) {
        (Ok(mut summary), Ok(objects)) => {
            if let Ok(Some((ended, ..))) = &ran
                && ended.code != 0
            {
                summary.said = Some(ended.complaint());
            }
            if full {
                let said = summary
                    .said
                    .take()
                    .map(|said| format!("{said}; "))
                    .unwrap_or_default();
                summary.said = Some(format!("{said}{FULL}"));
            }
            Ok((objects, summary))
        }
        (Err(SealError::Verdict), _) => {
            if let Some((ended, place, job)) = ran? {
                return Err(place::failed(&*place, &job, &ended).into());
            }
            Err(SealError::Verdict.into())
        }
        (Err(SealError::Gone) | Ok(_), Err(error)) => Err(error.into()),
        // A program that failed is the better reason for content that is not whole.
        (Err(error), _) => match ran {
            Ok(Some((ended, place, job))) if ended.code != 0 && !killed_by_us(&ended) => {
                Err(place::failed(&*place, &job, &ended).into())
            }
            Err(failure) => Err(failure.into()),
            _ => Err(error.into()),
        },
    }
}

/// Whether a program only noticed that nobody reads any more.
fn killed_by_us(ended: &Ended) -> bool {
    ended.code == 141 || ended.stderr.contains("Broken pipe")
}

/// Runs the content of a backup through a program's standard input; `partial` where it may want only some of it.
///
/// # Errors
/// When any stage fails, or the content is not what the manifest says.
pub async fn replay(
    repository: &Repository,
    manifest: &Manifest,
    place: &Arc<dyn Place>,
    mut job: Job,
    tap: Option<Tap>,
    pipe_name: &str,
    partial: bool,
) -> Result<Summary, StreamError> {
    let (opened, ran) = play(repository, manifest, place, &mut job, tap, pipe_name, partial).await?;
    match (opened, ran) {
        (Ok(summary), Ok(ended)) if ended.code == 0 => Ok(summary),
        // The program stopped reading: what it says is the reason.
        (Ok(_) | Err(StreamError::Seal(SealError::Sink(_))), Ok(ended)) => {
            Err(place::failed(&**place, &job, &ended).into())
        }
        (_, Err(error)) => Err(error.into()),
        (Err(error), _) => Err(error),
    }
}

/// Shows a program the content of a backup until it has seen enough; no more is fetched then.
///
/// # Errors
/// When any stage fails. What was not read is not checked.
pub(crate) async fn show(
    repository: &Repository,
    manifest: &Manifest,
    place: &Arc<dyn Place>,
    mut job: Job,
    pipe_name: &str,
) -> Result<Ended, StreamError> {
    let (opened, ran) = play(repository, manifest, place, &mut job, None, pipe_name, false).await?;
    match (opened, ran) {
        (Ok(_) | Err(StreamError::Seal(SealError::Sink(_))), Ok(ended)) if ended.code == 0 => Ok(ended),
        (Ok(_) | Err(StreamError::Seal(SealError::Sink(_))), Ok(ended)) => {
            Err(place::failed(&**place, &job, &ended).into())
        }
        (_, Err(error)) => Err(error.into()),
        (Err(error), _) => Err(error),
    }
}

/// How both sides of a FIFO ended: ours, and the program's.
type Played = (Result<Summary, StreamError>, Result<Ended, PlaceError>);

async fn play(
    repository: &Repository,
    manifest: &Manifest,
    place: &Arc<dyn Place>,
    job: &mut Job,
    tap: Option<Tap>,
    pipe_name: &str,
    partial: bool,
) -> Result<Played, StreamError> {
    let pipe = place.pipe(pipe_name)?;
    let ends = place::open_to_write(&pipe).map_err(StreamError::Pipe)?;
    job.stdin = Some(pipe.inside.clone());
    let guard = ends.guard;
    let over = Arc::new(AtomicBool::new(false));
    let closed = place::Over(Arc::clone(&over));
    let running = async {
        let ended = place::run_on(&**place, job, &pipe, true, &over).await;
        drop(guard);
        ended
    };
    let ours = ends.ours;
    let sink = Sink {
        ours: Some(ours),
        partial,
        _closed: closed,
    };
    Ok(tokio::join!(
        read(repository, manifest, tap, Box::new(sink)),
        running
    ))
}

/// Looks at what a program writes, and keeps nothing of it.
///
/// # Errors
/// When the program fails, or what it writes is not whole.
pub async fn look(
    place: &Arc<dyn Place>,
    mut job: Job,
    tap: Tap,
    pipe_name: &str,
) -> Result<Summary, StreamError> {
    let pipe = place.pipe(pipe_name)?;
    let ends = place::open_to_read(&pipe).map_err(StreamError::Pipe)?;
    job.stdout = Some(pipe.inside.clone());
    let mut ours = ends.ours;
    let looking = tokio::task::spawn_blocking(move || seal::look(&mut ours, tap));
    let guard = ends.guard;
    let running = async {
        let ended = place.run(&job).await;
        drop(guard);
        ended
    };
    let (looked, ran) = tokio::join!(looking, running);
    let ended = ran?;
    if !job.good(&ended) {
        return Err(place::failed(&**place, &job, &ended).into());
    }
    Ok(looked.map_err(StreamError::Thread)??)
}

/// Our end of a FIFO.
struct Sink {
    ours: Option<std::fs::File>,
    /// The program may stop reading when it has what it wants; the rest is still read and checked.
    partial: bool,
    /// Dropped after `ours`.
    _closed: place::Over,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(ours) = &mut self.ours else {
            return Ok(bytes.len());
        };
        match ours.write(bytes) {
            Err(error) if self.partial && error.kind() == io::ErrorKind::BrokenPipe => {
                self.ours = None;
                Ok(bytes.len())
            }
            done => done,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads the content of a backup into `sink` and compares it with the manifest.
///
/// # Errors
/// When it cannot be fetched or opened, was altered, or the sink does not take it.
pub async fn read(
    repository: &Repository,
    manifest: &Manifest,
    tap: Option<Tap>,
    mut sink: Box<dyn Write + Send>,
) -> Result<Summary, StreamError> {
    let (chunks, arriving) = mpsc::channel(QUEUE);
    let prefix = manifest.subject.key(&manifest.id, "");
    let fetching = volumes::fetch(
        Arc::clone(&repository.store),
        prefix,
        manifest.volumes.clone(),
        chunks,
    );
    let identity = repository.keys.identity.clone();
    let opening =
        tokio::task::spawn_blocking(move || seal::open(Arriving::new(arriving), &identity, tap, &mut *sink));
    let ((), opened) = tokio::join!(fetching, opening);
    let summary = opened.map_err(StreamError::Thread)??;
    let differs = |what| Err(SealError::Differs { what }.into());
    if summary.bytes != manifest.plain_bytes {
        return differs("it has another size");
    }
    if summary.sha256 != manifest.plain_sha256 {
        return differs("it has another digest");
    }
    if summary.counts.is_some() && summary.counts != manifest.counts {
        return differs("it has other tables or rows");
    }
    Ok(summary)
}

/// Seals a small content.
///
/// # Errors
/// When it is empty, or sealing fails.
pub(crate) async fn seal_small(
    recipients: &[x25519::Recipient],
    content: Vec<u8>,
) -> Result<Bytes, StreamError> {
    let recipients = recipients.to_vec();
    // Room for all of it: nobody takes anything out before the end.
    let (pieces, mut arriving) = mpsc::channel(content.len() / crate::store::PART + 3);
    let sealed = tokio::task::spawn_blocking(move || {
        seal::seal(&mut content.as_slice(), None, &recipients, &pieces, || true)
    });
    sealed.await.map_err(StreamError::Thread)??;
    let mut bytes = Vec::new();
    while let Some(Piece::Part(part)) = arriving.recv().await {
        bytes.extend_from_slice(&part);
    }
    Ok(bytes.into())
}

/// Opens one small object of a backup, such as the globals.
///
/// # Errors
/// When it cannot be fetched or opened, or was altered.
pub(crate) async fn read_small(
    repository: &Repository,
    manifest: &Manifest,
    object: &Object,
) -> Result<Vec<u8>, StreamError> {
    let (chunks, arriving) = mpsc::channel(QUEUE);
    let fetching = volumes::fetch(
        Arc::clone(&repository.store),
        manifest.subject.key(&manifest.id, ""),
        vec![object.clone()],
        chunks,
    );
    let identity = repository.keys.identity.clone();
    let opening = tokio::task::spawn_blocking(move || {
        let mut content = Vec::new();
        seal::open(Arriving::new(arriving), &identity, None, &mut content).map(|_| content)
    });
    let ((), opened) = tokio::join!(fetching, opening);
    Ok(opened.map_err(StreamError::Thread)??)
}
