//! `appliance firewall`: what is open, for whom, and who opened it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use appliance_bootstrap::Local;
use appliance_bootstrap::firewall::explain::{self, Packet, Target};
use appliance_bootstrap::firewall::exposure::Report;
use appliance_bootstrap::firewall::opening::{DATA_STORE_PORTS, Ports, Protocol};
use appliance_bootstrap::firewall::{self, bans};
use appliance_bootstrap::host::Host as _;
use appliance_push::change::{Expectation, FirewallChange, NetworkName, Nonce, PortsName, Verb};

use crate::agent::random;
use crate::commands::status::links;
use crate::developer::change::{Subject, conclude, submit};
use crate::developer::link::Link;
use crate::developer::reach::{ReachArgs, SshSettings};
use crate::failure::{Kind, failure};
use crate::globals::Globals;
use crate::ui;
use crate::wire::{self, End};

/// See and change what is reachable
#[derive(Debug, clap::Subcommand)]
pub enum FirewallCommand {
    /// Show what is open, for whom, and who opened it
    List(ReadArgs),
    /// Open ports, as published on the host
    ///
    /// Holds for two minutes unless confirmed; from elsewhere this command confirms over a new connection by itself.
    Allow(AllowArgs),
    /// Close again what `allow` opened
    Deny(DenyArgs),
    /// Show what happens to one connection, rule by rule
    Explain(ExplainArgs),
    /// Show who listens, who can reach them, and by which rule
    Audit(AuditArgs),
    /// Keep an armed change, over a connection made after it
    Confirm {
        #[command(flatten)]
        reach: ReachArgs,
        /// As `allow` or `deny` told
        nonce: String,
    },
    /// Keep an address out for a while
    Ban {
        #[command(flatten)]
        reach: ReachArgs,
        /// Which
        address: IpAddr,
        /// For how many hours
        #[arg(long, default_value_t = 24)]
        hours: u32,
    },
    /// Let an address in again
    Unban {
        #[command(flatten)]
        reach: ReachArgs,
        /// Which
        address: IpAddr,
    },
    /// Load the confirmed rules into the kernel (what the boot unit runs)
    Load,
    /// Take over what UFW was told, for containers too (what the unit that watches UFW runs)
    #[command(hide = true)]
    Follow,
    /// Show whether the kernel holds the confirmed rules
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Which host, and how to show it.
#[derive(Debug, clap::Args)]
pub struct ReadArgs {
    #[command(flatten)]
    reach: ReachArgs,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What to open.
#[derive(Debug, clap::Args)]
pub struct AllowArgs {
    #[command(flatten)]
    reach: ReachArgs,
    /// 8080, 5432/tcp, 6000-6010/udp
    ports: Ports,
    /// Only for this network or address; may be repeated
    #[arg(long, value_name = "NETWORK")]
    from: Vec<firewall::opening::Net>,
    /// What for
    #[arg(long, default_value = "")]
    comment: String,
    /// Yes, the port of a data store, for everyone
    #[arg(long)]
    i_mean_it: bool,
    /// Leave it armed, to be confirmed by somebody else
    #[arg(long)]
    no_confirm: bool,
}

/// What to close.
#[derive(Debug, clap::Args)]
pub struct DenyArgs {
    #[command(flatten)]
    reach: ReachArgs,
    /// As it was opened
    ports: Ports,
    /// Only the opening for this network
    #[arg(long, value_name = "NETWORK")]
    from: Vec<firewall::opening::Net>,
    /// Also end the connections that are open; without it they go on until either side ends them
    #[arg(long)]
    kill: bool,
    /// Leave it armed, to be confirmed by somebody else
    #[arg(long)]
    no_confirm: bool,
}

/// A connection to think about.
#[derive(Debug, clap::Args)]
pub struct ExplainArgs {
    #[command(flatten)]
    reach: ReachArgs,
    /// tcp or udp
    #[arg(value_parser = ["tcp", "udp"])]
    protocol: String,
    /// The port it is addressed to
    port: u16,
    /// Where it comes from
    #[arg(long, default_value = "203.0.113.1")]
    from: IpAddr,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What to look at.
#[derive(Debug, clap::Args)]
pub struct AuditArgs {
    #[command(flatten)]
    reach: ReachArgs,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Try the ports from this machine, and compare with the plan
    #[arg(long)]
    from_here: bool,
}

/// Runs a firewall command.
///
/// # Errors
/// When a host cannot be reached or refuses, or is not as planned.
pub async fn run(command: &FirewallCommand, globals: &Globals) -> anyhow::Result<()> {
    match command {
        FirewallCommand::List(args) => list(args, globals).await,
        FirewallCommand::Allow(args) => {
            if let (Some(port), true, false) = (args.ports.data_store(), args.from.is_empty(), args.i_mean_it)
            {
                return Err(failure(
                    Kind::Config,
                    format!("port {port} is a data store's, and this would open it to everyone"),
                )
                .hint(format!("appliance firewall allow {} --from NETWORK", args.ports))
                .hint("or, if it has to be so: --i-mean-it")
                .into());
            }
            let make = |session: String| -> anyhow::Result<FirewallChange> {
                Ok(FirewallChange::Allow {
                    ports: PortsName::parse(&args.ports.to_string())?,
                    from: names(&args.from)?,
                    comment: args.comment.clone(),
                    i_mean_it: args.i_mean_it,
                    session,
                })
            };
            armed(&args.reach, globals, &make, args.no_confirm).await
        }
        FirewallCommand::Deny(args) => {
            let make = |session: String| -> anyhow::Result<FirewallChange> {
                Ok(FirewallChange::Deny {
                    ports: PortsName::parse(&args.ports.to_string())?,
                    from: names(&args.from)?,
                    kill: args.kill,
                    session,
                })
            };
            armed(&args.reach, globals, &make, args.no_confirm).await
        }
        FirewallCommand::Explain(args) => explain(args, globals).await,
        FirewallCommand::Audit(args) => audit(args, globals).await,
        FirewallCommand::Confirm { reach, nonce } => {
            for link in links(reach, globals).await? {
                let change = FirewallChange::Confirm {
                    nonce: nonce.clone(),
                    session: session(&link),
                };
                send(reach, &link, change).await?;
            }
            Ok(())
        }
        FirewallCommand::Ban {
            reach,
            address,
            hours,
        } => {
            for link in links(reach, globals).await? {
                let change = FirewallChange::Ban {
                    address: NetworkName::parse(&address.to_string())?,
                    seconds: hours.saturating_mul(3_600),
                };
                send(reach, &link, change).await?;
            }
            Ok(())
        }
        FirewallCommand::Unban { reach, address } => {
            for link in links(reach, globals).await? {
                let change = FirewallChange::Unban {
                    address: NetworkName::parse(&address.to_string())?,
                };
                send(reach, &link, change).await?;
            }
            Ok(())
        }
        FirewallCommand::Load => {
            // Somebody may have edited the file: its rules are those of its model. What cannot be judged is loaded as it is.
            if let Err(error) = firewall::renew(&Local, Local.now()) {
                ui::warn(&format!("{:#}", anyhow::Error::from(error)));
            }
            let loaded = firewall::load(&Local, Local.now())?;
            ui::note(&format!(
                "table inet appliance loaded; outside: {}",
                loaded.outside.join(", ")
            ));
            Ok(())
        }
        FirewallCommand::Follow => follow(),
        FirewallCommand::Status { json } => status(*json),
    }
}

fn names(networks: &[firewall::opening::Net]) -> anyhow::Result<Vec<NetworkName>> {
    networks
        .iter()
        .map(|net| Ok(NetworkName::parse(&net.to_string())?))
        .collect()
}

/// The connection a change comes over: sshd's own words for it on the host, a name of its own from elsewhere.
fn session(link: &Link) -> String {
    if link.is_local() {
        std::env::var("SSH_CONNECTION").unwrap_or_default()
    } else {
        Nonce::from_bytes(random()).to_string()
    }
}

async fn send(reach: &ReachArgs, link: &Link, change: FirewallChange) -> anyhow::Result<()> {
    let info: wire::Host = link.get("/v1/host").await.context("the host's identity")?;
    let signer = reach.signer(link, &SshSettings::default()).await?;
    let subject = Subject {
        host: info.id,
        app: None,
        destination: None,
        expects: Expectation::Any,
    };
    let end = submit(link, &signer, subject, Verb::Firewall(change)).await?;
    if let End::Done { message, .. } = conclude(link, end)? {
        ui::note(&format!("{}: {message}", link.name()));
    }
    Ok(())
}

/// Sends a change that has to be confirmed, and confirms it where that proves something.
async fn armed(
    reach: &ReachArgs,
    globals: &Globals,
    make: &dyn Fn(String) -> anyhow::Result<FirewallChange>,
    no_confirm: bool,
) -> anyhow::Result<()> {
    for link in links(reach, globals).await? {
        let over = session(&link);
        send(reach, &link, make(over.clone())?).await?;
        if no_confirm {
            continue;
        }
        if link.is_local() && !over.is_empty() {
            // Its packets pass whatever the rules say: only a new connection proves anything.
            ui::note("now open a new connection, and confirm there");
            continue;
        }
        let again = link
            .again()
            .await
            .context("a new connection is not let in; the change goes back by itself")?;
        confirm_pending(&again, reach).await?;
    }
    Ok(())
}

/// Confirms the rules that wait for it, if any do, over a connection that began after they were armed.
///
/// # Errors
/// When the host does not answer or refuses.
pub async fn confirm_pending(again: &Link, reach: &ReachArgs) -> anyhow::Result<()> {
    let shown: wire::Firewall = again.get("/v1/firewall").await?;
    let Some(pending) = shown.pending else {
        return Ok(());
    };
    let change = FirewallChange::Confirm {
        nonce: pending.nonce,
        session: session(again),
    };
    send(reach, again, change).await
}

async fn list(args: &ReadArgs, globals: &Globals) -> anyhow::Result<()> {
    for link in links(&args.reach, globals).await? {
        let shown: wire::Firewall = link.get("/v1/firewall").await?;
        if args.json {
            ui::json(&shown);
            continue;
        }
        ui::line(&format!("{}  {}", link.name(), state(shown.state)));
        if let Some(rules) = &shown.rules {
            let ssh: Vec<String> = rules.ssh_ports.iter().map(|port| format!("{port}/tcp")).collect();
            let from: Vec<String> = rules.ssh_from.iter().map(ToString::to_string).collect();
            let whom = if from.is_empty() {
                "everyone".to_owned()
            } else {
                from.join(", ")
            };
            ui::line(&format!("  {} to {whom}  (sshd)", ssh.join(", ")));
            for opening in &rules.openings {
                let comment = if opening.comment.is_empty() {
                    String::new()
                } else {
                    format!("  # {}", opening.comment)
                };
                ui::line(&format!("  {opening}  ({}){comment}", opening.source));
            }
            for line in &rules.ufw {
                let verb = if line.allow { "allows" } else { "denies" };
                let ports = line
                    .ports
                    .map_or_else(|| "everything".to_owned(), |ports| ports.to_string());
                ui::line(&format!("  UFW {verb} {ports} from {}", line.from));
            }
            if rules.block_metadata {
                ui::line("  containers may not reach the cloud's metadata service");
            }
        }
        for interface in &shown.interfaces {
            ui::detail(&format!("  interface {}: {:?}", interface.name, interface.kind).to_lowercase());
        }
        for (bans, from) in [(&shown.bans, "everything"), (&shown.ssh_bans, "SSH")] {
            for (address, seconds) in bans {
                ui::line(&format!(
                    "  banned: {address} from {from} for {} min more",
                    seconds.div_ceil(60)
                ));
            }
        }
        if let Some(pending) = &shown.pending {
            ui::warn(&format!(
                "waits for a confirmation: {}; over a new connection: appliance firewall confirm {}",
                pending.changes.join("; "),
                pending.nonce
            ));
        }
    }
    Ok(())
}

fn state(state: firewall::State) -> &'static str {
    match state {
        firewall::State::Confirmed => "the kernel holds the confirmed rules",
        firewall::State::Pending => "the kernel holds rules that wait for their confirmation",
        firewall::State::Differs => "the kernel's rules are not the confirmed ones",
        firewall::State::Absent => "the firewall is not loaded: every published port is open",
    }
}

async fn explain(args: &ExplainArgs, globals: &Globals) -> anyhow::Result<()> {
    let protocol = if args.protocol == "udp" {
        Protocol::Udp
    } else {
        Protocol::Tcp
    };
    for link in links(&args.reach, globals).await? {
        let shown: wire::Firewall = link.get("/v1/firewall").await?;
        let report: Report = link.get("/v1/firewall/audit").await?;
        let Some(rules) = &shown.rules else {
            return Err(
                failure(Kind::Other, format!("{} has no rules of ours", link.name()))
                    .hint("appliance bootstrap, on the host")
                    .into(),
            );
        };
        let behind = report
            .ports
            .iter()
            .find(|port| port.port == args.port && port.protocol == protocol);
        let target = match behind {
            Some(port) if port.by.starts_with("container ") => Target::Container,
            _ => Target::Host,
        };
        let ssh = protocol == Protocol::Tcp && rules.ssh_ports.contains(&args.port);
        let banned = shown
            .bans
            .iter()
            .chain(shown.ssh_bans.iter().filter(|_| ssh))
            .any(|(address, _)| *address == bans::key(args.from));
        let packet = Packet {
            protocol,
            port: args.port,
            from: args.from,
        };
        let steps = explain::explain(rules, packet, target, banned);
        let through = steps.iter().all(|step| step.pass);
        if args.json {
            ui::json(&serde_json::json!({
                "host": link.name(), "steps": steps, "through": through,
                "behind": behind.map(|port| port.by.clone()),
            }));
            continue;
        }
        for step in &steps {
            let verdict = if step.pass { "passes" } else { "dropped" };
            ui::line(&format!("{verdict:<8} {}: {}", step.by, step.why));
        }
        ui::line(&match (through, behind) {
            (true, Some(port)) => format!("reaches  {}", port.by),
            (true, None) => "reaches  nobody: nothing listens there".to_owned(),
            (false, _) => "         it never arrives".to_owned(),
        });
    }
    Ok(())
}

async fn audit(args: &AuditArgs, globals: &Globals) -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    for link in links(&args.reach, globals).await? {
        let report: Report = link.get("/v1/firewall/audit").await?;
        let mut found = BTreeMap::new();
        if args.from_here {
            let address = link.address().await.context(
                "where the host is, seen from here; name it: appliance firewall audit --from-here --on HOST",
            )?;
            found = probe(address, &report).await;
            for (port, open) in &found {
                let planned = report.ports.iter().any(|exposure| {
                    exposure.protocol == Protocol::Tcp && exposure.port == *port && exposure.open
                });
                // What is open to one network only need not be open to us.
                let may = report
                    .ports
                    .iter()
                    .any(|exposure| exposure.port == *port && exposure.open && exposure.reach != "everyone");
                if *open != planned && (*open || !may) {
                    wrong.push(format!(
                        "{}: port {port} is {} from here, planned is {}",
                        link.name(),
                        if *open { "open" } else { "closed" },
                        if planned { "open" } else { "closed" }
                    ));
                }
            }
        }
        if args.json {
            ui::json(&serde_json::json!({ "host": link.name(), "report": report, "from_here": found }));
            continue;
        }
        ui::line(&link.name());
        for port in &report.ports {
            ui::line(&format!(
                "  {:>5}/{}  {:<16} {} ({}): {}",
                port.port,
                port.protocol.name(),
                port.reach,
                port.by,
                port.address,
                port.rule
            ));
        }
        for text in report.unused.iter().chain(&report.warnings) {
            ui::warn(text);
        }
        if args.from_here {
            let open: Vec<String> = found
                .iter()
                .filter(|(_, open)| **open)
                .map(|(port, _)| port.to_string())
                .collect();
            ui::line(&format!(
                "  from here: {} of {} ports tried are open: {}",
                open.len(),
                found.len(),
                open.join(", ")
            ));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(failure(
        Kind::Other,
        format!("what answers is not what was planned: {}", wrong.join("; ")),
    )
    .hint("appliance firewall explain tcp PORT --from ADDRESS")
    .into())
}

/// Ports that are tried whatever the report says: what is published by mistake most often.
const USUAL: [u16; 12] = [21, 22, 25, 80, 443, 3000, 5000, 8000, 8080, 8443, 9090, 9100];

async fn probe(address: IpAddr, report: &Report) -> BTreeMap<u16, bool> {
    let mut ports: Vec<u16> = report
        .ports
        .iter()
        .filter(|port| port.protocol == Protocol::Tcp)
        .map(|port| port.port)
        .chain(USUAL)
        .chain(DATA_STORE_PORTS.iter().copied())
        .collect();
    ports.sort_unstable();
    ports.dedup();
    let tries = ports.into_iter().map(|port| async move {
        let connect = tokio::net::TcpStream::connect(SocketAddr::new(address, port));
        let open = matches!(
            tokio::time::timeout(Duration::from_secs(3), connect).await,
            Ok(Ok(_))
        );
        (port, open)
    });
    futures_util::future::join_all(tries).await.into_iter().collect()
}

/// What the unit that watches UFW runs.
fn follow() -> anyhow::Result<()> {
    let followed = firewall::follow::until_quiet(&Local)?;
    for warning in &followed.warnings {
        ui::warn(warning);
    }
    if followed.changed {
        ui::note("UFW's rules hold for containers too");
    }
    Ok(())
}

fn status(json: bool) -> anyhow::Result<()> {
    let state = firewall::state(&Local).context("cannot look at the firewall")?;
    if json {
        ui::json(&serde_json::json!({ "state": state }));
        return Ok(());
    }
    match state {
        firewall::State::Confirmed | firewall::State::Pending => {
            ui::line(self::state(state));
            Ok(())
        }
        firewall::State::Differs | firewall::State::Absent => Err(failure(Kind::Other, self::state(state))
            .hint("appliance firewall load")
            .into()),
    }
}
