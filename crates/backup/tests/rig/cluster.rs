//! An unprivileged PostgreSQL server in a directory of its own, reached by socket only.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};

use appliance_backup::place::LocalPlace;
use appliance_backup::postgres::{Postgres, sql};

/// Where distributions put the programs, and where the project's tasks put those of other versions.
const INSTALLED: [&str; 2] = ["/usr/lib/postgresql", "/usr/local/lib/postgresql"];

/// The versions that backups are tested on.
pub const VERSIONS: [u32; 2] = [15, 17];

/// A server; it ends with this process, however that ends.
pub struct Cluster {
    directory: tempfile::TempDir,
    programs: PathBuf,
    /// Its version, by which its programs lie.
    pub version: u32,
}

/// Servers that are started when somebody first wants them, one of each version.
type Each = [OnceLock<Cluster>; VERSIONS.len()];

/// The server that most tests share; who makes roles has one of his own, as a role that comes while another test's dump
/// runs makes that no backup.
pub fn shared() -> &'static Cluster {
    let at = Path::new(INSTALLED[0]);
    let own = |version: &u32| at.join(version.to_string()).join("bin/initdb").exists();
    live(VERSIONS.into_iter().find(own).unwrap_or(VERSIONS[0]))
}

/// The one of a version.
pub fn live(version: u32) -> &'static Cluster {
    static LIVE: Each = [const { OnceLock::new() }; VERSIONS.len()];
    each(&LIVE, version)
}

/// A second one, for drills.
pub fn scratch(version: u32) -> &'static Cluster {
    static SCRATCH: Each = [const { OnceLock::new() }; VERSIONS.len()];
    each(&SCRATCH, version)
}

fn each(servers: &'static Each, version: u32) -> &'static Cluster {
    let at = VERSIONS.iter().position(|other| *other == version);
    servers[at.expect("a version of ours")].get_or_init(|| Cluster::of(version))
}

/// The programs of a version.
pub fn programs(version: u32) -> PathBuf {
    let mut places = INSTALLED
        .map(|place| Path::new(place).join(version.to_string()).join("bin"))
        .into_iter();
    let found = places.find(|place| place.join("initdb").exists());
    found.unwrap_or_else(|| panic!("PostgreSQL {version} is not installed; cargo xtask test installs it"))
}

/// The programs of the version that the server in `socket` has.
fn programs_of(socket: &Path) -> PathBuf {
    let text = std::fs::read_to_string(socket.join("data/PG_VERSION")).expect("a server's directory");
    programs(text.trim().parse().expect("a version"))
}

impl Cluster {
    /// Starts a server of this version.
    pub fn of(version: u32) -> Self {
        let programs = programs(version);
        let directory = tempfile::Builder::new()
            .prefix("pg-")
            .tempdir()
            .expect("directory");
        let path = directory.path();
        if nix::unistd::geteuid().is_root() {
            let user = nix::unistd::User::from_name("postgres")
                .expect("users")
                .expect("the package makes a user");
            nix::unistd::chown(path, Some(user.uid), Some(user.gid)).expect("chown");
        }
        let data = path.join("data");
        let status = server(&programs, "initdb", false)
            .args([
                "-A",
                "trust",
                "-U",
                "postgres",
                "-E",
                "UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
                "-D",
            ])
            .arg(&data)
            .stdout(Stdio::null())
            .status()
            .expect("initdb");
        assert!(status.success(), "initdb");
        let cluster = Self {
            directory,
            programs,
            version,
        };
        cluster.run();
        cluster
    }

    /// Starts the server again after [`Cluster::stop`].
    pub fn run(&self) {
        let path = self.directory.path();
        let mut postgres = server(&self.programs, "postgres", true);
        postgres
            .arg("-D")
            .arg(path.join("data"))
            .arg("-k")
            .arg(path)
            .args([
                "-c",
                "listen_addresses=",
                "-c",
                "fsync=off",
                "-c",
                "full_page_writes=off",
                "-c",
                "log_min_messages=fatal",
            ])
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(path.join("log")).expect("log"));
        // The signal at the death of a parent comes at the death of the thread that started the child.
        std::thread::spawn(move || {
            let mut child = postgres.spawn().expect("postgres");
            let _ended = child.wait();
        });
        let begun = std::time::Instant::now();
        while !self.ready() {
            assert!(
                begun.elapsed().as_secs() < 60,
                "{}",
                std::fs::read_to_string(path.join("log")).unwrap_or_default()
            );
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    /// Kills the server and all of its sessions, as a container that is killed does.
    pub fn stop(&self) {
        let file = self.directory.path().join("data/postmaster.pid");
        let text = std::fs::read_to_string(file).expect("it runs");
        let pid = text
            .lines()
            .next()
            .and_then(|line| line.parse().ok())
            .expect("a number");
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGQUIT).expect("it runs");
        while nix::sys::signal::kill(pid, None).is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    /// A shell that finds its programs first, which connect as the owner.
    pub fn shell(&self) -> Command {
        let others = std::env::var_os("PATH").unwrap_or_default();
        let places = std::iter::once(self.programs.clone()).chain(std::env::split_paths(&others));
        let mut command = Command::new("bash");
        command
            .env("PATH", std::env::join_paths(places).expect("a path"))
            .env("PGHOST", self.socket())
            .env("PGUSER", "postgres");
        command
    }

    /// One of its programs, that connects as the owner.
    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        command.env("PGHOST", self.socket()).env("PGUSER", "postgres");
        command
    }

    fn ready(&self) -> bool {
        self.program("pg_isready")
            .arg("-q")
            .status()
            .is_ok_and(|status| status.success())
    }

    pub fn socket(&self) -> &Path {
        self.directory.path()
    }

    /// Its programs, with FIFOs in `pipes`.
    pub fn postgres(&self, pipes: &Path) -> Postgres {
        postgres(self.socket(), pipes)
    }

    /// Puts a line before all others of `pg_hba.conf`.
    pub fn allow(&self, line: &str) {
        let path = self.directory.path().join("data/pg_hba.conf");
        let rules = std::fs::read_to_string(&path).expect("rules");
        let mut file = std::fs::File::create(&path).expect("rules");
        std::io::Write::write_all(&mut file, format!("{line}\n{rules}").as_bytes()).expect("rules");
        let reloaded = self
            .program("psql")
            .args(["-X", "-q", "-At", "-c", "SELECT pg_reload_conf()"])
            .output()
            .expect("psql");
        assert!(reloaded.status.success());
    }

    /// Runs `psql` with statements from a file.
    pub fn file(&self, database: &str, file: &Path) {
        let output = self
            .program("psql")
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1"])
            .args(["-d", &sql::connection(database), "-f"])
            .arg(file)
            .output()
            .expect("psql");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// The program that restores a dump by hand.
    pub fn pg_restore(&self) -> Command {
        self.program("pg_restore")
    }

    /// A plain dump, without what differs between two dumps of the same.
    pub fn plain(&self, database: &str) -> String {
        let output = self
            .program("pg_dump")
            .args(["-d", &sql::connection(database)])
            .output()
            .expect("pg_dump");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"))
            .collect::<Vec<_>>()
            .join("\n")
    }
}

/// The server whose socket is in `socket`.
pub fn postgres(socket: &Path, pipes: &Path) -> Postgres {
    let place = LocalPlace {
        programs: programs_of(socket),
        pipes: pipes.to_owned(),
        env: vec![],
    };
    let env = [("PGHOST", socket.to_str().expect("text")), ("PGUSER", "postgres")];
    Postgres::new(
        Arc::new(place),
        env.map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec(),
    )
}

/// A program of the server: it refuses to run as root, and must not outlive us.
fn server(programs: &Path, program: &str, bound: bool) -> Command {
    let mut command = Command::new("setpriv");
    if nix::unistd::geteuid().is_root() {
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
    }
    if bound {
        command.arg("--pdeathsig=QUIT");
    }
    command.arg("--").arg(programs.join(program));
    command
}
