//! `appliance doctor`: everything that is wrong with a host, seen from inside and from here, each with what mends it.

mod access;

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

/// What brings the agent back, or shows why it does not come.
const START_AGENT: &str =
    "systemctl start appliance-agent; journalctl -u appliance-agent --lines 20 --no-pager";
/// How long a port may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// A change is refused when its clock is further off than this.
const SKEW: SignedDuration = SignedDuration::from_secs(30);
/// Ports that are tried besides those of the report: what is open by mistake most often.
const USUAL: [u16; 8] = [2375, 3306, 5432, 6379, 8080, 9200, 11211, 27017];

/// Examines every host of the configuration, those of `--on`, or this host.
///
/// # Errors
/// When the configuration is wrong, or this machine is no host and names none.
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
    // Only for the command that enrols a key; without a configuration, or with a mistake in it, for every app.
    let app = Project::open(globals).ok();
    let app = app
        .as_ref()
        .map(|project| project.loaded.config.service.to_string());
    let mut hosts = Vec::new();
    match reached(&args.reach, globals).await {
        Ok(found) => {
            for (name, link) in found {
                let areas = match link {
                    Ok(link) => examine(&link, &args.reach, app.as_deref()).await,
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
            let away = Complaint::new(Id::AgentAway, format!("{error:#}"), START_AGENT);
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
/// When the configuration is wrong.
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
    Ok(found)
}

fn unreachable(error: &anyhow::Error) -> Area {
    let whole = format!("{error:#}");
    let text = whole.lines().next().unwrap_or_default().to_owned();
    // sshd let us in, and behind it nobody is at home.
    if ["but not as an appliance", "the agent does not answer"]
        .iter()
        .any(|words| text.contains(words))
    {
        let away = Complaint::new(Id::AgentAway, text, START_AGENT).by("on the host");
        return Area::of("agent", vec![away]);
    }
    let complaint = if text.contains("cannot be reached") {
        let next = "systemctl start ssh; appliance firewall load; ip -brief address";
        Complaint::new(Id::Unreachable, text, next).by("on the host, by your provider's console")
    } else {
        let hint = classify(error).1.into_iter().next();
        Complaint::new(
            Id::Unreachable,
            text,
            hint.unwrap_or_else(|| "appliance doctor --verbose".to_owned()),
        )
    };
    Area::of("reach", vec![complaint])
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
                    let who = finding.who.as_ref().map(|who| format!(", {who}"));
                    ui::line(&format!(
                        "        {:<13} next{}: {}",
                        "",
                        who.unwrap_or_default(),
                        finding.next
                    ));
                }
            }
        }
    }
}

/// What is seen from here, then what the host sees itself.
async fn examine(link: &Link, reach: &ReachArgs, app: Option<&str>) -> anyhow::Result<Vec<Area>> {
    let before = Timestamp::now();
    let host: wire::Host = link.get("/v1/host").await?;
    let after = Timestamp::now();
    let mut areas = vec![versions(&host.version)];
    if link.is_local() {
        areas.push(Area::skipped("ssh", "this is the host itself"));
    } else {
        areas.push(access::look(link, reach, app).await);
        areas.push(skew(before, host.now, after));
    }
    let inside: Result<Examination, _> = link.get("/v1/doctor").await;
    let inside = match inside {
        Ok(inside) => inside,
        Err(error) => {
            let allow = match classify(&error).0 {
                Kind::Refused => access::to_see_all(link, reach).await,
                _ => None,
            };
            let message = format!("the host could not be examined: {error:#}");
            let complaint = match allow {
                Some(next) => Complaint::new(Id::NotExamined, message, next).by(access::ADMINISTRATOR),
                None => Complaint::new(
                    Id::NotExamined,
                    message,
                    "appliance doctor; journalctl -u appliance-agent --lines 50 --no-pager",
                )
                .by("on the host"),
            };
            areas.push(Area::of("host", vec![complaint]));
            return Ok(areas);
        }
    };
    let reached = if link.is_local() {
        Vec::new()
    } else {
        link.addresses().await
    };
    let address = reached.first().copied();
    areas.push(dns(&inside, &reached).await);
    areas.push(match (address, &inside.ports) {
        (None, _) => Area::skipped("ports", "seen from outside only: run this on your own machine"),
        (Some(_), None) => Area::skipped("ports", "there are no firewall rules to compare with"),
        (Some(address), Some(_)) if inside.trusted.contains(&address) => Area::skipped(
            "ports",
            "the host is reached through an interface that is trusted: everything is meant to answer there",
        ),
        (Some(address), Some(report)) => ports(address, report, !inside.names.is_empty()).await,
    });
    areas.extend(inside.areas);
    Ok(areas)
}

fn versions(agent: &str) -> Area {
    let own = crate::version();
    let mut findings = Vec::new();
    if agent != own {
        findings.push(
            Complaint::new(
                Id::Versions,
                format!("the host runs {agent}, this is {own}"),
                "appliance update",
            )
            .by("on the older side"),
        );
    }
    Area::of("versions", findings)
}

/// The host's clock against ours; `before` and `after` are ours around the question.
fn skew(before: Timestamp, host: Timestamp, after: Timestamp) -> Area {
    let ahead = host.duration_since(after);
    let behind = before.duration_since(host);
    let off = ahead.max(behind);
    let findings = if off > SKEW {
        vec![
            Complaint::new(
                Id::Skew,
                format!(
                    "the host's clock is {} s {} of this machine's; signed changes may be refused",
                    off.as_secs(),
                    if ahead > behind { "ahead" } else { "behind" }
                ),
                "timedatectl set-ntp true",
            )
            .by("on whichever is wrong"),
        ]
    } else {
        Vec::new()
    };
    Area::of("skew", findings)
}

/// Whether every name that is served leads here; `reached` is where we reached the host, if from elsewhere.
///
/// Each family of addresses is judged by itself: a host may have its public IPv6 address and be behind a router in IPv4.
async fn dns(inside: &Examination, reached: &[IpAddr]) -> Area {
    let own: BTreeSet<IpAddr> = inside.addresses.iter().chain(reached).copied().collect();
    if own.is_empty() {
        return Area::skipped("dns", "this host knows no address of its own");
    }
    let has_public = |four: bool| own.iter().any(|own| own.is_ipv4() == four && is_public(own));
    // What visitors can reach, so that a private network beside it is no answer; without any, all there is.
    let ours: BTreeSet<IpAddr> = own
        .iter()
        .copied()
        .filter(|own| is_public(own) || !has_public(own.is_ipv4()))
        .collect();
    let public = |address: &&IpAddr| is_public(address);
    let best = reached.iter().find(public).or_else(|| ours.iter().find(public));
    let wanted = best.map_or_else(|| "this host's public address".to_owned(), ToString::to_string);
    let best = best.or_else(|| reached.first()).or_else(|| ours.first());
    let holds = best.map_or_else(String::new, |best| {
        let record = if best.is_ipv4() { "A" } else { "AAAA" };
        format!("its {record} record should hold {best}")
    });
    let mut findings = Vec::new();
    let (mut asked, mut unknown) = (0, 0);
    for name in inside.names.iter().filter(|name| !name.contains('*')) {
        if inside.elsewhere.contains(name) {
            continue;
        }
        asked += 1;
        let look = format!("getent ahosts {name}");
        let found: BTreeSet<IpAddr> = match tokio::net::lookup_host((name.as_str(), 443)).await {
            Ok(found) => found.map(|address| address.ip()).collect(),
            Err(error) => {
                let why = format!("{name} has no address ({error}): it needs an A record with {wanted}");
                findings.push(Complaint::new(Id::DnsNone, why, look));
                continue;
            }
        };
        let leads_here = !found.is_disjoint(&ours);
        // The router in front has the public address, and only whoever comes through it knows.
        let (routed, strangers): (Vec<IpAddr>, Vec<IpAddr>) = found
            .difference(&ours)
            .partition(|found| is_public(found) && !has_public(found.is_ipv4()));
        let strangers: Vec<String> = strangers.iter().map(ToString::to_string).collect();
        if !leads_here && routed.is_empty() {
            let why = format!(
                "{name} leads to {}, not to this host: {holds}; if a CDN or load balancer is meant to stand between: `dns: {{elsewhere: [{name}]}}` in /etc/appliance/host.yml",
                strangers.join(", ")
            );
            findings.push(Complaint::new(Id::DnsElsewhere, why, look));
        } else if !strangers.is_empty() && !reached.is_empty() {
            let why = format!(
                "{name} leads to {} too, which is not an address of this host: remove what is wrong from the zone",
                strangers.join(", ")
            );
            findings.push(Complaint::new(Id::DnsPartly, why, look));
        } else if !leads_here {
            unknown += 1;
        }
    }
    if findings.is_empty() && unknown > 0 && unknown == asked {
        return Area::skipped(
            "dns",
            if reached.is_empty() {
                "this host has no public address itself: run this on your own machine"
            } else {
                "this host's public address is not known here: it is reached by another one"
            },
        );
    }
    Area::of("dns", findings)
}

/// Whether visitors from the internet can reach such an address: it is none of a private network, a tunnel, a provider's
/// own network (RFC 1918, RFC 6598, RFC 4193) or of this machine.
fn is_public(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let shared = matches!(address.octets(), [100, 64..=127, ..]);
            !(address.is_private() || address.is_loopback() || address.is_link_local() || shared)
        }
        IpAddr::V6(address) => {
            !(address.is_unique_local() || address.is_loopback() || address.is_unicast_link_local())
        }
    }
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
            findings.push(
                Complaint::new(
                    Id::PortOpen,
                    format!("port {port} answers from here, and the rules mean it to be closed"),
                    format!("appliance firewall load; appliance firewall explain tcp {port}"),
                )
                .by("on the host"),
            );
        }
        if !open && serves && [80, 443].contains(&port) {
            findings.push(Complaint::new(
                Id::PortShut,
                format!(
                    "port {port} of {address} does not answer from here: visitors stand before a closed door; \
                     if it is open on the host, your provider's firewall shuts it"
                ),
                "systemctl start appliance-proxy-http.socket appliance-proxy-https.socket appliance-proxy",
            ).by("on the host"));
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
        assert!(dns(&inside(&["127.0.0.1", "::1"]), &[]).await.findings.is_empty());
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let elsewhere = dns(&inside(&[]), &[address("192.0.2.1")]).await;
        assert!(
            elsewhere.findings[0].message.contains("not to this host"),
            "{elsewhere:?}"
        );
        assert!(
            elsewhere.findings[0].message.contains("should hold 192.0.2.1"),
            "{elsewhere:?}"
        );
        // A private network beside the public address is nothing to advise.
        let two = dns(&inside(&["10.0.5.10", "203.0.113.10"]), &[]).await;
        assert!(
            two.findings[0].message.contains("should hold 203.0.113.10"),
            "{two:?}"
        );
        // Meant to be so.
        let mut meant = inside(&["203.0.113.10"]);
        meant.elsewhere = vec!["localhost".to_owned()];
        assert!(dns(&meant, &[]).await.findings.is_empty());
        // Behind a router of the provider's, a public address is not known to be wrong.
        let mut routed = inside(&["10.0.5.10"]);
        routed.names = vec!["203.0.113.9".to_owned()];
        for reached in [&[][..], &[address("10.0.5.10")], &[address("100.64.0.9")]] {
            let nat = dns(&routed, reached).await;
            assert!(nat.findings.is_empty() && nat.skipped.is_some(), "{nat:?}");
        }
        // Nor is one of the other family than the host's own.
        let mut dual = inside(&["10.0.5.10", "2001:db8::1"]);
        dual.names = vec!["203.0.113.9".to_owned()];
        for reached in [&[][..], &[address("2001:db8::1")]] {
            let two = dns(&dual, reached).await;
            assert!(two.findings.is_empty(), "{two:?}");
        }
        // Of the same family it is.
        dual.addresses.push(address("203.0.113.10"));
        assert_eq!(dns(&dual, &[]).await.findings.len(), 1);
    }
}
