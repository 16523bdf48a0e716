//! The machine we run on.

use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Gid, Group, Pid, Uid, User, chown};

use crate::host::{Command, Entry, Host, HostError, Kind, Output, Owner};

/// The machine this process runs on, as root.
#[derive(Debug, Clone, Copy, Default)]
pub struct Local;

const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Host for Local {
    fn run(&self, command: &Command) -> Result<Output, HostError> {
        let program = command.argv.first().cloned().unwrap_or_default();
        let failed = |source| HostError::Run {
            program: program.clone(),
            source,
        };
        // Files instead of pipes: a daemon that inherits them cannot keep us waiting.
        // In memory: the firewall is loaded on a full disk too.
        let memory = |name: &str| -> Result<std::fs::File, HostError> {
            memfd_create(name, MFdFlags::MFD_CLOEXEC)
                .map(std::fs::File::from)
                .map_err(|error| failed(error.into()))
        };
        let (mut stdout, mut stderr) = (memory("stdout")?, memory("stderr")?);
        let mut stdin = memory("stdin")?;
        stdin
            .write_all(&command.stdin)
            .and_then(|()| stdin.rewind())
            .map_err(failed)?;
        let spawned = std::process::Command::new(&program)
            .args(&command.argv[1..])
            .env("PATH", SEARCH_PATH)
            .env("LC_ALL", "C")
            .envs(command.env.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(Stdio::from(stdin))
            .stdout(Stdio::from(stdout.try_clone().map_err(failed)?))
            .stderr(Stdio::from(stderr.try_clone().map_err(failed)?))
            // A group of its own: it can be stopped whole, and a Ctrl-C does not cut a package installation in two.
            .process_group(0)
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Output {
                    status: 127,
                    stdout: String::new(),
                    stderr: format!("there is no program {program}"),
                });
            }
            Err(error) => return Err(failed(error)),
        };
        let group = Pid::from_raw(child.id().cast_signed());
        let (ended, end) = mpsc::channel();
        std::thread::spawn(move || {
            let _nobody_waits = ended.send(child.wait());
        });
        let status = match end.recv_timeout(command.timeout) {
            Ok(status) => status.map_err(failed)?,
            Err(_) => {
                let _gone_already = killpg(group, Signal::SIGKILL);
                return Err(HostError::Timeout {
                    command: command.argv.join(" "),
                    timeout: command.timeout,
                });
            }
        };
        let text = |file: &mut std::fs::File| -> std::io::Result<String> {
            let mut bytes = Vec::new();
            file.rewind()?;
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        Ok(Output {
            status: status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap_or_default()),
            stdout: text(&mut stdout).map_err(failed)?,
            stderr: text(&mut stderr).map_err(failed)?,
        })
    }

    fn entry(&self, path: &Path) -> Result<Option<Entry>, HostError> {
        let metadata = match fs_err::symlink_metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if absent(&error) => return Ok(None),
            Err(source) => return Err(file("look at", path, source)),
        };
        let kind = match metadata.file_type() {
            kind if kind.is_file() => Kind::File,
            kind if kind.is_dir() => Kind::Directory,
            kind if kind.is_symlink() => Kind::Symlink,
            _ => Kind::Other,
        };
        let user = User::from_uid(Uid::from_raw(metadata.uid())).ok().flatten();
        let group = Group::from_gid(Gid::from_raw(metadata.gid())).ok().flatten();
        Ok(Some(Entry {
            kind,
            mode: metadata.mode() & 0o7777,
            owner: Owner {
                user: user.map_or_else(|| metadata.uid().to_string(), |user| user.name),
                group: group.map_or_else(|| metadata.gid().to_string(), |group| group.name),
            },
        }))
    }

    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, HostError> {
        match fs_err::read(path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if absent(&error) => Ok(None),
            Err(source) => Err(file("read", path, source)),
        }
    }

    fn write(&self, path: &Path, contents: &[u8], mode: u32, owner: &Owner) -> Result<(), HostError> {
        self.place(path, mode, owner, |new| new.write_all(contents))
    }

    fn directory(&self, path: &Path, mode: u32, owner: &Owner) -> Result<(), HostError> {
        let failed = |source| file("make", path, source);
        fs_err::create_dir_all(path).map_err(failed)?;
        fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
        own(path, owner)
    }

    fn same(&self, a: &Path, b: &Path) -> Result<bool, HostError> {
        let open = |path: &Path| match fs_err::File::open(path) {
            Ok(opened) => Ok(Some(opened)),
            Err(error) if absent(&error) => Ok(None),
            Err(source) => Err(file("read", path, source)),
        };
        let (Some(first), Some(second)) = (open(a)?, open(b)?) else {
            return Ok(false);
        };
        let size =
            |opened: &fs_err::File, path| opened.metadata().map_err(|source| file("look at", path, source));
        let (one, two) = (size(&first, a)?, size(&second, b)?);
        if (one.dev(), one.ino()) == (two.dev(), two.ino()) {
            return Ok(true);
        }
        if one.len() != two.len() {
            return Ok(false);
        }
        let (mut first, mut second) = (std::io::BufReader::new(first), std::io::BufReader::new(second));
        let (mut one, mut two) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        loop {
            let count = first.read(&mut one).map_err(|source| file("read", a, source))?;
            if count == 0 {
                return Ok(true);
            }
            second
                .read_exact(&mut two[..count])
                .map_err(|source| file("read", b, source))?;
            if one[..count] != two[..count] {
                return Ok(false);
            }
        }
    }

    fn copy(&self, from: &Path, to: &Path, mode: u32) -> Result<(), HostError> {
        let mut source = fs_err::File::open(from).map_err(|source| file("read", from, source))?;
        self.place(to, mode, &Owner::root(), |new| {
            std::io::copy(&mut source, new).map(drop)
        })
    }

    fn remove(&self, path: &Path) -> Result<(), HostError> {
        match fs_err::remove_file(path) {
            Err(error) if !absent(&error) => Err(file("remove", path, error)),
            _ => Ok(()),
        }
    }

    fn now(&self) -> u64 {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs())
    }

    fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

impl Local {
    fn place(
        self,
        path: &Path,
        mode: u32,
        owner: &Owner,
        fill: impl FnOnce(&mut std::fs::File) -> std::io::Result<()>,
    ) -> Result<(), HostError> {
        let failed = |source| file("write", path, source);
        let directory = path.parent().unwrap_or(Path::new("/"));
        fs_err::create_dir_all(directory).map_err(failed)?;
        // A leading dot and no known suffix: no daemon takes a half-written file of its drop-in directory for a whole one.
        // Always the same name: what a killed run left behind is overwritten, not piled up.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = directory.join(format!(".{name}.appliance-new"));
        self.remove(&temporary)?;
        let mut new = fs_err::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&temporary)
            .map_err(failed)?;
        let filled = own(&temporary, owner).and_then(|()| {
            fill(new.file_mut()).map_err(failed)?;
            new.set_permissions(std::fs::Permissions::from_mode(mode))
                .map_err(failed)?;
            new.sync_all().map_err(failed)?;
            fs_err::rename(&temporary, path).map_err(failed)
        });
        if let Err(error) = filled {
            let _left_for_the_next_run = self.remove(&temporary);
            return Err(error);
        }
        fs_err::File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(failed)
    }
}

fn own(path: &Path, owner: &Owner) -> Result<(), HostError> {
    let uid = User::from_name(&owner.user).ok().flatten().map(|user| user.uid);
    let gid = Group::from_name(&owner.group)
        .ok()
        .flatten()
        .map(|group| group.gid);
    let uid = uid.ok_or_else(|| HostError::NoOwner(owner.user.clone()))?;
    let gid = gid.ok_or_else(|| HostError::NoOwner(owner.group.clone()))?;
    let now = fs_err::symlink_metadata(path).map_err(|source| file("look at", path, source))?;
    // Not even asked for where nothing has to change: sandboxed units may not.
    if (now.uid(), now.gid()) == (uid.as_raw(), gid.as_raw()) {
        return Ok(());
    }
    chown(path, Some(uid), Some(gid)).map_err(|error| file("give away", path, error.into()))
}

fn absent(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
    )
}

fn file(what: &'static str, path: &Path, source: std::io::Error) -> HostError {
    HostError::File {
        what,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_hangs_is_stopped_with_what_it_started() {
        let command = Command::new(["sh", "-c", "sleep 60 & wait"]).timeout(Duration::from_millis(200));
        let error = Local.run(&command).expect_err("too slow");
        assert!(matches!(error, HostError::Timeout { .. }));
    }

    #[test]
    fn input_output_exit_code_and_absence_are_told_apart() {
        let output = Local.run(&Command::new(["cat"]).stdin("hello")).expect("runs");
        assert_eq!((output.status, output.stdout.as_str()), (0, "hello"));
        let output = Local
            .run(&Command::new(["sh", "-c", "echo no >&2; exit 3"]))
            .expect("runs");
        assert_eq!((output.status, output.stderr.as_str()), (3, "no\n"));
        assert_eq!(
            Local
                .run(&Command::new(["no-such-program-here"]))
                .expect("answers")
                .status,
            127
        );
    }

    #[test]
    fn a_copy_has_the_same_bytes_and_a_changed_file_does_not() {
        let directory = tempfile::tempdir().expect("directory");
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        fs_err::write(&a, vec![7; 3 << 20]).expect("write");
        assert!(!Local.same(&a, &b).expect("compare"));
        std::io::copy(
            &mut fs_err::File::open(&a).expect("open"),
            &mut fs_err::File::create(&b).expect("create"),
        )
        .expect("copy");
        assert!(Local.same(&a, &b).expect("compare"));
        let mut changed = vec![7; 3 << 20];
        changed[2 << 20] = 8;
        fs_err::write(&b, changed).expect("write");
        assert!(!Local.same(&a, &b).expect("compare"));
    }
}
