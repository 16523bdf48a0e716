//! An unprivileged PostgreSQL server in a directory of its own, reached by socket only.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};

use appliance_backup::place::LocalPlace;
use appliance_backup::postgres::{Postgres, sql};

/// Where distributions put the programs.
const INSTALLED: &str = "/usr/lib/postgresql";

/// A server; it ends with this process, however that ends.
pub struct Cluster {
    directory: tempfile::TempDir,
}

/// The server that most tests share; who makes roles has one of his own, as a role that comes while another test's dump
/// runs makes that no backup.
pub fn shared() -> &'static Cluster {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    SHARED.get_or_init(Cluster::start)
}

/// A second one, for drills.
pub fn scratch() -> &'static Cluster {
    static SCRATCH: OnceLock<Cluster> = OnceLock::new();
    SCRATCH.get_or_init(Cluster::start)
}

/// The programs of the newest version that is installed.
pub fn programs() -> PathBuf {
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir(INSTALLED)
        .unwrap_or_else(|error| panic!("PostgreSQL is not installed ({error}); cargo xtask test installs it"))
        .flatten()
        .filter_map(|entry| {
            Some((
                entry.file_name().to_str()?.parse().ok()?,
                entry.path().join("bin"),
            ))
        })
        .filter(|(_, path)| path.join("initdb").exists())
        .collect();
    versions.sort();
    versions.pop().expect("a version of PostgreSQL").1
}

impl Cluster {
    pub fn start() -> Self {
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
        let status = server("initdb", false)
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
        let mut postgres = server("postgres", true);
        postgres
            .arg("-D")
            .arg(&data)
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
        while !ready(path) {
            assert!(
                begun.elapsed().as_secs() < 60,
                "{}",
                std::fs::read_to_string(path.join("log")).unwrap_or_default()
            );
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Self { directory }
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
        let reloaded = Command::new(programs().join("psql"))
            .args([
                "-X",
                "-q",
                "-At",
                "-U",
                "postgres",
                "-c",
                "SELECT pg_reload_conf()",
                "-h",
            ])
            .arg(self.socket())
            .output()
            .expect("psql");
        assert!(reloaded.status.success());
    }

    /// Runs `psql` with statements from a file.
    pub fn file(&self, database: &str, file: &Path) {
        let output = Command::new(programs().join("psql"))
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-h"])
            .arg(self.socket())
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

    /// A plain dump, without what differs between two dumps of the same.
    pub fn plain(&self, database: &str) -> String {
        let output = Command::new(programs().join("pg_dump"))
            .args(["-U", "postgres", "-h"])
            .arg(self.socket())
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
        programs: programs(),
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

fn ready(socket: &Path) -> bool {
    Command::new(programs().join("pg_isready"))
        .arg("-q")
        .arg("-h")
        .arg(socket)
        .status()
        .is_ok_and(|status| status.success())
}

/// A program of the server: it refuses to run as root, and must not outlive us.
fn server(program: &str, bound: bool) -> Command {
    let mut command = Command::new("setpriv");
    if nix::unistd::geteuid().is_root() {
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
    }
    if bound {
        command.arg("--pdeathsig=QUIT");
    }
    command.arg("--").arg(programs().join(program));
    command
}
