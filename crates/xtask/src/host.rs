//! `cargo xtask host`: bare hosts to work against by hand.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use appliance_sandbox::{Distro, HostOptions, Image, Name, Sandbox};
use clap::{Args, Subcommand};

use crate::{prerequisites, say};

/// The label on hosts made here.
const LABEL: &str = "appliance.sandbox.by";
const BY: &str = "xtask";

#[derive(Debug, Subcommand)]
pub(crate) enum HostTask {
    /// Start a bare host, and print its addresses
    Up(UpArgs),
    /// Remove a host
    Down {
        /// Its name
        name: String,
    },
    /// Show the hosts
    List,
    /// Try ports of a host from another container of its network
    Probe {
        /// The host's name
        name: String,
        /// Ports or ranges of ports
        #[arg(default_values = ["1-1024"])]
        ports: Vec<String>,
    },
    /// Print what `docker create` needs to start a host on this machine, as settings for `vagrant up`
    Arguments {
        /// debian12 or debian13
        #[arg(default_value = "debian12", value_parser = |text: &str| Distro::parse(text).ok_or("debian12 or debian13"))]
        distro: Distro,
    },
    /// Build images, and print their names
    Images {
        /// PostgreSQL too
        #[arg(long)]
        postgres: bool,
        /// Redis, MariaDB and SQLite too
        #[arg(long)]
        data: bool,
        /// Versions of the demo app
        #[arg(long)]
        demo: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// Its name
    name: String,
    /// debian12 or debian13
    #[arg(long, default_value = "debian12", value_parser = |text: &str| Distro::parse(text).ok_or("debian12 or debian13"))]
    distro: Distro,
    /// A public key that may log in as root
    #[arg(long = "key")]
    keys: Vec<String>,
}

/// Connects to Docker as this user's environment says.
pub(crate) async fn connect() -> anyhow::Result<Arc<Sandbox>> {
    let docker_host = std::env::var("DOCKER_HOST").ok();
    let sandbox = Sandbox::connect(docker_host.as_deref(), &std::env::temp_dir()).await?;
    Ok(Arc::new(sandbox))
}

pub(crate) async fn run(task: &HostTask) -> anyhow::Result<()> {
    prerequisites::ensure()?;
    let sandbox = connect().await?;
    match task {
        HostTask::Up(args) => {
            let mut options = HostOptions::new(Name::parse(&args.name)?, args.distro);
            options.authorized_keys.clone_from(&args.keys);
            options.labels.insert(LABEL.to_owned(), BY.to_owned());
            let step = say::step(format!("starting host {}", args.name));
            let host = sandbox.start(&options, &say::note).await?;
            host.wait_booted().await?;
            let (v4, v6) = host.addresses().await?;
            step.done("");
            say::line(&format!("{v4}\n{v6}"));
        }
        HostTask::Down { name } => sandbox.host(&Name::parse(name)?).await?.remove().await?,
        HostTask::List => {
            for host in sandbox.list(LABEL, None).await? {
                say::line(&format!(
                    "{}\t{}",
                    host.name,
                    if host.running { "running" } else { "stopped" }
                ));
            }
        }
        HostTask::Probe { name, ports } => {
            let host = sandbox.host(&Name::parse(name)?).await?;
            let (v4, v6) = host.addresses().await?;
            let prober = Name::parse(&format!("probe-{}", std::process::id()))?;
            let outside = sandbox
                .outside(&prober, Some(host.network()), &BTreeMap::new(), &say::note)
                .await?;
            let ports: Vec<_> = ports.iter().map(String::as_str).collect();
            for address in [v4.into(), v6.into()] {
                let found = outside.probe(address, &ports, Duration::from_secs(2)).await?;
                let mut counts = BTreeMap::new();
                for (port, state) in found {
                    counts
                        .entry(format!("{state:?}"))
                        .or_insert_with(Vec::new)
                        .push(port.to_string());
                }
                for (state, ports) in counts {
                    let shown = if ports.len() > 20 {
                        format!("{} ports", ports.len())
                    } else {
                        ports.join(" ")
                    };
                    say::line(&format!("{address}\t{state}\t{shown}"));
                }
            }
            outside.remove().await?;
        }
        HostTask::Arguments { distro } => {
            let image = sandbox.ensure(&Image::Host(*distro), &say::note).await?;
            let machine = sandbox.machine();
            say::line(&format!(
                "export APPLIANCE_IMAGE_{}={image}",
                distro.name().to_uppercase()
            ));
            say::line(&format!(
                "export APPLIANCE_DOCKER_ARGS=\"{}\"",
                machine.arguments().join(" ")
            ));
            say::line(&format!(
                "export APPLIANCE_DOCKER_INIT=\"{}\"",
                machine.init_line(*distro)
            ));
        }
        HostTask::Images { demo, postgres, data } => {
            let mut images: Vec<_> = Distro::ALL.into_iter().map(Image::Host).collect();
            images.push(Image::Outside);
            if *postgres {
                images.extend(Distro::ALL.map(Image::Postgres));
            }
            if *data {
                images.push(Image::Data);
            }
            images.extend(demo.iter().map(|version| Image::Demo {
                version: version.clone(),
            }));
            for image in images {
                let reference = sandbox
                    .ensure(&image, &say::note)
                    .await
                    .with_context(|| format!("image {image}"))?;
                say::line(reference.as_str());
            }
        }
    }
    Ok(())
}
