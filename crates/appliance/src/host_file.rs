//! `host.yml` as bootstrap takes it: the one place where the two meet.

use std::path::Path;

use anyhow::Context as _;
use appliance_bootstrap::firewall::opening::{Net, Opening, Ports, Protocol, Source};
use appliance_bootstrap::firewall::rules::{Mode, Routed};
use appliance_bootstrap::key::Permission;
use appliance_bootstrap::options::{LimitedKey, Swap};
use appliance_bootstrap::{DockerSource, Options, PublicKey};
use appliance_config::host::{self, Host};

use crate::failure::{Kind, failure};

/// Reads and checks a file; nothing is touched if there is a mistake in it.
///
/// # Errors
/// Every mistake at once, each with its line.
pub fn read(path: &Path) -> anyhow::Result<(String, Host)> {
    let text = fs_err::read_to_string(path)?;
    let host = parse(&path.display().to_string(), &text)?;
    Ok((text, host))
}

/// Checks the text of a file called `name`.
///
/// # Errors
/// Every mistake at once, each with its line.
pub fn parse(name: &str, text: &str) -> anyhow::Result<Host> {
    host::read(name, text).map_err(|problems| {
        let lines: Vec<String> = problems.0.iter().map(ToString::to_string).collect();
        failure(Kind::Config, format!("nothing was touched: {}", lines.join("\n")))
            .hint(format!("correct {name}, then run this again"))
            .into()
    })
}

/// Adds what the file says to what the command line said.
///
/// # Errors
/// When a key or network is not usable.
pub fn apply(host: &Host, options: &mut Options) -> anyhow::Result<()> {
    for admin in &host.admins {
        for key in &admin.keys {
            let key = public_key(&key.0)?;
            declare(options, &key, &admin.from)?;
            options.admin_keys.push(key);
        }
    }
    for deploy in &host.deploy_keys {
        let key = public_key(&deploy.key.0)?;
        declare(options, &key, &deploy.from)?;
        let apps = if deploy.apps.is_empty() {
            vec!["*".to_owned()]
        } else {
            deploy.apps.clone()
        };
        let permission = match deploy.permission {
            host::Permission::Admin => Permission::Admin,
            host::Permission::Deploy => Permission::Deploy { apps },
            host::Permission::Operate => Permission::Operate { apps },
            host::Permission::Read => Permission::Read { apps },
        };
        options.limited_keys.push(LimitedKey { key, permission });
    }
    firewall(&host.firewall, options)?;
    options.ssh.port = host.ssh.port;
    options.ssh.no_root = host.ssh.root_login == host::RootLogin::Never;
    options.ssh.tcp_forwarding = host.ssh.tcp_forwarding;
    options.ssh.agent_forwarding = host.ssh.agent_forwarding;
    options.ssh.allow_users.clone_from(&host.ssh.allow_users);
    options.ssh.from = networks(&host.ssh.from)?.into_iter().collect();
    if options.docker == DockerSource::Auto {
        options.docker = match host.docker.source {
            host::DockerSource::Auto => DockerSource::Auto,
            host::DockerSource::Docker => DockerSource::Docker,
            host::DockerSource::Distribution => DockerSource::Distribution,
        };
    }
    options.docker_group = host.docker.deploy_user_in_group;
    options.docker_ipv6 = host.docker.ipv6;
    options.strict = host.hardening.profile == host::HardeningProfile::Strict;
    options.items.clone_from(&host.hardening.items);
    options.swap = match &host.swap {
        host::Swap::Switch(false) => Swap::Off,
        host::Swap::Switch(true) | host::Swap::Word(_) => Swap::Auto,
        host::Swap::Size(bytes) => Swap::Bytes(bytes.0),
    };
    options.timezone.clone_from(&host.timezone);
    options.security_updates = host.updates.security;
    options.reboot_at.clone_from(&host.updates.reboot_at);
    options.ship_logs_to.clone_from(&host.logs.ship_to);
    options.log_size = host.limits.log_size.0;
    options.journal_size = host.limits.journal_size.0;
    options.image_cache = host.limits.image_cache.0;
    Ok(())
}

fn firewall(file: &host::Firewall, options: &mut Options) -> anyhow::Result<()> {
    let wishes = &mut options.firewall;
    (wishes.mode, wishes.off) = match file.mode {
        None => (None, false),
        Some(host::FirewallMode::Own) => (Some(Mode::Own), false),
        Some(host::FirewallMode::Ufw) => (Some(Mode::Ufw), false),
        Some(host::FirewallMode::Off) => (None, true),
    };
    for opening in &file.open {
        wishes.openings.push(Opening {
            ports: ports(&opening.port),
            from: networks(&opening.from)?,
            comment: opening.comment.clone().unwrap_or_default(),
            source: Source::HostYml,
        });
    }
    for routed in &file.routed {
        wishes.routed.push(Routed {
            network: network(&routed.network)?,
            ports: ports(&routed.port),
            from: networks(&routed.from)?,
        });
    }
    for (name, kind) in &file.interfaces {
        match kind {
            host::InterfaceKind::Trusted => wishes.trusted.insert(name.clone()),
            host::InterfaceKind::Wan | host::InterfaceKind::Lan => wishes.outside.insert(name.clone()),
        };
    }
    wishes.bans = file.bans;
    wishes.block_metadata = file.block_metadata;
    Ok(())
}

fn public_key(line: &str) -> anyhow::Result<PublicKey> {
    line.parse()
        .map_err(|error| failure(Kind::Config, format!("host.yml: {error}")).into())
}

fn declare(
    options: &mut Options,
    key: &PublicKey,
    from: &[appliance_config::units::Network],
) -> anyhow::Result<()> {
    options.declared.insert(key.fingerprint());
    if !from.is_empty() {
        options.key_networks.insert(key.fingerprint(), networks(from)?);
    }
    Ok(())
}

fn ports(ports: &appliance_config::units::Ports) -> Ports {
    let range = ports.0;
    Ports {
        protocol: if range.udp { Protocol::Udp } else { Protocol::Tcp },
        first: range.first,
        last: range.last,
    }
}

fn network(network: &appliance_config::units::Network) -> anyhow::Result<Net> {
    let text = network.0.to_string();
    text.parse()
        .with_context(|| format!("host.yml: {text} is not a network"))
}

fn networks(networks: &[appliance_config::units::Network]) -> anyhow::Result<Vec<Net>> {
    networks.iter().map(network).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_file_reaches_bootstrap() {
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f ann";
        let text = format!(
            "admins: [{{name: ann, keys: [{key}], from: [10.0.0.0/8]}}]\nssh: {{root_login: never, port: 2222, from: ['2001:db8::/32']}}\n\
             firewall:\n  mode: ufw\n  open: [{{port: 5432, from: [10.0.5.0/24], comment: db}}]\n  interfaces: {{wg0: trusted, br0: wan}}\n  block_metadata: false\n  routed: [{{network: 'fd00:77::/64', port: 80}}]\n\
             logs: {{ship_to: 'https://logs.example.com:19532'}}\n\
             limits: {{log_size: 20m}}\nhardening: {{profile: strict, items: {{S16: false}}}}\nswap: false\nupdates: {{reboot_at: '03:30'}}\ndocker: {{deploy_user_in_group: true}}\n"
        );
        let host = host::read("host.yml", &text).expect("valid");
        let mut options = Options::new("1");
        apply(&host, &mut options).expect("applies");
        let fingerprint = options.admin_keys[0].fingerprint();
        assert_eq!(options.key_networks[&fingerprint][0].to_string(), "10.0.0.0/8");
        assert_eq!(options.firewall.mode, Some(Mode::Ufw));
        let opening = options.firewall.openings.last().expect("one");
        assert_eq!(opening.to_string(), "5432/tcp to 10.0.5.0/24");
        assert!(options.firewall.trusted.contains("wg0") && options.firewall.outside.contains("br0"));
        assert!(
            !options.firewall.block_metadata
                && options.firewall.bans
                && options.docker_group
                && options.strict
        );
        assert_eq!(
            (options.ssh.port, options.ssh.no_root, options.swap),
            (Some(2222), true, Swap::Off)
        );
        assert_eq!(options.log_size, 20 << 20);
        assert_eq!(
            options.ship_logs_to.as_deref(),
            Some("https://logs.example.com:19532")
        );
        let routed = &options.firewall.routed[0];
        assert_eq!(
            (routed.network.to_string().as_str(), routed.ports),
            ("fd00:77::/64", Ports::tcp(80))
        );
        assert!(!options.items["S16"]);
    }
}
