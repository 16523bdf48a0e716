//! Running cargo, and the binary it builds.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use crate::prerequisites::run;
use crate::say;

/// The workspace's directory.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    // crates/xtask is two levels down.
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// The cargo that runs us, in the workspace's directory.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    command
}

/// Builds the binary; returns a copy without debug information, so that copying it into hosts is quick.
///
/// # Errors
/// If it does not compile.
pub(crate) fn binary(release: bool) -> anyhow::Result<PathBuf> {
    let step = say::step(if release {
        "building the release binary"
    } else {
        "building the binary"
    });
    let mut command = cargo(&[
        "build",
        "--package",
        "appliance",
        "--message-format=json-render-diagnostics",
    ]);
    if release {
        command.arg("--release");
    }
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("the binary does not compile");
    }
    let built = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "appliance")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo did not say where the binary is")?;
    let stripped = built.with_file_name("appliance-stripped");
    run(Command::new("strip").arg("-o").arg(&stripped).arg(&built))?;
    #[allow(clippy::cast_precision_loss)]
    let size = fs_err::metadata(&stripped)?.len() as f64 / f64::from(1 << 20);
    step.done(&format!("{size:.1} MiB stripped"));
    Ok(stripped)
}
