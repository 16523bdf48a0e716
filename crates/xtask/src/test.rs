//! `cargo xtask test`: everything a change must pass.

use std::time::Instant;

use anyhow::Context as _;
use appliance_sandbox::{Distro, Image};
use appliance_tests::Bench;
use clap::Args;

use crate::cargo::{binary, cargo};
use crate::prerequisites::run;
use crate::{host, postgres, prerequisites, say};

/// Hosts that run at the same time in the integration tests.
///
/// Each boots systemd and an engine; two processors carry this many without tests running out of time.
const THREADS: &str = "3";

#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// Run only tests whose names contain this, and neither formatter nor linter
    filter: Option<String>,
    /// Run only formatter, linter and the tests that need no host
    #[arg(long, conflicts_with = "filter")]
    quick: bool,
}

/// Runs the checks in order of price, and stops at the first that fails.
///
/// # Errors
/// What failed.
pub(crate) async fn test(args: &TestArgs) -> anyhow::Result<()> {
    let begun = Instant::now();
    prerequisites::ensure()?;
    postgres::ensure(&*host::connect().await?).await?;
    if args.filter.is_none() {
        step("formatting", &["fmt", "--all", "--check"])?;
        step(
            "linting",
            &[
                "clippy",
                "--workspace",
                "--all-targets",
                "--quiet",
                "--",
                "--deny",
                "warnings",
            ],
        )?;
    }
    let mut unit = vec!["test", "--workspace", "--exclude", "appliance-tests", "--quiet"];
    unit.extend(args.filter.as_deref());
    step("tests of the crates", &unit)?;
    step(
        "tests of the harness",
        &["test", "--package", "appliance-tests", "--lib", "--quiet"],
    )?;
    if !args.quick {
        integration(args.filter.as_deref()).await?;
    }
    say::line(&format!("all passed in {} s", begun.elapsed().as_secs()));
    Ok(())
}

async fn integration(filter: Option<&str>) -> anyhow::Result<()> {
    let binary = binary(false)?;
    let images = say::step("building images");
    let sandbox = host::connect().await?;
    let mut wanted: Vec<_> = Distro::ALL
        .into_iter()
        .flat_map(|distro| [Image::Host(distro), Image::Postgres(distro)])
        .collect();
    wanted.extend([Image::Outside, Image::Data]);
    for image in wanted {
        sandbox
            .ensure(&image, &say::detail)
            .await
            .with_context(|| format!("image {image}"))?;
    }
    images.done("");

    let bench = Bench::connect().await?;
    bench.sweep().await?;
    let tests = say::step("tests on real hosts");
    let mut command = cargo(&["test", "--package", "appliance-tests", "--test", "it", "--"]);
    command
        .args(["--test-threads", THREADS])
        .args(filter)
        .env("APPLIANCE_BIN", &binary);
    let result = run(&mut command);
    bench.sweep().await?;
    result?;
    tests.done("");
    Ok(())
}

fn step(name: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let step = say::step(name);
    run(&mut cargo(arguments))?;
    step.done("");
    Ok(())
}
