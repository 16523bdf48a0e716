//! A newer binary in the place of this one, and back.
//!
//! ```text
//!  FILE, or what was published ─► signature ─► staged ─► says its version ─► newer?
//!        │ no: refused, nothing changed          │ yes
//!                                                ▼
//!  former kept, guard armed, renamed ─► agent restarted ─► answers as the new version
//!                                                │ yes               │ no
//!                                                ▼                   ▼
//!                             proxy's successor ─► serves as before   back: former renamed, agent, proxy
//!                                                │ yes               ▲
//!                                                ▼                   │ no, or nobody said yes in time
//!                                             settled ◄───── guard ──┘ (a timer, also after a reboot)
//! ```
//!
//! Visitors notice none of it: the agent is not in their way, and the proxy's successor takes its listeners over while
//! the process before it finishes what is under way.
//! The agent goes first: a version whose agent does not come up never reaches the proxy.

mod elf;
mod fetch;
mod guard;
mod health;
mod manifest;
mod source;
mod version;

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use appliance_bootstrap::host::{Command, Host as _};
use appliance_bootstrap::{Local, PublicKey};
use appliance_push::sign::{PublicKey as SigningKey, Signature};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::health::{runs, runs_program};
pub use self::source::{Proof, Published, Source, is_address, published};
pub use self::version::Version;
use crate::failure::{Kind, failure};
use crate::ui;

/// The program as its units start it.
const PROGRAM: &str = "/usr/local/bin/appliance";
/// The one before, for the way back.
const FORMER: &str = "/usr/local/bin/.appliance.former";
/// What runs until now, for the guard: it becomes the former one once the new one has settled.
const GUARDED: &str = "/usr/local/bin/.appliance.guarded";
/// What was done last.
const RECORD: &str = "/var/lib/appliance/update.json";
/// A newer program that lies beside its place.
const STAGED: &str = ".appliance.staged";

/// What is remembered of the last update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The version before.
    pub from: String,
    /// The version that came.
    pub to: String,
    /// How far it is.
    pub stage: Stage,
    /// Why it went back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// When this was written.
    pub at: Timestamp,
}

/// How far an update is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// In place, and not yet found healthy.
    Switched,
    /// Found healthy.
    Settled,
    /// Taken back.
    Reverted,
}

/// A program that was proved and lies beside its place; gone with this value, unless it was renamed.
struct Staged {
    path: tempfile::TempPath,
    version: Version,
}

/// Proves where a program comes from, and puts it beside `program`, from where it can be renamed.
fn stage(source: &Source, key: &PublicKey, program: &Path) -> anyhow::Result<Staged> {
    use std::os::unix::fs::PermissionsExt as _;

    let refused = |why: String| {
        failure(
            Kind::Refused,
            format!("{} is not taken, nothing was changed: {why}", source.name),
        )
    };
    match &source.proof {
        Proof::Signature(text) => signed(source, text, key)?,
        Proof::Checksum(_, expected) => {
            let found = appliance_bootstrap::sha256_of(&mut &source.program[..])?;
            if found != *expected {
                let why = format!("its checksum is {found}, and {expected} was published");
                return Err(refused(why)
                    .hint("try again; the download may have been changed on its way")
                    .into());
            }
        }
    }
    match elf::architecture(&source.program) {
        Some(word) if word != std::env::consts::ARCH => {
            let why = format!("it is for {word}, and this is {}", std::env::consts::ARCH);
            return Err(refused(why).into());
        }
        _ => {}
    }
    let directory = program.parent().context("the program lies in a directory")?;
    let not_written = || format!("cannot write to {}; nothing was changed", directory.display());
    let mut file = tempfile::Builder::new()
        .prefix(STAGED)
        .permissions(std::fs::Permissions::from_mode(0o755))
        .tempfile_in(directory)
        .with_context(not_written)?;
    std::io::Write::write_all(&mut file, &source.program).with_context(not_written)?;
    file.as_file().sync_all().with_context(not_written)?;
    let path = file.into_temp_path();
    // Only what is proved is run; it says its version itself, so nobody can put another one's name on it.
    let said = Local.run(&Command::new([path.display().to_string().as_str(), "version"]));
    let version: Version = match said {
        Ok(output) if output.ok() => output.stdout.trim().parse(),
        Ok(output) => Err(anyhow::anyhow!(
            "it does not run on this host: {}",
            output.stderr.trim()
        )),
        Err(error) => Err(error.into()),
    }
    .map_err(|error| refused(format!("{error:#}")))?;
    match &source.proof {
        Proof::Checksum(published, _) if *published != version => {
            let why = format!("it says that it is {version}, and {published} was published");
            Err(refused(why).into())
        }
        _ => Ok(Staged { path, version }),
    }
}

/// The signature beside a program, over its bytes.
fn signed(source: &Source, text: &str, key: &PublicKey) -> anyhow::Result<()> {
    let refused = |why: String| {
        failure(
            Kind::Refused,
            format!("{} is not taken, nothing was changed: {why}", source.name),
        )
    };
    let signature = Signature::parse(text).map_err(|error| {
        refused(format!("its signature cannot be read: {error}")).hint(format!(
            "the signature is expected beside the program, as {}.sig",
            source.name
        ))
    })?;
    let key = SigningKey::parse(&key.line())?;
    signature
        .verify_as(appliance_bootstrap::cloud_init::NAMESPACE, &key, &source.program)
        .map_err(|error| {
            refused(format!(
                "it is not signed by the key of the releases ({}): {}",
                key.fingerprint(),
                crate::agent::chain(&error)
            ))
            .hint("fetch it again; --release-key FILE.pub, if it is a build of your own")
        })?;
    Ok(())
}

/// Whether this machine is an appliance, so that agent and proxy have to follow.
pub fn on_a_host() -> bool {
    Path::new("/etc/appliance/host.key").exists()
}

/// The version of the program at `path`, as it says itself; ours, if there is none.
fn installed(path: &Path) -> anyhow::Result<Version> {
    if is_program(&std::env::current_exe()?) || !path.exists() {
        return crate::version().parse();
    }
    let path = path.to_string_lossy();
    let said = Local.run(&Command::new([path.as_ref(), "version"]))?;
    said.stdout
        .trim()
        .parse()
        .with_context(|| format!("{path} does not say which version it is"))
}

/// The program that would be replaced, which need not be the one that was called.
///
/// # Errors
/// When it is not known where this program lies.
fn place() -> anyhow::Result<PathBuf> {
    if on_a_host() {
        Ok(PathBuf::from(PROGRAM))
    } else {
        std::env::current_exe().context("cannot tell where this program lies")
    }
}

/// The version that is installed here.
///
/// # Errors
/// When it does not say so.
pub fn own_version() -> anyhow::Result<Version> {
    installed(&place()?)
}

/// Whether `version` is newer than what is installed; says so if it is the same.
///
/// # Errors
/// When it is older.
pub fn is_newer(version: Version) -> anyhow::Result<bool> {
    let own = own_version()?;
    if version > own {
        return Ok(true);
    }
    if version == own {
        ui::note(&format!("{own} is what runs already"));
        return Ok(false);
    }
    Err(failure(
        Kind::Refused,
        format!(
            "{version} is older than {own}, which runs: nothing was changed. What was mended since would be broken again"
        ),
    )
    .hint("appliance update --rollback, for the way back to the one before")
    .into())
}

/// Brings the program of `source`; says what came of it.
///
/// # Errors
/// When it is not proved, not newer, or was not healthy and the former one is back (exit code 5).
pub async fn install(source: &Source, key: &PublicKey) -> anyhow::Result<()> {
    let program = place()?;
    let staged = stage(source, key, &program)?;
    if !is_newer(staged.version)? {
        return Ok(());
    }
    let own = installed(&program)?;
    if !on_a_host() {
        fs_err::rename(&staged.path, &program)?;
        ui::note(&format!("{own} → {}", staged.version));
        return Ok(());
    }
    swap(&staged.path, &own.to_string(), &staged.version.to_string()).await
}

/// Goes back to the program before the last update.
///
/// # Errors
/// When there is none, or it is not healthy either.
pub async fn roll_back() -> anyhow::Result<()> {
    finish()?;
    let former = Path::new(FORMER);
    if !former.exists() {
        return Err(
            failure(Kind::Refused, "there is no program from before an update here")
                .hint("appliance update FILE, with a release of your choice that is newer")
                .into(),
        );
    }
    let said = Local.run(&Command::new([FORMER, "version"]))?;
    let to: Version = said
        .stdout
        .trim()
        .parse()
        .with_context(|| format!("{FORMER} does not say which version it is; nothing was changed"))?;
    // Another name, because the former stays the former if it is not healthy either.
    let staged = Path::new(PROGRAM).with_file_name(STAGED);
    replace_by_link(former, &staged)?;
    let own = installed(Path::new(PROGRAM))?;
    swap(&staged, &own.to_string(), &to.to_string()).await
}

/// The rename, agent and proxy after it, and back if they are not healthy.
async fn swap(staged: &Path, from: &str, to: &str) -> anyhow::Result<()> {
    let _lock = appliance_bootstrap::Lock::take(Path::new("/run/appliance-bootstrap.lock"))?;
    finish()?;
    sweep(staged)?;
    let before = health::picture().await;
    let former_record = record()?;
    let armed = replace_by_link(Path::new(PROGRAM), Path::new(GUARDED))
        .and_then(|()| write(Stage::Switched, from, to, None))
        .and_then(|()| guard::arm());
    if let Err(error) = armed {
        // Nothing was switched, and nobody is to go back from it.
        let undone = guard::disarm().and_then(|()| restore(former_record.as_ref()));
        if let Err(undone) = undone {
            ui::warn(&format!("what was prepared could not be taken back: {undone:#}"));
        }
        return Err(error.context("the update was not begun, nothing was changed"));
    }
    fs_err::rename(staged, PROGRAM)?;
    appliance_state::atomic::sync_directory(Path::new("/usr/local/bin"))?;
    ui::note(&format!("{from} → {to}: in place; agent and proxy follow"));
    match follow(&before, to).await {
        Ok(()) => {
            write(Stage::Settled, from, to, None)?;
            guard::disarm()?;
            finish()?;
            ui::note(&format!("{to} runs; the way back: appliance update --rollback"));
            Ok(())
        }
        Err(error) => {
            let why = format!("{error:#}");
            revert(&why).await?;
            Err(failure(
                Kind::Reverted,
                format!("{to} was not healthy, {from} is back: {why}"),
            )
            .hint("journalctl -u appliance-agent -u appliance-proxy --since -5min")
            .into())
        }
    }
}

async fn follow(before: &health::Picture, version: &str) -> anyhow::Result<()> {
    health::restart_agent()?;
    health::agent(version).await?;
    health::succeed_proxy().await?;
    health::proxy(before).await?;
    health::stays(version).await
}

/// Puts the former program back, and whoever runs the other one; nothing to do if that was settled meanwhile.
///
/// # Errors
/// When it cannot be put back.
pub async fn revert(why: &str) -> anyhow::Result<()> {
    let Some(record) = record()? else { return Ok(()) };
    if record.stage != Stage::Switched {
        finish()?;
        return guard::disarm();
    }
    // Cut off before the rename, or after a revert was: both are one file then, and this changes nothing.
    let staged = Path::new(PROGRAM).with_file_name(STAGED);
    replace_by_link(Path::new(GUARDED), &staged)?;
    fs_err::rename(&staged, PROGRAM)?;
    if staged.exists() {
        fs_err::remove_file(&staged)?;
    }
    if !health::runs_program("appliance-agent.service") {
        health::restart_agent()?;
    }
    if !health::runs_program("appliance-proxy.service") {
        health::succeed_proxy().await?;
    }
    write(Stage::Reverted, &record.from, &record.to, Some(why))?;
    ui::warn(&format!("{} is back in the place of {}", record.from, record.to));
    guard::disarm()?;
    Ok(fs_err::remove_file(GUARDED)?)
}

/// Finishes what an updater that was cut off after its last word left: of a settled update the program before is the
/// former one now, of one that was taken back nothing stays.
fn finish() -> anyhow::Result<()> {
    let guarded = Path::new(GUARDED);
    if !guarded.exists() {
        return Ok(());
    }
    match record()?.map(|record| record.stage) {
        Some(Stage::Settled) => Ok(fs_err::rename(guarded, FORMER)?),
        Some(Stage::Reverted) => Ok(fs_err::remove_file(guarded)?),
        // It is under way, or its end was not written down: the guard decides.
        Some(Stage::Switched) | None => Ok(()),
    }
}

/// Removes what updaters that were killed have staged; whoever holds the lock is the only one.
fn sweep(but: &Path) -> anyhow::Result<()> {
    let directory = Path::new(PROGRAM)
        .parent()
        .context("the program lies in a directory")?;
    for entry in fs_err::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(STAGED) && entry.path() != but {
            fs_err::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The record as it was before an update that did not begin.
fn restore(record: Option<&Record>) -> anyhow::Result<()> {
    match record {
        Some(record) => keep(record),
        None if Path::new(RECORD).exists() => Ok(fs_err::remove_file(RECORD)?),
        None => Ok(()),
    }?;
    match fs_err::remove_file(GUARDED) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Another name for a file, in the place of what had that name.
fn replace_by_link(file: &Path, name: &Path) -> anyhow::Result<()> {
    let fresh = name.with_extension("link");
    match fs_err::remove_file(&fresh) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    fs_err::hard_link(file, &fresh)?;
    // Renaming one name of a file to another name of it does nothing, and leaves both.
    fs_err::rename(&fresh, name)?;
    if fresh.exists() {
        fs_err::remove_file(&fresh)?;
    }
    Ok(())
}

fn write(stage: Stage, from: &str, to: &str, why: Option<&str>) -> anyhow::Result<()> {
    let record = Record {
        from: from.to_owned(),
        to: to.to_owned(),
        stage,
        why: why.map(str::to_owned),
        at: Timestamp::now(),
    };
    keep(&record)
}

fn keep(record: &Record) -> anyhow::Result<()> {
    appliance_state::atomic::write(Path::new(RECORD), &serde_json::to_vec_pretty(record)?, 0o600)
        .context("cannot write down how far the update is")
}

/// The last update.
///
/// # Errors
/// When what is written cannot be read.
pub fn record() -> anyhow::Result<Option<Record>> {
    match fs_err::read(RECORD) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether a path is the very file that `PROGRAM` is.
fn is_program(path: &Path) -> bool {
    match (fs_err::metadata(path), fs_err::metadata(PROGRAM)) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}
