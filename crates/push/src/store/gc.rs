//! Taking out what no release needs any more.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::manifests::names;
use super::{Manifest, Store, StoreError, Usage};
use crate::change::Digest;

/// What a collection keeps.
#[derive(Debug, Clone)]
pub struct GcOptions {
    /// Manifests of releases that may run again.
    pub roots: BTreeSet<Digest>,
    /// Whether manifests with a tag are kept as well.
    pub keep_tagged: bool,
    /// Anything used more recently stays, so that a push in progress loses nothing.
    pub min_age: Duration,
}

/// What a collection did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcReport {
    /// Blobs removed.
    pub removed: u64,
    /// Bytes freed.
    pub freed: u64,
    /// Blobs kept.
    pub kept: u64,
}

impl Store {
    /// Removes manifests that nothing keeps, then blobs that no kept manifest names.
    ///
    /// # Errors
    /// When the file system fails; whatever was removed until then was not needed.
    pub fn collect(&self, options: &GcOptions, now: SystemTime) -> Result<GcReport, StoreError> {
        let _alone = self
            .inner
            .collecting
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut kept = options.roots.clone();
        let mut links: Vec<(Digest, PathBuf)> = Vec::new();
        let repositories = self.inner.root.join("repositories");
        for repository in names(&repositories)? {
            let path = repositories.join(repository);
            for name in names(&path.join("manifests"))? {
                if let Ok(digest) = Digest::parse(&format!("sha256:{name}")) {
                    links.push((digest, path.join("manifests").join(name)));
                }
            }
            if options.keep_tagged {
                for tag in names(&path.join("tags"))? {
                    let target = self.read_link(path.join("tags").join(tag))?;
                    kept.extend(target.and_then(|target| Digest::parse(&target).ok()));
                }
            }
        }
        for (digest, link) in &links {
            if !self.older(link, now, options.min_age) {
                kept.insert(digest.clone());
            }
        }
        let kept = self.reachable(kept)?;
        for (digest, link) in &links {
            if !kept.contains(digest) {
                remove(link)?;
            }
        }
        for repository in names(&repositories)? {
            self.drop_dead_tags(&repositories.join(repository))?;
        }
        self.sweep(&kept, options.min_age, now)
    }

    /// How much the store holds.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let mut usage = Usage::default();
        for (_, path) in self.blobs()? {
            usage.blobs += 1;
            usage.bytes += std::fs::metadata(&path).map_or(0, |about| about.len());
        }
        for id in self.upload_ids()? {
            usage.uploads += 1;
            usage.upload_bytes += self.status(&id).map_or(0, |status| status.offset);
        }
        Ok(usage)
    }

    /// The manifests and everything they name, directly or through an index.
    fn reachable(&self, roots: BTreeSet<Digest>) -> Result<BTreeSet<Digest>, StoreError> {
        let mut found = BTreeSet::new();
        let mut waiting: Vec<Digest> = roots.into_iter().collect();
        while let Some(digest) = waiting.pop() {
            if !found.insert(digest.clone()) {
                continue;
            }
            // Blobs that are no manifests are named by their manifest below; absent ones name nothing.
            let Some(size) = self.blob_size(&digest)? else {
                continue;
            };
            if size > self.inner.limits.max_manifest {
                continue;
            }
            let Ok(manifest) = Manifest::parse(&self.read_blob(&digest, self.inner.limits.max_manifest)?)
            else {
                continue;
            };
            let named = manifest.config.into_iter().chain(manifest.layers);
            found.extend(named.map(|named| named.digest));
            waiting.extend(manifest.manifests.into_iter().map(|child| child.digest));
        }
        Ok(found)
    }

    fn drop_dead_tags(&self, repository: &std::path::Path) -> Result<(), StoreError> {
        for tag in names(&repository.join("tags"))? {
            let link = repository.join("tags").join(tag);
            let target = self
                .read_link(link.clone())?
                .and_then(|target| Digest::parse(&target).ok());
            let alive = target.is_some_and(|target| repository.join("manifests").join(target.hex()).exists());
            if !alive {
                remove(&link)?;
            }
        }
        Ok(())
    }

    fn sweep(
        &self,
        kept: &BTreeSet<Digest>,
        min_age: Duration,
        now: SystemTime,
    ) -> Result<GcReport, StoreError> {
        let mut report = GcReport::default();
        for (digest, path) in self.blobs()? {
            if kept.contains(&digest) || !self.older(&path, now, min_age) {
                report.kept += 1;
                continue;
            }
            let size = std::fs::metadata(&path).map_or(0, |about| about.len());
            self.forget(&digest, &path)?;
            report.removed += 1;
            report.freed += size;
        }
        Ok(report)
    }

    fn blobs(&self) -> Result<Vec<(Digest, PathBuf)>, StoreError> {
        let root = self.inner.root.join("blobs/sha256");
        let mut found = Vec::new();
        for prefix in names(&root)? {
            for name in names(&root.join(&prefix))? {
                if let Ok(digest) = Digest::parse(&format!("sha256:{name}")) {
                    found.push((digest, root.join(&prefix).join(name)));
                }
            }
        }
        Ok(found)
    }

    fn older(&self, path: &std::path::Path, now: SystemTime, age: Duration) -> bool {
        let modified = std::fs::metadata(path).and_then(|about| about.modified());
        // A time in the future means that the clock was set back; then it is not known to be old.
        modified.is_ok_and(|modified| now.duration_since(modified).is_ok_and(|found| found >= age))
    }
}

pub(super) fn remove(path: &std::path::Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(StoreError::io("remove", path)),
    }
}
