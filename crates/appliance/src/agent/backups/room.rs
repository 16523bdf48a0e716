//! Whether a restore has room, looked at before it begins: on the disk that it writes to, and in memory.

use anyhow::Context as _;
use appliance_backup::manifest::Manifest;
use appliance_backup::names::Kind;
use appliance_backup::place::Place;
use appliance_backup::postgres::Postgres;

use super::helper::output;

/// What a PostgreSQL restore needs, in multiples of the content: the rows again, their indexes, and what the server
/// writes meanwhile.
const DATABASE: f64 = 2.2;
/// What a new database takes before anything is in it, and what its server writes meanwhile, bytes.
const EMPTY: u64 = 64 << 20;
/// The most that a server writes down before it writes (its own default of `max_wal_size`), bytes.
const LOG: u64 = 1 << 30;
/// What files and snapshots need: themselves, and what a file system adds.
const FILES: f64 = 1.1;
/// What a data set takes in memory, in multiples of a snapshot that does not say it.
const UNPACKED: u64 = 4;
/// What a server takes beside its data, bytes.
const SERVER: u64 = 128 << 20;
/// Bytes of a megabyte, as people are told.
const MB: u64 = 1_000_000;

/// There is too little room; nothing was begun.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct NoRoom(pub String);

/// Whether that is why something was not done.
pub(super) fn lacking(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.is::<NoRoom>())
}

/// Looks whether the restore of a backup fits where `directory` of `place` lies. An image without `df`, or with another
/// one, is no reason not to restore.
///
/// # Errors
/// [`NoRoom`], with the figures.
pub(super) async fn disk(place: &dyn Place, directory: &str, manifest: &Manifest) -> Result<(), NoRoom> {
    fits(
        left(place, directory).await,
        needed(manifest),
        directory,
        place.name(),
    )
}

/// Like [`disk`], for a second database beside the live one, and what its server writes meanwhile. Answers with a warning
/// where it fits only if the live one is larger for reasons that the backup does not have: bloat, or a flood of rows that
/// the restore is to undo.
///
/// # Errors
/// [`NoRoom`], with the figures.
pub(super) async fn database(
    server: &Postgres,
    directory: &str,
    manifest: &Manifest,
) -> Result<Option<String>, NoRoom> {
    // A throw-away server has none, and one that cannot be asked will say so itself.
    let live = server.size(&manifest.subject.unit).await.unwrap_or(0);
    let place = &**server.place();
    let free = left(place, directory).await;
    let needed = needed(manifest).saturating_add(EMPTY);
    fits(free, needed, directory, place.name())?;
    let as_live = fits(free, beside(live).saturating_add(EMPTY), directory, place.name());
    Ok(as_live.err().map(|_| tight(free.unwrap_or(0), live, directory)))
}

/// That a restore may end for want of room, which then changes nothing.
fn tight(free: u64, live: u64, directory: &str) -> String {
    format!(
        "the live database has {} MB and the disk of {directory} {} MB free: if what is restored becomes as large, it does \
         not fit, and nothing is changed",
        live / MB,
        free / MB
    )
}

/// Bytes that a second database like a live one of so many bytes needs.
fn beside(live: u64) -> u64 {
    live.saturating_add(live / 10).saturating_add(live.min(LOG))
}

/// Says that the disk of `directory` is full, if it is: what a server says of that may be lost with its connection.
pub(super) async fn full(place: &dyn Place, directory: &str) -> Option<String> {
    let left = left(place, directory).await?;
    (left < EMPTY).then(|| {
        format!(
            "the disk of {directory} in {} is full ({} MB free)",
            place.name(),
            left / MB
        )
    })
}

/// Free bytes where `directory` of `place` lies.
pub(super) async fn left(place: &dyn Place, directory: &str) -> Option<u64> {
    let text = output(place, &["df", "-P", "-k", directory]).await.ok()?;
    free(&text)
}

fn fits(free: Option<u64>, needed: u64, directory: &str, place: &str) -> Result<(), NoRoom> {
    match free {
        Some(free) if free < needed => Err(NoRoom(format!(
            "the disk of {directory} in {place} has {} MB free, and the restore needs about {} MB there beside what is \
             live; free some, or restore on another host",
            free / MB,
            needed.div_ceil(MB)
        ))),
        _ => Ok(()),
    }
}

/// Bytes of disk that a restore of it needs.
fn needed(manifest: &Manifest) -> u64 {
    let share = match manifest.subject.kind {
        Kind::Postgres => DATABASE,
        _ => FILES,
    };
    (manifest.plain_bytes as f64 * share) as u64
}

/// Free bytes, of what `df -P -k` says about one file system.
fn free(df: &str) -> Option<u64> {
    let kib: u64 = df.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
    kib.checked_mul(1024)
}

/// Bytes of memory that a server takes that has loaded the backup.
pub(super) fn memory(manifest: &Manifest) -> u64 {
    let said = manifest.counts.as_ref().and_then(|counts| counts.memory);
    let data = said.unwrap_or(manifest.plain_bytes.saturating_mul(UNPACKED));
    (data / 4).saturating_add(data).saturating_add(SERVER)
}

/// Looks whether the host can give `needed` bytes of memory to `what`.
///
/// # Errors
/// [`NoRoom`], with the figures; where the host does not tell, nothing.
pub(super) fn host_memory(needed: u64, what: &str) -> Result<(), NoRoom> {
    let told = fs_err::read_to_string("/proc/meminfo").ok();
    enough(told.as_deref().and_then(available), needed, what)
}

/// Looks whether `needed` bytes of memory for `what` are there.
///
/// # Errors
/// [`NoRoom`], with the figures.
pub(super) fn enough(available: Option<u64>, needed: u64, what: &str) -> Result<(), NoRoom> {
    match available {
        Some(available) if available < needed => Err(NoRoom(format!(
            "{what} needs about {} MB of memory, and {} MB are available; give it more, or restore where there is more: \
             appliance backup download",
            needed.div_ceil(MB),
            available / MB
        ))),
        _ => Ok(()),
    }
}

/// Bytes of memory that can be had without taking any from what runs, of what `/proc/meminfo` says.
fn available(meminfo: &str) -> Option<u64> {
    let rest = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = rest.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// How often the kernel has ended something in a container because its memory was used up; `None` where that is not
/// told.
pub(super) async fn kills(place: &dyn Place) -> Option<u64> {
    // Of the second version of control groups, and of the first.
    for file in [
        "/sys/fs/cgroup/memory.events",
        "/sys/fs/cgroup/memory/memory.oom_control",
    ] {
        if let Ok(text) = output(place, &["cat", file]).await {
            return killed(&text);
        }
    }
    None
}

fn killed(events: &str) -> Option<u64> {
    let rest = events.lines().find_map(|line| line.strip_prefix("oom_kill "))?;
    rest.trim().parse().ok()
}

/// The bytes that a line `name:number` of a server's `INFO` says.
///
/// # Errors
/// When there is none.
pub(super) fn figure(info: &str, name: &str) -> anyhow::Result<u64> {
    info.lines()
        .find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'))
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("the server does not say its {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_free_room_is_read_from_what_df_says_and_nothing_else() {
        let gnu = "Filesystem     1024-blocks    Used Available Capacity Mounted on\n/dev/vda1  1000 400 600 40% /data\n";
        assert_eq!(free(gnu), Some(600 * 1024));
        assert_eq!(free("df: /data: No such file or directory\n"), None);
        assert_eq!(free(""), None);
        let full = fits(free(gnu), 700 * 1024, "/data", "shop-db").expect_err("too little");
        assert!(
            full.to_string().contains("/data in shop-db has 0 MB free"),
            "{full}"
        );
        assert!(fits(free(gnu), 600 * 1024, "/data", "shop-db").is_ok());
        assert!(fits(None, u64::MAX, "/data", "shop-db").is_ok());
        let said = tight(6 * MB, 9 * MB, "/data");
        assert!(
            said.contains("has 9 MB and the disk of /data 6 MB free"),
            "{said}"
        );
        assert_eq!(beside(0), 0);
        assert_eq!(beside(100 << 20), 210 << 20, "its log may become as large");
        assert_eq!(beside(20 << 30), (22 << 30) + LOG, "but not without end");
    }

    #[test]
    fn memory_is_refused_before_the_kernel_has_to() {
        let meminfo = "MemTotal:       2097152 kB\nMemFree:          10000 kB\nMemAvailable:    1048576 kB\n";
        let gib = available(meminfo);
        assert_eq!(gib, Some(1 << 30));
        assert!(enough(gib, 1 << 30, "the drill").is_ok());
        let refused = enough(gib, 2 << 30, "the drill").expect_err("too much");
        assert!(
            refused
                .to_string()
                .contains("needs about 2148 MB of memory, and 1073 MB are available"),
            "{refused}"
        );
        assert!(lacking(
            &anyhow::Error::from(refused).context("the backup does not restore")
        ));
        assert!(!lacking(&anyhow::anyhow!("it is damaged")));
        assert!(enough(available("nothing"), u64::MAX, "x").is_ok());
    }

    #[test]
    fn what_the_kernel_killed_is_read_from_both_kinds_of_control_groups() {
        assert_eq!(
            killed("low 0\nhigh 0\nmax 31\noom 2\noom_kill 1\noom_group_kill 0\n"),
            Some(1)
        );
        assert_eq!(killed("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), Some(3));
        assert_eq!(killed(""), None);
        assert_eq!(
            figure("# Memory\r\nused_memory_rss:4096\r\n", "used_memory_rss").ok(),
            Some(4096)
        );
        assert!(figure("used_memory:1", "used_memory_rss").is_err());
    }
}
