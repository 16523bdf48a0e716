//! A container as a place where a server's own programs run.
//!
//! The FIFO lies in the container's `/dev/shm`, which every container has; we reach it through `/proc/PID/root`, so no
//! mount has to be there and containers that somebody else made are backed up as well.
//! The path is resolved without following any symbolic link: what runs in the container cannot lead us out of it.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::sync::Arc;

use appliance_backup::place::{Ended, Job, OUTPUT_LIMIT, Pipe, Place, PlaceError, still_fifo};
use appliance_containers::Engine;
use appliance_containers::engine::{ContainerInfo, ExecRequest, LogLine, Stream};
use futures_util::future::BoxFuture;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use tokio::sync::mpsc;

/// Where FIFOs lie in a container.
const SHARED: &str = "dev/shm";
/// Begins their names.
const NAME: &str = "appliance-";
/// Joins a FIFO to a program's standard input or output; names and words are its arguments, never part of it.
const FROM: &str = "exec \"$@\" < \"$0\"";
const TO: &str = "exec \"$@\" > \"$0\"";

/// A running container.
pub struct ContainerPlace {
    docker: Arc<dyn Engine>,
    id: String,
    name: String,
    pid: i64,
}

impl ContainerPlace {
    /// The container that was looked at; it must run.
    pub fn new(docker: Arc<dyn Engine>, info: &ContainerInfo) -> Self {
        Self {
            docker,
            id: info.id.0.clone(),
            name: info.name.clone(),
            pid: info.pid,
        }
    }

    /// `/dev/shm` of the container.
    fn shared(&self) -> io::Result<OwnedFd> {
        let root = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags((OFlag::O_PATH | OFlag::O_DIRECTORY).bits())
            .open(format!("/proc/{}/root", self.pid))?;
        // One component after the other, none of them a link: `openat2` is not there under every system call filter.
        let mut directory = OwnedFd::from(root);
        for component in SHARED.split('/') {
            let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            directory = openat(&directory, component, flags, Mode::empty())?;
        }
        Ok(directory)
    }
}

impl Place for ContainerPlace {
    fn name(&self) -> &str {
        &self.name
    }

    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Ended, PlaceError>> {
        Box::pin(async move {
            let fail = |source: Box<dyn std::error::Error + Send + Sync>| PlaceError::Run {
                program: job.command.first().cloned().unwrap_or_default(),
                place: self.name.clone(),
                source,
            };
            let mut command = Vec::new();
            for (script, pipe) in [(FROM, &job.stdin), (TO, &job.stdout)] {
                if let Some(pipe) = pipe {
                    command.extend(["sh".to_owned(), "-c".to_owned(), script.to_owned(), pipe.clone()]);
                }
            }
            command.extend(job.command.iter().cloned());
            let request = ExecRequest {
                command,
                env: job
                    .env
                    .iter()
                    .map(|(name, value)| format!("{name}={value}"))
                    .collect(),
                ..ExecRequest::default()
            };
            let (sender, mut lines) = mpsc::channel::<LogLine>(64);
            let collecting = async {
                let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
                while let Some(line) = lines.recv().await {
                    let stream = match line.stream {
                        Stream::Stdout => &mut stdout,
                        Stream::Stderr => &mut stderr,
                    };
                    if stream.len() + line.bytes.len() <= OUTPUT_LIMIT {
                        stream.extend_from_slice(&line.bytes);
                    }
                }
                (stdout, stderr)
            };
            let (code, (stdout, stderr)) =
                tokio::join!(self.docker.exec(&self.id, &request, sender), collecting);
            Ok(Ended {
                code: code.map_err(|error| fail(error.into()))?,
                stdout,
                stderr: String::from_utf8_lossy(&stderr).into_owned(),
            })
        })
    }

    fn pipe(&self, name: &str) -> Result<Pipe, PlaceError> {
        let make = || {
            let shared = self.shared()?;
            let file = format!("{NAME}{name}");
            nix::unistd::mkfifoat(&shared, file.as_str(), Mode::S_IRUSR | Mode::S_IWUSR)?;
            // The program may run as another user than root. By handle: by name, it could be a link by now, which leads out
            // of the container.
            let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let fifo = std::fs::File::from(openat(&shared, file.as_str(), flags, Mode::empty())?);
            still_fifo(&fifo)?;
            fifo.set_permissions(std::fs::Permissions::from_mode(0o666))?;
            Ok(Pipe {
                outside: PathBuf::from(format!("/proc/self/fd/{}/{file}", shared.as_raw_fd())),
                inside: format!("/{SHARED}/{file}"),
                holder: Some(shared),
            })
        };
        make().map_err(|source: io::Error| PlaceError::Pipe {
            place: self.name.clone(),
            source,
        })
    }

    fn release_pipes(&self) {
        let Ok(shared) = self.shared() else { return };
        let directory = format!("/proc/self/fd/{}", shared.as_raw_fd());
        for entry in fs_err::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(NAME) {
                // Both ends at once: whoever waits for the other one goes on, and finds nobody.
                let _both_ends = std::fs::OpenOptions::new()
                    .read(true)
                    .write(true)
                    .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW).bits())
                    .open(entry.path());
                let _gone = fs_err::remove_file(entry.path());
            }
        }
    }
}
