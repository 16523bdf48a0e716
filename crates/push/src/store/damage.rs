//! What a disk has damaged is found before a container is made of it, and thrown away so that the next push brings it again.

use std::path::Path;

use aws_lc_rs::digest;

use super::{Manifest, Store, StoreError};
use crate::change::Digest;

impl Store {
    /// Throws away what of an image is not as its manifest says, and returns the digests of that and of what is not here.
    ///
    /// Sizes are compared; `thorough` reads the whole content and compares its digest too.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn drop_damaged(&self, manifest: &Manifest, thorough: bool) -> Result<Vec<Digest>, StoreError> {
        let mut damaged = Vec::new();
        for named in manifest.config.iter().chain(&manifest.layers) {
            // Such a layer need not be here.
            let elsewhere = !named.urls.is_empty();
            let found = self.blob_size(&named.digest)?;
            let good = match found {
                None => elsewhere,
                Some(size) => size == named.size && (!thorough || self.is_genuine(&named.digest)?),
            };
            if !good {
                if found.is_some() {
                    self.forget(&named.digest, &self.blob_path(&named.digest))?;
                }
                damaged.push(named.digest.clone());
            }
        }
        Ok(damaged)
    }

    /// Throws a blob away whose bytes are not those of its digest; whether it was one.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn drop_if_damaged(&self, digest: &Digest) -> Result<bool, StoreError> {
        if self.blob_size(digest)?.is_none() || self.is_genuine(digest)? {
            return Ok(false);
        }
        self.forget(digest, &self.blob_path(digest))?;
        Ok(true)
    }

    fn is_genuine(&self, wanted: &Digest) -> Result<bool, StoreError> {
        let Some(mut blob) = self.blob(wanted)? else {
            return Ok(false);
        };
        let path = self.blob_path(wanted);
        let mut hash = Hashing(digest::Context::new(&digest::SHA256));
        match std::io::copy(&mut blob.file, &mut hash) {
            Ok(_) => Ok(Digest::from_hash(hash.0.finish().as_ref()) == *wanted),
            // A sector that cannot be read is damage too.
            Err(error) if error.raw_os_error() == Some(nix::libc::EIO) => Ok(false),
            Err(error) => Err(StoreError::io("read", &path)(error)),
        }
    }

    /// Removes a blob and everything that is known about it.
    pub(super) fn forget(&self, blob: &Digest, path: &Path) -> Result<(), StoreError> {
        let root = &self.inner.root;
        super::gc::remove(path)?;
        super::gc::remove(&root.join("chunks").join(blob.hex()))?;
        let seen = root.join("indexed").join(blob.hex());
        let diff_id = self.read_link(seen.clone())?;
        if let Some(diff_id) = diff_id.and_then(|text| Digest::parse(&text).ok()) {
            let holders = root.join("diffs").join(diff_id.hex());
            super::gc::remove(&holders.join(blob.hex()))?;
            // Fails while another blob holds the same layer, as it should.
            let _others_hold_it = std::fs::remove_dir(&holders);
            super::gc::remove(&seen)?;
        }
        Ok(())
    }
}

struct Hashing(digest::Context);

impl std::io::Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
