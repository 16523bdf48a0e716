//! More than a gigabyte of everything, into the bucket and back into a server that knows none of it.

use std::process::Command;

use anyhow::{Context as _, bail};

use super::{Serving, Stage, goal};
use crate::say;

/// Databases and the statements that fill them. The first has every type, large objects, partitions, grants, extensions.
const DATABASES: [(&str, &str, &[&str]); 3] = [
    (
        "everything",
        "CREATE DATABASE everything OWNER \"odd role\"; ALTER DATABASE everything SET work_mem TO '7MB'; GRANT CONNECT ON DATABASE everything TO reader;",
        &[
            include_str!("../../../backup/tests/it/all_types.sql"),
            include_str!("large.sql"),
        ],
    ),
    (
        "latin",
        "CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0;",
        &[
            "CREATE TABLE names AS SELECT n, 'Gr' || chr(252) || 'n' || n AS name FROM generate_series(1, 10000) AS n;",
        ],
    ),
    ("empty", "CREATE DATABASE empty;", &[]),
];
/// Roles that the databases need.
const ROLES: &str = "CREATE ROLE reader; CREATE ROLE \"odd role\" LOGIN PASSWORD 'x' CONNECTION LIMIT 7; GRANT reader TO \"odd role\";";

/// Backs each database up, restores it into a fresh server, and compares plain dumps and globals.
pub(super) fn run(stage: &Stage, scale: f64) -> anyhow::Result<()> {
    let step = say::step("filling databases of every type");
    stage.psql("postgres", ROLES)?;
    for (name, create, fill) in DATABASES {
        stage.psql("postgres", create)?;
        for statements in fill {
            stage.psql(name, &statements.replace(":scale", &scale.to_string()))?;
        }
    }
    step.done("");
    let fresh = Serving::start(Command::new(&stage.pipeline).arg("cluster"))?;
    let (home, there) = (stage.cluster.said.as_str(), fresh.said.as_str());
    let step = say::step("there and back");
    let (mut plain, mut stored, mut memory) = (0, 0.0, 0.0_f64);
    for (name, ..) in DATABASES {
        let figure = stage.pipeline(&["backup", home, &stage.s3.said, name])?;
        let back = stage.pipeline(&["restore", there, &stage.s3.said, name])?;
        (stored, memory) = (stored + figure.stored, memory.max(figure.memory).max(back.memory));
        let before = stage.everything(home, name)?;
        if stage.everything(there, name)? != before {
            bail!("{name} came back as something else");
        }
        plain += before.1;
    }
    if roles(stage, home)? != roles(stage, there)? {
        bail!("roles, passwords or memberships came back as something else");
    }
    step.done("");
    say::line(&format!(
        "round trip: {} databases, plain dumps of {:.0} MB ({stored:.0} MB stored) and roles equal those of before, in a fresh server",
        DATABASES.len(),
        plain as f64 / 1e6
    ));
    goal(("G3 growth, MiB", super::GROWTH), memory);
    Ok(())
}

/// What a server has beside its databases, without the random word of newer versions.
fn roles(stage: &Stage, socket: &str) -> anyhow::Result<Vec<String>> {
    let output = stage
        .command(&stage.programs("pg_dumpall")?)
        .env("PGHOST", socket)
        .arg("--globals-only")
        .output()
        .context("pg_dumpall")?;
    if !output.status.success() {
        bail!("pg_dumpall failed");
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let kept = text.lines().filter(|line| !line.contains("restrict "));
    // A salt of its own is in every stored password, so it is the very same word that must come back.
    Ok(kept.map(str::to_owned).collect())
}
