//! SQLite: every database file in the accessory's mounts, by SQLite's own backup API, through the `sqlite3` of its image.
//!
//! `.backup` copies page by page under SQLite's own locks, so a database that is written meanwhile is whole all the same;
//! `.restore` goes the other way, so apps that have the database open see the new content at their next transaction.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use appliance_backup::manifest::{DrillResult, Manifest};
use appliance_backup::names::Subject;
use appliance_backup::place::{Job as Program, Place, succeed};
use appliance_backup::repository::Repository;
use appliance_backup::stream::{self, Feed};
use appliance_backup::tap::Tap;
use appliance_containers::engine::ContainerInfo;
use jiff::Timestamp;

use super::OUTSIDE;
use super::helper::{Mounted, output, write_to};
use super::place::ContainerPlace;
use super::room;
use super::scratch::few;
use crate::agent::Agent;

/// Ends the names of our copies.
const COPY: &str = ".appliance-copy";
/// Ends the name of what a restore replaced.
const BEFORE: &str = ".appliance-before";
/// Ends the name of what is being replaced, until it has been.
const REPLACED: &str = ".appliance-replaced";
/// Where a drill puts the file.
const DRILL: &str = "/tmp/appliance-drill.sqlite3";
/// Prints the files among its arguments that begin like a SQLite database, each with a NUL after it.
const SIFT: &str =
    "for file; do [ \"$(head -c 15 \"$file\")\" = \"SQLite format 3\" ] && printf '%s\\0' \"$file\"; done; :";

pub(super) fn place(agent: &Agent, info: &ContainerInfo) -> Arc<dyn Place> {
    Arc::new(ContainerPlace::new(Arc::clone(&agent.docker), info))
}

/// The database files of an accessory.
///
/// # Errors
/// When there is none, one has a name that SQLite's shell cannot be told, or the image has no `sqlite3`.
pub(super) async fn files(agent: &Agent, info: &ContainerInfo) -> anyhow::Result<Vec<String>> {
    let place = place(agent, info);
    if output(&*place, &["sqlite3", "--version"]).await.is_err() {
        bail!(
            "the image of {} has no sqlite3, by which its databases are copied while they are written; \
             add the package to the image",
            info.name
        );
    }
    let mut found = Vec::new();
    for Mounted { target } in agent.mounted(&info.id.0).await? {
        let listed = output(
            &*place,
            &[
                "find", &target, "-xdev", "-type", "f", "-exec", "sh", "-c", SIFT, "sh", "{}", "+",
            ],
        )
        .await?;
        found.extend(
            listed
                .split('\0')
                .filter(|name| !name.is_empty())
                .map(str::to_owned),
        );
    }
    found.retain(|name| [COPY, BEFORE, REPLACED].iter().all(|end| !name.ends_with(end)));
    found.sort();
    if let Some(bad) = found.iter().find(|name| name.contains(['\'', '"', '\\', '\n'])) {
        bail!("{bad:?} has a name with quotes in it, which cannot be backed up: rename it");
    }
    if found.is_empty() {
        bail!(
            "there is no SQLite database in what is mounted into {}",
            info.name
        );
    }
    Ok(found)
}

/// Has SQLite do one thing with a database.
async fn shell(place: &dyn Place, file: &str, command: &str) -> anyhow::Result<String> {
    output(
        place,
        &[
            "sqlite3",
            "-bail",
            "-batch",
            "-cmd",
            ".timeout 30000",
            file,
            command,
        ],
    )
    .await
}

/// Copies a database beside itself, and answers with the copy as a source; [`done`] removes it.
///
/// # Errors
/// When SQLite cannot: a lock that does not end, a full disk.
pub(super) async fn copy(agent: &Agent, info: &ContainerInfo, file: &str) -> anyhow::Result<Feed> {
    let place = place(agent, info);
    let copy = format!("{file}{COPY}");
    shell(&*place, file, &format!(".backup main '{copy}'")).await?;
    Ok(Feed::Job {
        place,
        job: Program::new(["cat", &copy]),
    })
}

/// Removes the copy.
pub(super) async fn done(agent: &Agent, info: &ContainerInfo, file: &str) {
    let copy = format!("{file}{COPY}");
    if let Err(error) = output(&*place(agent, info), &["rm", "-f", &copy]).await {
        tracing::warn!("{copy} is left behind until the next run: {error:#}");
    }
}

/// Brings a file in and has SQLite read all of it. Answers with milliseconds and tables.
async fn bring(
    repository: &Repository,
    manifest: &Manifest,
    place: &Arc<dyn Place>,
    file: &str,
) -> anyhow::Result<(u64, u64)> {
    let begun = Timestamp::now();
    let tap = manifest.counts.as_ref().map(|_| Tap::of(manifest.subject.kind));
    stream::replay(
        repository,
        manifest,
        place,
        write_to(file),
        tap,
        &OUTSIDE.word(),
        false,
    )
    .await?;
    let millis = Timestamp::now().duration_since(begun).as_millis();
    let verdict = shell(&**place, file, "PRAGMA integrity_check").await?;
    if verdict.trim() != "ok" {
        let first: String = verdict.chars().take(200).collect();
        bail!("SQLite finds it damaged: {first}");
    }
    let tables = shell(
        &**place,
        file,
        "SELECT count(*) FROM sqlite_master WHERE type = 'table'",
    )
    .await?;
    Ok((
        u64::try_from(millis).unwrap_or(0),
        tables.trim().parse().unwrap_or(0),
    ))
}

/// Restores a backup into a throw-away container and has SQLite check it.
///
/// # Errors
/// When it does not restore, or SQLite finds it damaged.
pub(super) async fn drill(
    agent: &Agent,
    repository: &Repository,
    manifest: &Manifest,
    image: &str,
) -> anyhow::Result<DrillResult> {
    let helper = agent.helper(image, Vec::new(), few()).await?;
    let brought = async {
        room::disk(&*helper.place, "/tmp", manifest).await?;
        bring(repository, manifest, &helper.place, DRILL).await
    }
    .await;
    helper.remove().await;
    let (millis, tables) = brought?;
    super::restore::passed(repository, manifest, millis, tables).await
}

/// Restores beside the live database, or with `swap` into it; what it was is kept beside it.
///
/// # Errors
/// When it does not restore; the live database is as it was.
pub(super) async fn restore(
    agent: &Agent,
    repository: &Repository,
    manifest: &Manifest,
    subject: &Subject,
    info: &ContainerInfo,
    into: Option<&str>,
    swap: bool,
) -> anyhow::Result<String> {
    let place = place(agent, info);
    let live = &manifest.subject.unit;
    let directory = live.rsplit_once('/').map_or("", |(directory, _)| directory);
    let file = match into {
        Some(name) if name.contains(['/', '\'', '"', '\\']) || name.starts_with(['.', '-']) => {
            bail!("{name:?} is not a name for a file beside {live}")
        }
        Some(name) => format!("{directory}/{name}"),
        None if swap => format!("{live}{COPY}"),
        None => format!("{live}.restored-{}", OUTSIDE.word()),
    };
    if !swap && place.run(&Program::new(["test", "-e", &file])).await?.code == 0 {
        bail!("there is a file {file} already");
    }
    room::disk(&*place, directory, manifest).await?;
    let brought = bring(repository, manifest, &place, &file).await;
    let (millis, tables) = match brought {
        Ok(brought) => brought,
        Err(error) => {
            output(&*place, &["rm", "-f", &file])
                .await
                .context("the half restored file")?;
            return Err(error);
        }
    };
    let told = format!("{tables} tables, {:.1} s", millis as f64 / 1000.0);
    if !swap {
        return Ok(format!("{told}; the data is in {file}"));
    }
    let before = format!("{live}{BEFORE}");
    take_in(&*place, live, &file).await?;
    Ok(format!(
        "{told}; {live} is what it was at the backup; what it was before is kept for a day as {before}, and comes back \
         with: appliance restore undo {}",
        subject.accessory
    ))
}

/// The databases beside which lies what a restore replaced.
///
/// # Errors
/// When the container cannot be asked.
pub(super) async fn undoable(agent: &Agent, info: &ContainerInfo) -> anyhow::Result<BTreeSet<String>> {
    let place = place(agent, info);
    let mut found = BTreeSet::new();
    for Mounted { target } in agent.mounted(&info.id.0).await? {
        let name = format!("*{BEFORE}");
        let listed = output(&*place, &["find", &target, "-xdev", "-name", &name]).await?;
        found.extend(
            listed
                .lines()
                .filter_map(|path| path.strip_suffix(BEFORE))
                .map(str::to_owned),
        );
    }
    Ok(found)
}

/// Puts back what the last restore into `live` replaced.
///
/// # Errors
/// When nothing is kept, or SQLite cannot.
pub(super) async fn undo(agent: &Agent, info: &ContainerInfo, live: &str) -> anyhow::Result<String> {
    put_back(&*place(agent, info), live).await?;
    let before = format!("{live}{BEFORE}");
    Ok(format!(
        "{live} is what it was before the restore; what the restore had brought is kept for a day as {before}"
    ))
}

/// Copies the live database to `live`[`REPLACED`]; a copy that was only begun is removed.
async fn keep(place: &dyn Place, live: &str) -> anyhow::Result<String> {
    let replaced = format!("{live}{REPLACED}");
    if let Err(error) = shell(place, live, &format!(".backup main '{replaced}'")).await {
        let _full_or_gone = output(place, &["rm", "-f", &replaced]).await;
        return Err(error.context("nothing was changed: what would be replaced cannot be copied first"));
    }
    Ok(replaced)
}

/// Brings `file` into the live database, and removes it; what was live is kept as `live`[`BEFORE`].
async fn take_in(place: &dyn Place, live: &str, file: &str) -> anyhow::Result<()> {
    let replaced = keep(place, live).await?;
    output(place, &["mv", "-f", &replaced, &format!("{live}{BEFORE}")]).await?;
    shell(place, live, &format!(".restore main '{file}'")).await?;
    output(place, &["rm", "-f", file]).await?;
    Ok(())
}

/// Brings `live`[`BEFORE`] back into the live database. It keeps its name until the live database holds it: whatever
/// fails before, the next attempt finds it.
async fn put_back(place: &dyn Place, live: &str) -> anyhow::Result<()> {
    let before = format!("{live}{BEFORE}");
    if place.run(&Program::new(["test", "-e", &before])).await?.code != 0 {
        bail!("there is nothing that a restore of {live} replaced; it is kept for a day");
    }
    let replaced = keep(place, live).await?;
    shell(place, live, &format!(".restore main '{before}'")).await?;
    output(place, &["mv", "-f", &replaced, &before]).await?;
    Ok(())
}

/// Removes what restores replaced more than a day ago, and copies of a run that was killed.
pub(super) async fn forget(agent: &Agent, info: &ContainerInfo) -> anyhow::Result<()> {
    let place = place(agent, info);
    for Mounted { target } in agent.mounted(&info.id.0).await? {
        let old = format!("*{BEFORE}");
        let undone = format!("*{REPLACED}*");
        let copies = format!("*{COPY}*");
        for words in [
            [
                "find", &target, "-xdev", "-name", &old, "-mmin", "+1440", "-exec", "rm", "-f", "{}", "+",
            ]
            .as_slice(),
            &[
                "find", &target, "-xdev", "-name", &undone, "-mmin", "+1440", "-exec", "rm", "-f", "{}", "+",
            ],
            &[
                "find", &target, "-xdev", "-name", &copies, "-exec", "rm", "-f", "{}", "+",
            ],
        ] {
            succeed(&*place, &Program::new(words.iter().copied())).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::pretended::Pretended;
    use super::*;

    /// `sqlite3` as far as these commands go.
    fn sqlite(files: &mut std::collections::BTreeMap<String, String>, words: &[&str]) -> Option<String> {
        let ["sqlite3", .., live, command] = words else {
            return None;
        };
        let file = command.split('\'').nth(1)?.to_owned();
        let (from, to) = match command.starts_with(".backup") {
            true => ((*live).to_owned(), file),
            false => (file, (*live).to_owned()),
        };
        let content = files.get(&from)?.clone();
        files.insert(to, content);
        Some(String::new())
    }

    #[tokio::test]
    async fn an_undo_that_fails_anywhere_keeps_what_it_was_to_bring_back() {
        for fails_at in 0.. {
            let place = Pretended::new(sqlite, &[("/d/x", "restored"), ("/d/x.appliance-before", "old")]);
            place.fail_at(fails_at);
            let failed = put_back(&place, "/d/x").await.is_err();
            place.fail_at(usize::MAX);
            if failed && place.file("/d/x").as_deref() == Some("restored") {
                put_back(&place, "/d/x").await.expect("the next one works");
            }
            assert_eq!(place.file("/d/x").as_deref(), Some("old"), "fails at {fails_at}");
            if !failed {
                assert_eq!(place.names(), ["/d/x", "/d/x.appliance-before"]);
                assert_eq!(place.file("/d/x.appliance-before").as_deref(), Some("restored"));
                assert!(fails_at > 3, "each of the commands was made to fail");
                break;
            }
        }
    }

    #[tokio::test]
    async fn a_restore_that_fails_anywhere_leaves_the_live_content_live_or_beside() {
        for fails_at in 0.. {
            let place = Pretended::new(sqlite, &[("/d/x", "live"), ("/d/copy", "backup")]);
            place.fail_at(fails_at);
            let failed = take_in(&place, "/d/x", "/d/copy").await.is_err();
            match place.file("/d/x").as_deref() {
                Some("backup") => assert_eq!(place.file("/d/x.appliance-before").as_deref(), Some("live")),
                live => assert_eq!(live, Some("live")),
            }
            if !failed {
                assert_eq!(place.names(), ["/d/x", "/d/x.appliance-before"]);
                break;
            }
        }
    }
}
