//! dns-01 by a command.

use std::process::Stdio;

use tokio::process::Command;

use crate::error::AcmeError;
use crate::name::Name;
use crate::settings::DnsCommand;

/// Most bytes of the command's words that are told.
const WORDS: usize = 400;

/// Runs the command for `name`; see [`DnsCommand`].
pub(crate) async fn run(
    command: &DnsCommand,
    action: &'static str,
    name: &Name,
    value: &str,
) -> Result<(), AcmeError> {
    let program = command.command.first().cloned().unwrap_or_default();
    let failed = |why: String| AcmeError::Dns {
        name: name.clone(),
        program: program.clone(),
        action,
        why,
    };
    let output = Command::new(&program)
        .args(command.command.iter().skip(1))
        .arg(action)
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("ACME_ACTION", action)
        .env("ACME_HOST", name.host())
        .env("ACME_RECORD", format!("_acme-challenge.{}", name.host()))
        .env("ACME_VALUE", value)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(command.timeout, output)
        .await
        .map_err(|_| failed(format!("it did not end within {} s", command.timeout.as_secs())))?
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let words: String = words.trim().chars().take(WORDS).collect();
        return Err(failed(format!("{} {words}", output.status)));
    }
    if action == "present" {
        tokio::time::sleep(command.propagation).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_command_gets_the_record_and_its_failure_is_told() {
        let home = tempfile::tempdir().unwrap();
        let script = home.path().join("dns");
        let seen = home.path().join("seen");
        fs_err::write(
            &script,
            format!(
                "#!/bin/sh\n[ \"$2\" = cleanup ] && {{ echo no such zone >&2; exit 3; }}\n\
                 echo \"$1 $2 $ACME_ACTION $ACME_HOST $ACME_RECORD $ACME_VALUE\" > {}\n",
                seen.display()
            ),
        )
        .unwrap();
        fs_err::set_permissions(&script, std::fs::Permissions::from_mode(0o700)).unwrap();
        let command = DnsCommand {
            command: vec![script.display().to_string(), "zone".into()],
            timeout: Duration::from_secs(20),
            propagation: Duration::ZERO,
        };
        let name = Name::parse("*.shop.io").unwrap();
        run(&command, "present", &name, "v; rm -rf").await.unwrap();
        assert_eq!(
            fs_err::read_to_string(seen).unwrap(),
            "zone present present shop.io _acme-challenge.shop.io v; rm -rf\n"
        );
        let error = run(&command, "cleanup", &name, "v")
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("no such zone") && error.contains("3"), "{error}");
    }
}
