//! Which of the backups in a place are meant.

use anyhow::{Context as _, bail};
use appliance_backup::manifest::Manifest;
use appliance_backup::names::{BackupId, Subject};
use appliance_backup::repository::{Catalogue, Found, Repository};
use appliance_backup::sign::PublicKey;
use jiff::Timestamp;

use super::{Record, standing};

/// Said where nothing fits.
const NONE: &str =
    "there is no such backup; those that do not look right are used only by their id: appliance backup list";

/// The backup that is meant: by id, by time, or the newest that looks right or was `accepted`.
pub fn choose(
    catalogue: &Catalogue,
    backup: Option<&str>,
    at: Option<Timestamp>,
    accepted: Option<Timestamp>,
) -> anyhow::Result<Found> {
    let found = match backup {
        Some(id) => {
            let id = BackupId::parse(id)?;
            if let Some(bad) = catalogue.unusable.iter().find(|one| one.id == id) {
                bail!("the backup {id} cannot be used: {}", bad.why);
            }
            catalogue.backups.iter().find(|found| found.manifest.id == id)
        }
        None => catalogue
            .backups
            .iter()
            .rev()
            .filter(|found| at.is_none_or(|at| found.manifest.snapshot_at <= at))
            .find(|found| standing::trusted(&found.manifest, accepted)),
    };
    found.cloned().context(NONE)
}

/// Leaves those backups that the host with this key made.
pub(super) fn only_of(catalogue: &mut Catalogue, key: &str, subject: &Subject) -> anyhow::Result<()> {
    let by = PublicKey::try_from(key.to_ascii_lowercase()).map_err(anyhow::Error::msg)?;
    catalogue.backups.retain(|found| found.signer == by);
    if catalogue.backups.is_empty() {
        bail!("there is no backup of {subject} that is signed by {by}; next: appliance backup list");
    }
    Ok(())
}

/// Whether the key at hand opens a backup, which its manifest tells before a byte is fetched.
pub(super) fn opens(repository: &Repository, manifest: &Manifest) -> anyhow::Result<()> {
    let ours = repository.keys.identity.to_public().to_string();
    if manifest.recipients.contains(&ours) {
        return Ok(());
    }
    bail!(
        "the backup {} was made on another host and is sealed for {}, of which {ours} is none; with the recovery key: \
         appliance restore --recovery-key FILE",
        manifest.id,
        manifest.recipients.join(" and ")
    )
}

/// That there is one to look at: of a database whose backups are all damaged, silence would be praise.
fn spoiled(subject: &Subject, catalogue: &Catalogue) -> anyhow::Result<()> {
    let committed = catalogue
        .unusable
        .iter()
        .rev()
        .find(|bad| !bad.uncommitted && !bad.foreign);
    match committed {
        Some(bad) if catalogue.backups.is_empty() => bail!(
            "no backup of {subject} can be used; the newest, {}: {}",
            bad.id,
            bad.why
        ),
        _ => Ok(()),
    }
}

/// What is looked at: one backup by its id, wherever it lies, or the newest of each subject.
#[derive(Debug, Default)]
pub(super) struct Meant {
    /// With their subjects.
    pub chosen: Vec<(Subject, Manifest)>,
    /// Subjects of which no backup looks right.
    pub left_out: Vec<Subject>,
}

/// Finds what is looked at; what `record` knows as this host's own is taken for that, whoever its manifest names.
///
/// # Errors
/// When the one that is asked for is not there, is damaged or sealed for others; without one, when all of a subject are
/// damaged.
pub(super) fn meant(
    repository: &Repository,
    subjects: Vec<(Subject, Catalogue)>,
    backup: Option<&str>,
    record: &Record,
) -> anyhow::Result<Meant> {
    let mut meant = Meant::default();
    let subjects = subjects.into_iter().map(|(subject, mut catalogue)| {
        record.own.recall(repository, &mut catalogue);
        (subject, catalogue)
    });
    if let Some(text) = backup {
        let id = BackupId::parse(text)?;
        let is_here = |catalogue: &Catalogue| {
            catalogue.backups.iter().any(|found| found.manifest.id == id)
                || catalogue.unusable.iter().any(|bad| bad.id == id)
        };
        let mut found = subjects.filter(|(_, catalogue)| is_here(catalogue));
        let (subject, catalogue) = found.next().context(NONE)?;
        let manifest = choose(&catalogue, backup, None, record.accepted)?.manifest;
        opens(repository, &manifest)?;
        meant.chosen.push((subject, manifest));
        return Ok(meant);
    }
    for (subject, mut catalogue) in subjects {
        // Those that only the key of a former host opens are nobody's newest.
        (catalogue.backups).retain(|found| opens(repository, &found.manifest).is_ok());
        spoiled(&subject, &catalogue)?;
        match choose(&catalogue, None, None, record.accepted) {
            Ok(found) => meant.chosen.push((subject, found.manifest)),
            Err(_) if catalogue.backups.is_empty() => {}
            Err(_) => meant.left_out.push(subject),
        }
    }
    Ok(meant)
}
