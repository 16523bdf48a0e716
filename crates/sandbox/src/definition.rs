//! The definitions in `images/`, compiled in.

use std::path::Path;

use aws_lc_rs::digest;

use crate::error::SandboxError;

/// One image definition: the files of its directory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Definition {
    /// The directory's name.
    pub(crate) name: &'static str,
    files: &'static [(&'static str, &'static str)],
}

/// Lists the files of one directory below `images/`.
macro_rules! definition {
    ($name:literal: $($file:literal)*) => {
        Definition {
            name: $name,
            files: &[$(($file, include_str!(concat!("../../../images/", $name, "/", $file)))),*],
        }
    };
}

/// The script that turns a definition into a root file system.
pub(crate) const ROOTFS_SH: &str = include_str!("../../../images/rootfs.sh");

pub(crate) const HOST: Definition = definition!("host":
    "packages" "downloads" "customize.sh" "instructions"
    "files/etc/systemd/system/ssh-host-keys.service"
);
pub(crate) const PYTHON: Definition = definition!("python": "packages" "variant");
pub(crate) const DEMO: Definition = definition!("demo": "app.py" "instructions");
pub(crate) const POSTGRES: Definition = definition!("postgres":
    "packages" "essential.sh" "customize.sh" "instructions"
    "files/usr/local/bin/docker-entrypoint.sh"
);
pub(crate) const DATA: Definition = definition!("data": "packages" "instructions");
pub(crate) const OUTSIDE: Definition = definition!("outside": "probe.py" "instructions");
pub(crate) const KAMAL_PROXY: Definition = definition!("kamal-proxy": "kamal-proxy.py" "instructions");

impl Definition {
    /// One file's text; empty if the definition has none of that name.
    pub(crate) fn text(&self, file: &str) -> &'static str {
        self.files
            .iter()
            .find(|(name, _)| *name == file)
            .map_or("", |(_, text)| text)
    }

    /// Its Dockerfile instructions (`CMD`, `ENV`, …), one a line.
    pub(crate) fn instructions(&self) -> Vec<String> {
        self.text("instructions").lines().map(str::to_owned).collect()
    }

    /// Writes all files below `directory`; scripts become executable.
    pub(crate) fn write(&self, directory: &Path) -> Result<(), SandboxError> {
        use std::os::unix::fs::PermissionsExt as _;

        for (name, text) in self.files {
            let path = directory.join(name);
            let doing = || format!("write {}", path.display());
            if let Some(parent) = path.parent() {
                fs_err::create_dir_all(parent).map_err(SandboxError::io(doing()))?;
            }
            fs_err::write(&path, text).map_err(SandboxError::io(doing()))?;
            let mode = if text.starts_with("#!") { 0o755 } else { 0o644 };
            fs_err::set_permissions(&path, std::fs::Permissions::from_mode(mode))
                .map_err(SandboxError::io(doing()))?;
        }
        Ok(())
    }

    /// Feeds every file into a digest.
    pub(crate) fn digest(&self, context: &mut digest::Context) {
        for (name, text) in self.files {
            for part in [self.name, name, text] {
                context.update(&(part.len() as u64).to_be_bytes());
                context.update(part.as_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file added to `images/` and forgotten here would be missing from the installed binary.
    #[test]
    fn every_file_of_the_repository_is_compiled_in() {
        let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images");
        for definition in [HOST, PYTHON, DEMO, OUTSIDE, POSTGRES, KAMAL_PROXY, DATA] {
            let root = images.join(definition.name);
            let mut found = Vec::new();
            walk(&root, &root, &mut found);
            found.sort();
            let mut known: Vec<_> = definition
                .files
                .iter()
                .map(|(name, _)| (*name).to_owned())
                .collect();
            known.sort();
            assert_eq!(found, known, "images/{}", definition.name);
        }
    }

    fn walk(root: &Path, directory: &Path, found: &mut Vec<String>) {
        for entry in fs_err::read_dir(directory).expect("readable") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                walk(root, &path, found);
            } else {
                found.push(path.strip_prefix(root).expect("below it").display().to_string());
            }
        }
    }
}
