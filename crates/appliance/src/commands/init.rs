//! `appliance init`: the files a new app needs, the same that Kamal reads.

use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;

use crate::failure::{Kind, failure};
use crate::globals::Globals;
use crate::ui;

/// Write config/deploy.yml and .kamal/secrets for a new app
#[derive(Debug, clap::Args)]
pub struct InitArgs {
    /// Name of the service: letters, digits, - and _ (default: this directory's name)
    #[arg(long)]
    service: Option<String>,
    /// Server to deploy to
    #[arg(long, default_value = "192.0.2.1")]
    server: String,
    /// Host name the app answers to
    #[arg(long, default_value = "app.example.com")]
    host: String,
    /// Kamal's stub for Bundler, which a single binary has no use for
    #[arg(long, hide = true)]
    bundle: bool,
}

/// Writes the two files; files that exist are kept as they are.
///
/// # Errors
/// When the service name has characters Kamal refuses, or a file cannot be written.
pub fn run(args: &InitArgs, globals: &Globals) -> anyhow::Result<()> {
    let directory = globals.directory()?;
    let service = match &args.service {
        Some(service) => service.clone(),
        None => service_name(&directory),
    };
    if service.is_empty()
        || !service
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    {
        return Err(failure(
            Kind::Config,
            format!("{service:?} cannot be a service name: only letters, digits, - and _ are allowed"),
        )
        .hint("appliance init --service my-app")
        .into());
    }
    let deploy = DEPLOY
        .replace("{service}", &service)
        .replace("{server}", &args.server)
        .replace("{host}", &args.host);
    write_new(&directory.join(&globals.config_file), &deploy, 0o644)?;
    write_new(&directory.join(".kamal/secrets"), SECRETS, 0o600)?;
    if args.bundle {
        ui::note("--bundle: this is one binary, so there is no gem and no bin/kamal to add");
    }
    ui::note("next: edit the two files, build the image, then run `appliance push`");
    Ok(())
}

fn service_name(directory: &Path) -> String {
    directory
        .file_name()
        .map(|name| name.to_string_lossy().to_lowercase())
        .unwrap_or_default()
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '_' {
                c
            } else {
                '-'
            }
        })
        .collect::<String>()
        .trim_matches('-')
        .to_owned()
}

fn write_new(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    if let Some(parent) = path.parent() {
        fs_err::create_dir_all(parent)?;
    }
    match std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
    {
        Ok(mut file) => {
            file.write_all(text.as_bytes())
                .with_context(|| format!("cannot write {}", path.display()))?;
            ui::note(&format!("created {}", path.display()));
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            ui::note(&format!("kept {} as it is", path.display()));
            Ok(())
        }
        Err(error) => Err(error).with_context(|| format!("cannot create {}", path.display())),
    }
}

const DEPLOY: &str = "\
# Read by `appliance` and by Kamal alike.
service: {service}
image: {service}

servers:
  web:
    - {server}

proxy:
  ssl: true
  host: {host}
  app_port: 80
  healthcheck:
    path: /up

# `appliance push` sends the image straight to the servers; only Kamal uses the registry.
registry:
  server: localhost:5555

builder:
  arch: amd64

ssh:
  user: deploy

env:
  clear:
    RUST_LOG: info
  # secret:
  #   - SECRET_KEY_BASE
";

const SECRETS: &str = "\
# Names listed under env/secret are looked up here. Do not put raw secrets in git:
# take them from the environment or from a password manager.
#
# SECRET_KEY_BASE=$SECRET_KEY_BASE
# SECRET_KEY_BASE=$(appliance secrets fetch --adapter 1password --account my-account SECRET_KEY_BASE)
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_name_becomes_a_service_name_kamal_accepts() {
        for (directory, expect) in [
            ("/srv/My App", "my-app"),
            ("/srv/shop.example", "shop-example"),
            ("/srv/a_b", "a_b"),
        ] {
            assert_eq!(service_name(Path::new(directory)), expect);
        }
    }

    #[test]
    fn an_existing_file_is_kept() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("config/deploy.yml");
        write_new(&path, "first", 0o644).expect("written");
        write_new(&path, "second", 0o644).expect("kept");
        assert_eq!(fs_err::read_to_string(&path).expect("read"), "first");
    }
}
