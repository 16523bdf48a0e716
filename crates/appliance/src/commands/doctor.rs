//! `appliance doctor`: everything that is wrong with a host, seen from inside and from here, each with what mends it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use appliance_bootstrap::firewall::exposure::Report;
use appliance_bootstrap::firewall::opening::Protocol;
use jiff::{SignedDuration, Timestamp};

use crate::developer::link::Link;
use crate::developer::project::Project;
use crate::developer::reach::{ReachArgs, SshSettings};
use crate::failure::{Kind, classify};
use crate::globals::Globals;
use crate::wire::doctor::{Area, Complaint, Examination};
use crate::wire::finding::Id;
use crate::{ui, wire};

/// Find what is wrong with the servers, and say which command mends it
///
/// Ends with exit code 9 if anything was found.
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    reach: ReachArgs,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Only list the words of all findings there are, and what each means
    #[arg(long)]
    list: bool,
}

/// How long a port may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// A change is refused when its clock is further off than this.
const SKEW: SignedDuration = SignedDuration::from_secs(30);
/// Ports that are tried besides those of the report: what is open by mistake most often.
const USUAL: [u16; 8] = [2375, 3306, 5432, 6379, 8080, 9200, 11211, 27017];

/// Examines every host of the configuration, those of `--on`, or this host.
///
/// # Errors
/// When the configuration is wrong, or a remote host cannot be reached at all.
pub async fn run(args: &DoctorArgs, globals: &Globals) -> anyhow::Result<ExitCode> {
    if args.list {
        let all = Id::ALL.iter().map(|id| (id.word(), id.what()));
        if args.json {
            let all: std::collections::BTreeMap<_, _> = all.collect();
            ui::json(&all);
        } else {
            all.for_each(|(word, what)| ui::line(&format!("{word:<20} {what}")));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut hosts = Vec::new();
    match reached(&args.reach, globals).await {
        Ok(found) => {
            for (name, link) in found {
                let areas = match link {
                    Ok(link) => examine(&link, &args.reach).await,
                    Err(error) => Err(error),
                };
                hosts.push((name, areas.unwrap_or_else(|error| vec![unreachable(&error)])));
            }
        }
        // On the host itself, an agent that is away is what a doctor is called for.
        Err(error)
            if classify(&error).0 == Kind::Unreachable
                && crate::update::on_a_host()
                && args.reach.is_local() =>
        {
            let away = Complaint::new(
                Id::AgentAway,
                format!("{error:#}"),
                "systemctl start appliance-agent; journalctl -u appliance-agent --lines 20 --no-pager",
            );
            hosts.push(("this host".to_owned(), vec![Area::of("agent", vec![away])]));
        }
        Err(error) => return Err(error),
    }
    let findings: usize = hosts
        .iter()
        .flat_map(|(_, areas)| areas)
        .map(|area| area.findings.len())
        .sum();
    if args.json {
        let hosts: serde_json::Map<String, serde_json::Value> = hosts
            .iter()
            .map(|(name, areas)| Ok((name.clone(), serde_json::to_value(areas)?)))
            .collect::<Result<_, serde_json::Error>>()?;
        ui::json(&serde_json::json!({ "hosts": hosts, "findings": findings }));
    } else {
        for (name, areas) in &hosts {
            show(name, areas);
        }
    }
    Ok(if findings == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(Kind::Findings.code())
    })
}

/// Each host with its connection; one that cannot be reached keeps nobody from the others.
///
/// # Errors
/// When the configuration is wrong, or none at all can be reached.
async fn reached(
    reach: &ReachArgs,
    globals: &Globals,
) -> anyhow::Result<Vec<(String, anyhow::Result<Link>)>> {
    let configured = globals.directory()?.join(&globals.config_file).exists();
    let local = !configured && crate::update::on_a_host();
    let (names, settings) = if reach.on.is_empty() && !local {
        let project = Project::open(globals)?;
        (project.connecting(globals)?, project.ssh())
    } else {
        (reach.on.clone(), SshSettings::default())
    };
    if names.is_empty() {
        let links = reach.hosts().await?;
        return Ok(links.into_iter().map(|link| (link.name(), Ok(link))).collect());
    }
    let mut found = Vec::new();
    for name in names {
        match reach.connect(&name, &settings).await {
            Ok(link) => found.push((link.name(), Ok(link))),
            Err(error) => found.push((name, Err(error))),
        }
    }
    match found.iter().any(|(_, link)| link.is_ok()) {
        true => Ok(found),
        // With nobody to examine there is no report, only the reason.
        false => Err(found
            .into_iter()
            .find_map(|(_, link)| link.err())
            .unwrap_or_else(|| anyhow::anyhow!("there is no host to examine"))),
    }
}

fn unreachable(error: &anyhow::Error) -> Area {
    let next = classify(error)
        .1
        .first()
        .cloned()
        .unwrap_or_else(|| "your provider's console: does the server run?".to_owned());
    Area::of(
        "reach",
        vec![Complaint::new(Id::Unreachable, format!("{error:#}"), next)],
    )
}

fn show(name: &str, areas: &[Area]) {
    let count: usize = areas.iter().map(|area| area.findings.len()).sum();
    let skipped: Vec<&str> = areas
        .iter()
        .filter(|area| area.skipped.is_some())
        .map(|area| area.name.as_str())
        .collect();
    ui::line(&match count {
        0 if skipped.is_empty() => format!("{name}: nothing is wrong"),
        0 => format!(
            "{name}: nothing is wrong in what could be seen; not seen: {}",
            skipped.join(", ")
        ),
        1 => format!("{name}: 1 finding"),
        count => format!("{name}: {count} findings"),
    });
    for area in areas {
        match (&area.skipped, area.findings.is_empty()) {
            (Some(why), _) => ui::line(&format!("  -     {:<13} {why}", area.name)),
            (None, true) => ui::line(&format!("  ok    {}", area.name)),
            (None, false) => {
                for finding in &area.findings {
                    ui::line(&format!("  FOUND {:<13} {}", area.name, finding.message));
                    ui::line(&format!("        {:<13} next: {}", "", finding.next));
                }
            }
        }
    }
}

/// What is seen from here, then what the host sees itself.
async fn examine(link: &Link, reach: &ReachArgs) -> anyhow::Result<Vec<Area>> {
    let before = Timestamp::now();
    let host: wire::Host = link.get("/v1/host").await?;
    let after = Timestamp::now();
    let mut areas = vec![versions(&host.version)];
    if link.is_local() {
        areas.push(Area::skipped("ssh", "this is the host itself"));
    } else {
        areas.push(ssh(link, reach).await);
        areas.push(skew(before, host.now, after));
    }
    let inside: Result<Examination, _> = link.get("/v1/doctor").await;
    let inside = match inside {
        Ok(inside) => inside,
        Err(error) => {
            let next = match classify(&error).0 {
                Kind::Refused => "an administrator: appliance doctor; or appliance keys add FILE.pub --admin",
                _ => "on the host: appliance doctor; journalctl -u appliance-agent --lines 50",
            };
            let message = format!("the host could not be examined: {error:#}");
            areas.push(Area::of(
                "host",
                vec![Complaint::new(Id::NotExamined, message, next)],
            ));
            return Ok(areas);
        }
    };
    let address = if link.is_local() {
        None
    } else {
        link.address().await
    };
    areas.push(dns(&inside, address).await);
    areas.push(match (address, &inside.ports) {
        (None, _) => Area::skipped("ports", "seen from outside only: run this on your own machine"),
        (Some(_), None) => Area::skipped("ports", "there are no firewall rules to compare with"),
        (Some(address), Some(report)) => ports(address, report, !inside.names.is_empty()).await,
    });
    areas.extend(inside.areas);
    Ok(areas)
}

fn versions(agent: &str) -> Area {
    let own = crate::version();
    let mut findings = Vec::new();
    if agent != own {
        findings.push(Complaint::new(
            Id::Versions,
            format!("the host runs {agent}, this is {own}"),
            "appliance update, on the older side",
        ));
    }
    Area::of("versions", findings)
}

/// Whether the key that opens the door may do something behind it.
async fn ssh(link: &Link, reach: &ReachArgs) -> Area {
    let signer = match reach.signer(link, &SshSettings::default()).await {
        Ok(signer) => signer,
        Err(error) => {
            return Area::of(
                "ssh",
                vec![Complaint::new(
                    Id::NoKey,
                    format!("there is no key to sign with: {error:#}"),
                    "ssh-add, or --identity FILE",
                )],
            );
        }
    };
    let keys: Vec<wire::Key> = match link.get("/v1/keys").await {
        Ok(keys) => keys,
        Err(error) => return Area::skipped("ssh", &format!("{error:#}")),
    };
    let own = signer.public_key().fingerprint();
    let known = keys.iter().find(|key| key.fingerprint == own);
    let wrong = match known {
        Some(key) if key.permissions.iter().any(|words| !words.starts_with("read")) => None,
        Some(key) => Some((
            Id::OnlyLooks,
            format!("{own} may only look ({})", key.permissions.join(", ")),
        )),
        None => Some((
            Id::UnknownKey,
            format!("{own} signs nothing that this host obeys"),
        )),
    };
    Area::of(
        "ssh",
        wrong
            .map(|(id, message)| {
                Complaint::new(
                    id,
                    message,
                    "an administrator: appliance keys add FILE.pub --deploy APP",
                )
            })
            .into_iter()
            .collect(),
    )
}

/// The host's clock against ours; `before` and `after` are ours around the question.
fn skew(before: Timestamp, host: Timestamp, after: Timestamp) -> Area {
    let ahead = host.duration_since(after);
    let behind = before.duration_since(host);
    let off = ahead.max(behind);
    let findings = if off > SKEW {
        vec![Complaint::new(
            Id::Skew,
            format!(
                "the host's clock is {} s {} of this machine's; signed changes may be refused",
                off.as_secs(),
                if ahead > behind { "ahead" } else { "behind" }
            ),
            "on whichever is wrong: timedatectl set-ntp true",
        )]
    } else {
        Vec::new()
    };
    Area::of("skew", findings)
}

/// Whether every name that is served leads here.
async fn dns(inside: &Examination, address: Option<IpAddr>) -> Area {
    let ours: BTreeSet<IpAddr> = inside.addresses.iter().copied().chain(address).collect();
    let mut findings = Vec::new();
    for name in inside.names.iter().filter(|name| !name.contains('*')) {
        let found: BTreeSet<IpAddr> = match tokio::net::lookup_host((name.as_str(), 443)).await {
            Ok(found) => found.map(|address| address.ip()).collect(),
            Err(error) => {
                findings.push(Complaint::new(
                    Id::DnsNone,
                    format!("{name} has no address: {error}"),
                    format!(
                        "make an A record of {name} with {}; then: dig +short {name}",
                        first(&ours)
                    ),
                ));
                continue;
            }
        };
        let strangers: Vec<String> = found.difference(&ours).map(ToString::to_string).collect();
        if found.is_disjoint(&ours) {
            findings.push(Complaint::new(
Id::DnsElsewhere,
format!("{name} leads to {}, not to this host", strangers.join(", ")),
                format!(
                    "make an A record of {name} with {}, unless a load balancer or CDN is meant to stand between; then: dig +short {name}",
                    first(&ours)
                ),
            ));
        } else if !strangers.is_empty() && address.is_some() {
            findings.push(Complaint::new(
                Id::DnsPartly,
                format!(
                    "{name} leads here, and to {} too, which is not an address of this host",
                    strangers.join(", ")
                ),
                format!("remove what is wrong from the zone; then: dig +short {name}"),
            ));
        }
    }
    Area::of("dns", findings)
}

fn first(ours: &BTreeSet<IpAddr>) -> String {
    ours.iter()
        .next()
        .map_or_else(|| "its address".to_owned(), ToString::to_string)
}

/// What answers from here, against what the firewall means to let through.
async fn ports(address: IpAddr, report: &Report, serves: bool) -> Area {
    let mut tried: BTreeSet<u16> = USUAL.into();
    tried.extend(
        report
            .ports
            .iter()
            .filter(|port| port.protocol == Protocol::Tcp)
            .map(|port| port.port),
    );
    tried.extend([80, 443]);
    let tries = tried.into_iter().map(|port| async move {
        let connect = tokio::net::TcpStream::connect(SocketAddr::new(address, port));
        let open = matches!(tokio::time::timeout(PATIENCE, connect).await, Ok(Ok(_)));
        (port, open)
    });
    let mut findings = Vec::new();
    for (port, open) in futures_util::future::join_all(tries).await {
        let planned = report
            .ports
            .iter()
            .any(|found| found.protocol == Protocol::Tcp && found.port == port && found.open);
        if open && !planned {
            findings.push(Complaint::new(
                Id::PortOpen,
                format!("port {port} answers from here, and is meant to be closed"),
                format!("appliance firewall explain tcp {port}; appliance firewall deny {port}"),
            ));
        }
        if !open && serves && [80, 443].contains(&port) {
            findings.push(Complaint::new(
Id::PortShut,
format!(
                    "port {port} of {address} does not answer from here: visitors stand before a closed door; \
                     if it is open on the host, your provider's firewall shuts it"
                ),
                "on the host: systemctl start appliance-proxy-http.socket appliance-proxy-https.socket appliance-proxy",
            ));
        }
    }
    Area::of("ports", findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_wrong_by_what_the_way_cannot_explain() {
        let at = |second: i64| Timestamp::from_second(1_800_000_000 + second).expect("a time");
        assert!(skew(at(0), at(5), at(10)).findings.is_empty());
        assert!(skew(at(0), at(35), at(10)).findings.is_empty());
        let ahead = skew(at(0), at(50), at(10));
        assert!(ahead.findings[0].message.contains("40 s ahead"), "{ahead:?}");
        let behind = skew(at(0), at(-31), at(10));
        assert!(behind.findings[0].message.contains("31 s behind"), "{behind:?}");
    }

    #[tokio::test]
    async fn a_name_has_to_lead_to_one_of_the_hosts_addresses() {
        let inside = |addresses: &[&str]| Examination {
            names: vec!["localhost".to_owned(), "*.example.com".to_owned()],
            addresses: addresses
                .iter()
                .map(|text| text.parse().expect("an address"))
                .collect(),
            ..Examination::default()
        };
        assert!(
            dns(&inside(&["127.0.0.1", "::1"]), None)
                .await
                .findings
                .is_empty()
        );
        let elsewhere = dns(&inside(&["192.0.2.1"]), None).await;
        assert!(
            elsewhere.findings[0].message.contains("not to this host"),
            "{elsewhere:?}"
        );
        assert!(elsewhere.findings[0].next.contains("192.0.2.1"), "{elsewhere:?}");
    }
}
