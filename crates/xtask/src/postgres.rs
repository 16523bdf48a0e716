//! Every version of PostgreSQL that backups are tested on, beside one another.
//!
//! A Debian has one. The programs of another come out of that one's image, with the libraries that they were built for,
//! and are told to look for these where they now lie; PostgreSQL finds the rest of its files from where its program is.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use appliance_sandbox::{Distro, Image, Sandbox};

use crate::prerequisites::{as_root, install, run};
use crate::say;

/// Versions, and the Debian that has each.
const VERSIONS: [(u32, Distro); 2] = [(15, Distro::Debian12), (17, Distro::Debian13)];
/// Where packages put them, and where this puts them.
const PLACES: [&str; 2] = ["/usr/lib/postgresql", HERE];
const HERE: &str = "/usr/local/lib/postgresql";
/// What belongs to programs found in [`HERE`].
const SHARED: &str = "/usr/local/share/postgresql";

/// Installs the versions that are not there.
///
/// # Errors
/// When an image cannot be built or its files not be taken out of it.
pub(crate) async fn ensure(sandbox: &Sandbox) -> anyhow::Result<()> {
    for (version, distro) in VERSIONS {
        let program = format!("{version}/bin/postgres");
        if PLACES
            .iter()
            .any(|place| Path::new(place).join(&program).is_file())
        {
            continue;
        }
        let step = say::step(format!("installing PostgreSQL {version} beside this system's"));
        install(&[("patchelf", "patchelf")])?;
        let image = sandbox.ensure(&Image::Postgres(distro), &say::detail).await?;
        let container = Stopped::of(image.as_str())?;
        take(&container, version)?;
        step.done("");
    }
    Ok(())
}

/// A container that was never started, to take files from.
struct Stopped(String);

impl Stopped {
    fn of(image: &str) -> anyhow::Result<Self> {
        let made = Command::new("docker").args(["create", image]).output()?;
        if !made.status.success() {
            bail!(
                "docker create {image}: {}",
                String::from_utf8_lossy(&made.stderr).trim()
            );
        }
        Ok(Self(String::from_utf8_lossy(&made.stdout).trim().to_owned()))
    }

    fn copy(&self, from: &str, to: &Path) -> anyhow::Result<()> {
        run(as_root("docker")
            .args(["cp", "--quiet", &format!("{}:{from}", self.0)])
            .arg(to))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _gone = Command::new("docker")
            .args(["rm", &self.0])
            .stdout(Stdio::null())
            .status();
    }
}

fn take(container: &Stopped, version: u32) -> anyhow::Result<()> {
    let last = PathBuf::from(HERE).join(version.to_string());
    let first = PathBuf::from(HERE).join(format!(".{version}"));
    let shared = PathBuf::from(SHARED).join(version.to_string());
    run(as_root("rm").arg("-rf").args([&first, &shared]))?;
    run(as_root("mkdir").arg("-p").args([HERE, SHARED]))?;
    container.copy(&format!("/usr/lib/postgresql/{version}"), &first)?;
    container.copy(&format!("/usr/share/postgresql/{version}"), &shared)?;
    let libraries = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    container.copy(&libraries, &first.join("libraries"))?;
    let libraries = last.join("libraries");
    for program in fs_err::read_dir(first.join("bin"))? {
        let program = program?.path();
        let asked = Command::new("patchelf")
            .arg("--print-interpreter")
            .arg(&program)
            .output()?;
        let loader = PathBuf::from(String::from_utf8_lossy(&asked.stdout).trim());
        let loader = loader
            .file_name()
            .with_context(|| format!("{} has no loader", program.display()))?;
        run(as_root("patchelf")
            .arg("--set-interpreter")
            .arg(libraries.join(loader))
            .args(["--force-rpath", "--set-rpath"])
            .arg(&libraries)
            .arg(&program))?;
    }
    // Only now it is there.
    run(as_root("mv").args([&first, &last]))
}
