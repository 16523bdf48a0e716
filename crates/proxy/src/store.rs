//! The snapshot and the certificates on disk.
//!
//! ```text
//! <state directory>/snapshot.json            the last good snapshot
//!                   snapshot.previous.json   the one before, used when the last cannot be read
//!                   snapshot.damaged.json    the last that could not be read, for people
//!                   certificates/<name>.pem  chain and key in one file (0600), so that they change together
//!                   local-ca/                see crate::local_ca
//! ```

use std::io;
use std::path::{Path, PathBuf};

use crate::control::CertificatePem;
use crate::durable;
use crate::names::CertificateName;
use crate::options::Store;
use crate::snapshot::{FORMAT, Service, Settings, Snapshot};

/// The proxy's files.
#[derive(Debug)]
pub(crate) struct Disk {
    snapshot: PathBuf,
    directory: PathBuf,
    /// Whether a person edits the snapshot.
    pub(crate) watched: bool,
}

/// A snapshot as far as it could be read.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) snapshot: Snapshot,
    /// What was left out, and why.
    pub(crate) problems: Vec<String>,
}

impl Disk {
    pub(crate) fn new(store: &Store) -> Self {
        match store {
            Store::Directory(directory) => Self {
                snapshot: directory.join("snapshot.json"),
                directory: directory.clone(),
                watched: false,
            },
            Store::File(file) => Self {
                snapshot: file.clone(),
                directory: file.parent().map_or_else(PathBuf::new, Path::to_owned),
                watched: true,
            },
        }
    }

    /// Path of the snapshot.
    pub(crate) fn snapshot_path(&self) -> &Path {
        &self.snapshot
    }

    /// Directory of the local CA.
    pub(crate) fn local_ca(&self) -> PathBuf {
        self.directory.join("local-ca")
    }

    fn previous(&self) -> PathBuf {
        self.snapshot.with_extension("previous.json")
    }

    fn certificates(&self) -> PathBuf {
        self.directory.join("certificates")
    }

    fn certificate(&self, name: &CertificateName) -> PathBuf {
        self.certificates().join(format!("{name}.pem"))
    }

    /// Reads a snapshot that a person wrote: all of it or nothing.
    ///
    /// # Errors
    /// What is wrong, with line and column where JSON is.
    pub(crate) fn read_strict(&self) -> Result<Snapshot, String> {
        let text = fs_err::read(&self.snapshot).map_err(|error| error.to_string())?;
        parse(&text)
    }

    /// Reads the last good snapshot, service by service: one that cannot be read costs only itself.
    pub(crate) fn read_lenient(&self) -> Loaded {
        let mut problems = Vec::new();
        for path in [self.snapshot.clone(), self.previous()] {
            let text = match fs_err::read(&path) {
                Ok(text) => text,
                Err(error) => {
                    if error.kind() != io::ErrorKind::NotFound {
                        problems.push(error.to_string());
                    }
                    continue;
                }
            };
            match parse_lenient(&text) {
                Ok(mut loaded) => {
                    problems.append(&mut loaded.problems);
                    return Loaded { problems, ..loaded };
                }
                Err(error) => problems.push(format!("{}: {error}", path.display())),
            }
        }
        Loaded {
            problems,
            ..Loaded::default()
        }
    }

    /// Puts what could be read of a damaged snapshot in its place, be it nothing: whoever holds the routes puts them again.
    ///
    /// The damaged file is kept beside it, for people.
    ///
    /// # Errors
    /// The failing system call's error; the copy before is read at the next start as well.
    pub(crate) fn replace_damaged(&self, snapshot: &Snapshot) -> io::Result<()> {
        match fs_err::rename(&self.snapshot, self.snapshot.with_extension("damaged.json")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        durable::write(&self.snapshot, &written(snapshot)?, 0o600)
    }

    /// Makes `snapshot` the last good one.
    ///
    /// # Errors
    /// The failing system call's error; the former one stays.
    pub(crate) fn write(&self, snapshot: &Snapshot) -> io::Result<()> {
        let text = written(snapshot)?;
        if !self.watched {
            durable::create_private_dir(&self.directory)?;
            // A hard link costs no room and cannot be half done.
            let previous = self.previous();
            durable::remove(&previous)?;
            match fs_err::hard_link(&self.snapshot, &previous) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        durable::write(&self.snapshot, &text, 0o600)
    }

    /// Every stored certificate, or why it cannot be read.
    pub(crate) fn read_certificates(&self) -> Vec<(CertificateName, io::Result<CertificatePem>)> {
        let Ok(entries) = fs_err::read_dir(self.certificates()) else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| {
                let path = entry.ok()?.path();
                let name = path.file_name()?.to_str()?.strip_suffix(".pem")?;
                let name = CertificateName::parse(name).ok()?;
                let content = fs_err::read_to_string(&path).map(|text| CertificatePem {
                    chain: text.clone(),
                    key: text,
                });
                Some((name, content))
            })
            .collect()
    }

    /// Stores a certificate.
    ///
    /// # Errors
    /// The failing system call's error; the former one stays.
    pub(crate) fn write_certificate(&self, name: &CertificateName, pem: &CertificatePem) -> io::Result<()> {
        durable::create_private_dir(&self.certificates())?;
        let text = format!("{}\n{}", pem.chain.trim_end(), pem.key);
        durable::write(&self.certificate(name), text.as_bytes(), 0o600)
    }

    /// Forgets a certificate.
    ///
    /// # Errors
    /// The failing system call's error.
    pub(crate) fn remove_certificate(&self, name: &CertificateName) -> io::Result<()> {
        durable::remove(&self.certificate(name))
    }
}

fn written(snapshot: &Snapshot) -> io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(snapshot).map_err(io::Error::other)?;
    text.push(b'\n');
    Ok(text)
}

/// Reads a snapshot, refusing anything unknown or broken.
///
/// # Errors
/// All problems, one per line.
pub(crate) fn parse(text: &[u8]) -> Result<Snapshot, String> {
    let snapshot: Snapshot = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let problems = crate::check::problems(&snapshot);
    if problems.is_empty() {
        Ok(snapshot)
    } else {
        let lines: Vec<_> = problems.into_iter().map(|problem| problem.message).collect();
        Err(lines.join("\n"))
    }
}

/// Reads a stored snapshot; whatever part of it is kept holds to the rules.
pub(crate) fn read_as_stored(text: &[u8]) {
    if let Ok(loaded) = parse_lenient(text) {
        assert_eq!(crate::check::problems(&loaded.snapshot), Vec::new());
    }
}

#[derive(serde::Deserialize)]
struct Loose {
    format: u32,
    #[serde(default)]
    generation: u64,
    #[serde(default)]
    boot: Option<String>,
    #[serde(default)]
    held: std::collections::BTreeSet<crate::names::ServiceName>,
    #[serde(default)]
    settings: serde_json::Value,
    #[serde(default)]
    services: Vec<serde_json::Value>,
}

fn parse_lenient(text: &[u8]) -> Result<Loaded, String> {
    let loose: Loose = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if loose.format != FORMAT {
        return Err(format!(
            "format is {}, this version reads only {FORMAT}",
            loose.format
        ));
    }
    let mut loaded = Loaded::default();
    loaded.snapshot.generation = loose.generation;
    (loaded.snapshot.boot, loaded.snapshot.held) = (loose.boot, loose.held);
    loaded.snapshot.settings = match loose.settings {
        serde_json::Value::Null => Settings::default(),
        value => serde_json::from_value(value).unwrap_or_else(|error| {
            loaded
                .problems
                .push(format!("settings are left at their defaults: {error}"));
            Settings::default()
        }),
    };
    for value in loose.services {
        let name = value
            .get("name")
            .and_then(|name| name.as_str())
            .unwrap_or("?")
            .to_owned();
        let service: Service = match serde_json::from_value(value) {
            Ok(service) => service,
            Err(error) => {
                loaded
                    .problems
                    .push(format!("service {name} is left out: {error}"));
                continue;
            }
        };
        loaded.snapshot.services.push(service);
        let problems = crate::check::problems(&loaded.snapshot);
        if let Some(problem) = problems.iter().find(|problem| problem.service.is_some()) {
            loaded
                .problems
                .push(format!("service {name} is left out: {}", problem.message));
            loaded.snapshot.services.pop();
        }
    }
    if let Some(problem) = crate::check::problems(&loaded.snapshot).first() {
        loaded.problems.push(format!(
            "settings are left at their defaults: {}",
            problem.message
        ));
        loaded.snapshot.settings = Settings::default();
    }
    Ok(loaded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bad_service_costs_only_itself() {
        let loaded = parse_lenient(
            br#"{"format":1,"generation":4,"services":[
                {"name":"good","upstreams":["127.0.0.1:1"]},
                {"name":"bad","upstreams":["app:80"]},
                {"name":"empty","hosts":["h"],"upstreams":[]}]}"#,
        )
        .unwrap();
        assert_eq!(loaded.snapshot.services.len(), 1);
        assert_eq!(loaded.snapshot.generation, 4);
        assert_eq!(loaded.problems.len(), 2);
        assert!(
            loaded.problems[0].contains("service bad is left out"),
            "{:?}",
            loaded.problems
        );
    }

    #[test]
    fn a_torn_snapshot_falls_back_to_the_one_before() {
        let home = tempfile::tempdir().unwrap();
        let disk = Disk::new(&Store::Directory(home.path().to_owned()));
        for generation in [1, 2] {
            disk.write(&Snapshot {
                generation,
                ..Snapshot::default()
            })
            .unwrap();
        }
        assert_eq!(disk.read_lenient().snapshot.generation, 2);
        durable::write(disk.snapshot_path(), b"{\"format\":1,", 0o600).unwrap();
        let loaded = disk.read_lenient();
        assert_eq!(loaded.snapshot.generation, 1);
        assert_eq!(loaded.problems.len(), 1);
        // Said once: the next start finds it whole, and the damaged one is there to be looked at.
        disk.replace_damaged(&loaded.snapshot).unwrap();
        let again = disk.read_lenient();
        assert_eq!((again.snapshot.generation, again.problems.len()), (1, 0));
        assert!(home.path().join("snapshot.damaged.json").exists());
    }

    #[test]
    fn unknown_keys_are_refused_with_their_place() {
        let error = parse(b"{\n \"format\": 1,\n \"servces\": []\n}").unwrap_err();
        assert!(error.contains("servces") && error.contains("line 3"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(
            text in "[\\{\\}\\[\\]\",:a-z0-9_.* -]{0,200}",
            cut in 0_usize..400,
            flip in 0_usize..400,
        ) {
            let _refused = parse(text.as_bytes()).is_err();
            let good = br#"{"format":1,"services":[{"name":"a","hosts":["*.h"],"upstreams":["127.0.0.1:1"],"tls":{"certificate":{"named":"c"}},"health_check":{"path":"/","interval_ms":50}}]}"#;
            let mut bytes = good.to_vec();
            let place = flip % bytes.len();
            bytes[place] ^= 1 << (flip % 7);
            let _either = (parse(&bytes).is_ok(), parse_lenient(&bytes).is_ok());
            let torn = &good[..cut % good.len()];
            proptest::prop_assert!(parse(torn).is_err());
        }
    }
}
