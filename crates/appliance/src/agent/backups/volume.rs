//! Plain files: a tar archive of each mount, made and unpacked by the `tar` of the accessory's own image.
//!
//! The archive is made in a throw-away container that sees the same mounts read-only, so the accessory itself is neither
//! stopped nor changed. A file that its app writes meanwhile is what it was at some moment, and the manifest says which;
//! data servers have kinds of their own for that reason.

use anyhow::{Context as _, bail};
use appliance_backup::manifest::{DrillResult, Manifest};
use appliance_backup::names::Subject;
use appliance_backup::place::{Job as Program, Place};
use appliance_backup::repository::Repository;
use appliance_backup::stream::{self, Feed};
use appliance_backup::tap::Tap;
use appliance_containers::engine::ContainerInfo;
use appliance_containers::spec::Tuning;
use jiff::Timestamp;

use super::helper::{Helper, Mounted, output};
use super::scratch::few;
use super::{OUTSIDE, room};
use crate::agent::Agent;

/// Where a drill unpacks.
const DRILL: &str = "/appliance-drill";
/// Where a restore's new volume is seen.
const RESTORE: &str = "/appliance-restore";
/// GNU tar ends with this when a file changed while it was read.
const CHANGED: i64 = 1;

/// What to do where a server's own dump has to be backed up.
const DUMP: &str =
    "let it write a dump into another volume, and back up that one: an accessory with that volume alone";
/// What lies in the data directories of servers, and what to do instead.
const SERVERS: &[(&[&str], &str, &str)] = &[
    (&["PG_VERSION"], "a PostgreSQL server", "write kind: postgres"),
    (&["ibdata1"], "a MySQL or MariaDB server", DUMP),
    (&["WiredTiger"], "a MongoDB server", DUMP),
    // Files of theirs: names of directories such as metadata and store are anybody's.
    (&["metadata/default.sql", "store"], "a ClickHouse server", DUMP),
    (&["nodes/0/node.lock"], "an Elasticsearch server", DUMP),
    (&["_state", "node.lock"], "an Elasticsearch server", DUMP),
];

/// The mounts that hold files, and a container that sees them.
pub(super) async fn begin(agent: &Agent, info: &ContainerInfo) -> anyhow::Result<(Helper, Vec<String>)> {
    let mounted = agent.mounted(&info.id.0).await?;
    let tuning = Tuning {
        volumes_from: vec![format!("{}:ro", info.id.0)],
        ..Tuning::default()
    };
    let helper = agent.helper(&info.image_id, Vec::new(), tuning).await?;
    match directories(&*helper.place, &mounted).await {
        Ok(found) => Ok((helper, found)),
        Err(error) => {
            helper.remove().await;
            Err(error)
        }
    }
}

async fn directories(place: &dyn Place, mounted: &[Mounted]) -> anyhow::Result<Vec<String>> {
    let is = async |what: &str, path: &str| {
        let ended = place.run(&Program::new(["test", what, path])).await?;
        Ok::<_, anyhow::Error>(ended.code == 0)
    };
    let mut found = Vec::new();
    for Mounted { target } in mounted {
        // A single file of the configuration is no data.
        if !is("-d", target).await? {
            continue;
        }
        for (sign, server, way) in SERVERS {
            let mut all = true;
            for name in *sign {
                all = all && is("-e", &format!("{target}/{name}")).await?;
            }
            if all {
                bail!(
                    "{target} is the data directory of {server}, whose files are no backup while it runs; {way}"
                );
            }
        }
        found.push(target.clone());
    }
    if found.is_empty() {
        bail!("no directory is mounted into it, so there are no files to back up");
    }
    Ok(found)
}

/// The archive of one directory.
pub(super) fn feed(helper: &Helper, directory: &str) -> Feed {
    Feed::Job {
        place: std::sync::Arc::clone(&helper.place),
        job: pack(directory),
    }
}

fn pack(directory: &str) -> Program {
    let mut job = Program::new(["tar", "-c", "-f", "-", "-C", directory, "."]);
    job.grumbles = Some(CHANGED);
    job
}

/// Unpacks into an empty directory of `helper` and compares what lies there with what was backed up. Answers with the
/// milliseconds that unpacking took.
async fn unpack(
    repository: &Repository,
    manifest: &Manifest,
    helper: &Helper,
    directory: &str,
) -> anyhow::Result<u64> {
    let begun = Timestamp::now();
    let tap = manifest.counts.as_ref().map(|_| Tap::of(manifest.subject.kind));
    let job = Program::new(["tar", "-x", "-p", "-f", "-", "-C", directory]);
    stream::replay(
        repository,
        manifest,
        &helper.place,
        job,
        tap,
        &OUTSIDE.word(),
        false,
    )
    .await?;
    let millis = Timestamp::now().duration_since(begun).as_millis();
    let Some(wanted) = manifest.counts.as_ref().and_then(|counts| counts.tree.as_ref()) else {
        bail!("its archive has a form that this version cannot compare");
    };
    let tap = Tap::of(manifest.subject.kind);
    let again = stream::look(&helper.place, pack(directory), tap, &OUTSIDE.word()).await?;
    let found = again.counts.and_then(|counts| counts.tree).unwrap_or_default();
    if found != *wanted {
        bail!(
            "what was unpacked differs from what was backed up: {} entries with {} bytes instead of {} with {}",
            found.entries,
            found.bytes,
            wanted.entries,
            wanted.bytes
        );
    }
    Ok(u64::try_from(millis).unwrap_or(0))
}

/// Unpacks a backup in a throw-away container and compares every file.
///
/// # Errors
/// When it does not unpack, or to something else.
pub(super) async fn drill(
    agent: &Agent,
    repository: &Repository,
    manifest: &Manifest,
    image: &str,
) -> anyhow::Result<DrillResult> {
    let helper = agent.helper(image, Vec::new(), few()).await?;
    let unpacked = async {
        output(&*helper.place, &["mkdir", DRILL]).await?;
        room::disk(&*helper.place, DRILL, manifest).await?;
        unpack(repository, manifest, &helper, DRILL).await
    }
    .await;
    helper.remove().await;
    super::restore::passed(repository, manifest, unpacked?, files(manifest)).await
}

fn files(manifest: &Manifest) -> u64 {
    let tree = manifest.counts.as_ref().and_then(|counts| counts.tree.as_ref());
    tree.map_or(0, |tree| tree.entries)
}

/// Restores into a new volume; the live data is not touched.
///
/// # Errors
/// When it does not unpack; the new volume is gone then.
pub(super) async fn restore(
    agent: &Agent,
    repository: &Repository,
    manifest: &Manifest,
    subject: &Subject,
    info: &ContainerInfo,
    into: Option<&str>,
) -> anyhow::Result<String> {
    let volume = match into {
        Some(name) => {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
            let first = name
                .bytes()
                .next()
                .is_some_and(|byte| byte.is_ascii_alphanumeric());
            if !first || !name.bytes().all(fits) {
                bail!("{name:?} is not a name for a volume: letters, digits, and after the first also _ . -");
            }
            name.to_owned()
        }
        None => format!("{}-restored-{}", info.name, OUTSIDE.word()),
    };
    if agent.docker.has_volume(&volume).await? {
        bail!(
            "there is a volume {volume} already; choose another name with --into, or if nobody needs it: \
             docker volume rm {volume}"
        );
    }
    let volumes = vec![format!("{volume}:{RESTORE}:nocopy")];
    let helper = agent.helper(&info.image_id, volumes, Tuning::default()).await?;
    // Somebody else may have made it since: what was not seen empty is never removed.
    let seen = look_empty(&*helper.place, &volume).await;
    let ours = seen.is_ok();
    let unpacked = match seen {
        Ok(()) => {
            async {
                room::disk(&*helper.place, RESTORE, manifest).await?;
                unpack(repository, manifest, &helper, RESTORE).await
            }
            .await
        }
        Err(error) => Err(error),
    };
    helper.remove().await;
    match unpacked {
        Ok(millis) => Ok(format!(
            "{} files compared, {:.1} s; they are in the new volume {volume}, to be mounted at {}: write it into the \
             configuration, then: appliance accessory reboot {}",
            files(manifest),
            millis as f64 / 1000.0,
            manifest.subject.unit,
            subject.accessory
        )),
        Err(error) if ours => match agent.docker.remove_volume(&volume).await {
            Ok(_) => Err(error.context("a new volume was filled and is removed; nothing else was changed")),
            Err(left) => Err(error.context(format!(
                "the new volume {volume} is half filled and cannot be removed ({left}); nothing else was changed"
            ))),
        },
        Err(error) => Err(error.context("nothing was changed")),
    }
}

/// That nothing lies in what is mounted at [`RESTORE`].
async fn look_empty(place: &dyn Place, volume: &str) -> anyhow::Result<()> {
    let found = output(place, &["ls", "-A", RESTORE])
        .await
        .with_context(|| format!("cannot look into the volume {volume}, which is left as it is"))?;
    if !found.is_empty() {
        bail!("there is a volume {volume} already, and it is not empty");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::pretended::Pretended;
    use super::*;

    #[tokio::test]
    async fn a_servers_own_files_are_not_taken_for_a_backup() {
        let mounted = [Mounted {
            target: "/data".to_owned(),
        }];
        let holding = |names: &[&str]| {
            let paths: Vec<String> = names.iter().map(|name| format!("/data/{name}")).collect();
            let files: Vec<(&str, &str)> = paths.iter().map(|path| (path.as_str(), "")).collect();
            // The directory itself is one.
            Pretended::new(
                |_, words| (words == ["test", "-d", "/data"]).then(String::new),
                &files,
            )
        };
        for (names, said) in [
            (&["ibdata1", "mysql"][..], "MariaDB"),
            (&["WiredTiger"], "MongoDB"),
            (&["metadata/default.sql", "store"], "ClickHouse"),
            (&["nodes/0/node.lock"], "Elasticsearch"),
            (&["PG_VERSION"], "kind: postgres"),
        ] {
            let error = directories(&holding(names), &mounted).await.expect_err("refused");
            assert!(error.to_string().contains(said), "{error:#}");
        }
        let plain = directories(&holding(&["metadata", "store", "photo.jpg"]), &mounted).await;
        assert_eq!(plain.expect("files"), ["/data"]);
    }

    #[tokio::test]
    async fn only_a_volume_that_was_seen_empty_is_taken_for_ours() {
        let holding = |content: &'static str| Pretended::new(move |_, _| Some(content.to_owned()), &[]);
        assert!(look_empty(&holding(""), "v").await.is_ok());
        assert!(look_empty(&holding("file\n"), "v").await.is_err());
        let unseen = holding("");
        unseen.fail_at(0);
        let error = look_empty(&unseen, "v").await.expect_err("nobody could look");
        assert!(error.to_string().contains("left as it is"), "{error:#}");
    }
}
