//! What is reachable, from where, whatever anybody does to the host: one table, asserted whole after each thing done.
//!
//! Real packets from two sides (a stranger, and a neighbour on a private network), over IPv4 and IPv6, to every kind of port:
//! published, published on an IPv6 network, published on the loopback, unpublished, on the host's network, of the host itself;
//! also straight to containers' own addresses through the host, and to a loopback address with the host as a router.
//!
//! One process on each side tries its whole half of the table at once. What is to be closed gets as long as what is to be
//! open needed, and a moment more: the same path carries both, so a closed port is not waited for longer than an open one answers.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use appliance_sandbox::{Command, Distro, Image, ImageRef, Outside, PortState};
use appliance_tests::World;

const PATIENCE: Duration = Duration::from_millis(1500);
/// Tries every `[address, port, open]` of its argument at once, and prints the state of each in the same order.
///
/// It ends half a second after the last of those that are to be open has answered, or after six seconds.
const PROBE: &str = r#"
import errno, json, selectors, socket, sys, time
STATES = {0: "open", errno.ECONNREFUSED: "refused"}
table = json.loads(sys.argv[1])
states = ["silent"] * len(table)
waiting = {number for number, row in enumerate(table) if row[2]}
selector = selectors.DefaultSelector()
for number, (address, port, _) in enumerate(table):
    peer = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    peer.setblocking(False)
    code = peer.connect_ex((address, port))
    if code == errno.EINPROGRESS:
        selector.register(peer, selectors.EVENT_WRITE, number)
    else:
        states[number] = STATES.get(code, "unreachable")
        waiting.discard(number)
last, end = time.monotonic(), time.monotonic() + 6
while selector.get_map():
    now = time.monotonic()
    left = (end if waiting else last + 0.5) - now
    if left <= 0:
        break
    for key, _ in selector.select(left):
        code = key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        states[key.data] = STATES.get(code, "unreachable")
        if key.data in waiting:
            waiting.discard(key.data)
            last = time.monotonic()
        selector.unregister(key.fileobj)
        key.fileobj.close()
json.dump(states, sys.stdout)
"#;
/// Published on an IPv4 network, on one with IPv6, on the host's network, by the host, and to the neighbour alone.
const TRIED: [u16; 9] = [22, 80, 443, 5432, 6379, 8080, 8081, 9000, 9100];
const OPEN: [u16; 3] = [22, 80, 443];
/// Open to the neighbour's address alone, by `host.yml`.
const NEIGHBOURS: u16 = 5432;

#[tokio::test]
async fn nothing_but_what_was_opened_answers_whatever_happens_to_a_debian_12_host() -> anyhow::Result<()> {
    whole(Distro::Debian12).await
}

#[tokio::test]
async fn nothing_but_what_was_opened_answers_whatever_happens_to_a_debian_13_host() -> anyhow::Result<()> {
    whole(Distro::Debian13).await
}

/// A machine elsewhere, and the routes it was given.
struct Side {
    outside: Outside,
    _removal: appliance_tests::bench::Removal,
}

struct Lab {
    world: World,
    wan: Side,
    lan: Side,
    image: ImageRef,
    lan_host: (Ipv4Addr, Ipv6Addr),
    neighbour: (Ipv4Addr, Ipv6Addr),
    containers: BTreeMap<&'static str, (Ipv4Addr, Option<IpAddr>)>,
}

async fn whole(distro: Distro) -> anyhow::Result<()> {
    let mut lab = Lab::open(distro).await?;
    lab.check("bootstrap").await?;

    // Without our table they are open: it is the table that closes them, and this test would notice.
    lab.world.run(&["systemctl", "stop", "appliance-agent"]).await?;
    lab.world
        .run(&["nft", "delete", "table", "inet", "appliance"])
        .await?;
    let (v4, _) = lab.world.host.addresses().await?;
    let found = lab
        .wan
        .outside
        .probe(v4.into(), &["8080", "9100", "9000"], PATIENCE)
        .await?;
    ensure!(found.values().all(|state| *state == PortState::Open), "{found:?}");
    lab.world.run(&["systemctl", "start", "appliance-agent"]).await?;
    lab.healed().await?;
    lab.check("the table was deleted").await?;

    lab.step(&["systemctl", "restart", "docker"]).await?;
    lab.world
        .run(&["apt-get", "install", "--yes", "--quiet=2", "ufw"])
        .await?;
    lab.world.run(&["ufw", "allow", "22/tcp"]).await?;
    lab.world.run(&["ufw", "allow", "80,443/tcp"]).await?;
    lab.world.run(&["ufw", "allow", "5432/tcp"]).await?;
    for argv in [
        &["ufw", "--force", "enable"][..],
        &["ufw", "reload"],
        &["ufw", "disable"],
    ] {
        lab.step(argv).await?;
    }
    lab.step(&["iptables", "--flush"]).await?;
    lab.step(&["ip6tables", "--flush"]).await?;
    lab.step(&["nft", "flush", "ruleset"]).await?;
    for verb in ["start", "restart", "stop"] {
        lab.step(&["systemctl", verb, "nftables"]).await?;
    }
    // Flushing took Docker's own rules too; after a restart of Docker its networks work again.
    lab.step(&["systemctl", "restart", "docker"]).await?;
    lab.works_inside().await?;

    lab.world.run(&["docker", "rm", "--force", "pub"]).await?;
    lab.run_container("pub", &["--publish=8080:80"]).await?;
    lab.look().await?;
    lab.check("a container was made again").await?;
    lab.world.run(&["docker", "network", "create", "another"]).await?;
    lab.world.run(&["docker", "rm", "--force", "pub"]).await?;
    lab.run_container("pub", &["--network=another", "--publish=8080:80"])
        .await?;
    lab.look().await?;
    lab.check("a network was made").await?;
    lab.bridged().await?;
    lab.hairpin().await?;
    lab.where_ufw_keeps_the_host().await?;
    lab.reboot().await
}

impl Lab {
    async fn open(distro: Distro) -> anyhow::Result<Self> {
        let world = World::bootstrapped("matrix", distro).await?;
        let (wan, removal) = world.bench.outside(world.host.network()).await?;
        let wan = Side {
            outside: wan,
            _removal: removal,
        };
        let (lan, removal) = world.bench.outside("appliance-sandbox-lan").await?;
        let lan = Side {
            outside: lan,
            _removal: removal,
        };
        docker(&[
            "network",
            "connect",
            "appliance-sandbox-lan",
            world.host.name().as_str(),
        ])
        .await?;
        let lan_host = address(world.host.name().as_str(), "appliance-sandbox-lan").await?;
        let (four, six) = address(lan.outside.name().as_str(), "appliance-sandbox-lan").await?;
        // Without a loopback of its own an outsider sends packets to one out, with the host as its router.
        for (side, gateway) in [(&wan, world.host.addresses().await?.0), (&lan, lan_host.0)] {
            inside(&side.outside, &["ip", "address", "flush", "dev", "lo"]).await?;
            let gateway = gateway.to_string();
            inside(
                &side.outside,
                &["ip", "route", "replace", "127.0.0.1", "via", &gateway],
            )
            .await?;
        }
        apply(&world, "own", (four, six)).await?;
        let image = world
            .bench
            .sandbox
            .ensure(
                &Image::Demo {
                    version: "v1".to_owned(),
                },
                &|_| (),
            )
            .await?;
        let saved = tokio::process::Command::new("docker")
            .args(["save", image.as_str()])
            .output()
            .await?;
        let loaded = world
            .host
            .exec(&Command::new(["docker", "load"]).stdin(saved.stdout))
            .await?;
        ensure!(loaded.success(), "{}", loaded.error_text());
        world
            .run(&[
                "docker",
                "network",
                "create",
                "--ipv6",
                "--subnet=fd00:77::/64",
                "six",
            ])
            .await?;
        let mut lab = Self {
            world,
            wan,
            lan,
            image,
            lan_host,
            neighbour: (four, six),
            containers: BTreeMap::new(),
        };
        for (name, arguments) in [
            ("pub", &["--publish=8080:80"][..]),
            ("six", &["--network=six", "--publish=8081:80"]),
            ("db", &["--publish=5432:80"]),
            ("loop", &["--publish=127.0.0.1:6379:80"]),
            ("unpub", &[]),
            ("hostnet", &["--network=host", "--env=PORT=9100"]),
        ] {
            lab.run_container(name, arguments).await?;
        }
        lab.world
            .run(&[
                "systemd-run",
                "--collect",
                "--unit=service",
                "systemd-socket-activate",
                "--accept",
                "--listen=9000",
                "cat",
            ])
            .await?;
        lab.works_inside().await?;
        lab.look().await?;
        Ok(lab)
    }

    async fn run_container(&self, name: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let named = format!("--name={name}");
        let base = ["docker", "run", "--detach", "--restart=always", &named];
        self.world
            .run(&[&base[..], arguments, &[self.image.as_str()]].concat())
            .await
            .map(drop)
    }

    /// Where the containers are now, and ways there through the host.
    async fn look(&mut self) -> anyhow::Result<()> {
        for name in ["pub", "six", "db", "loop", "unpub"] {
            let text = self
                .world
                .run(&[
                    "docker",
                    "inspect",
                    "--format",
                    "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.GlobalIPv6Address}}{{end}}",
                    name,
                ])
                .await?;
            let mut words = text.split(' ');
            let v4 = words
                .next()
                .unwrap_or_default()
                .parse()
                .with_context(|| text.clone())?;
            self.containers
                .insert(name, (v4, words.next().and_then(|word| word.parse().ok())));
        }
        let wan = self.world.host.addresses().await?;
        for (side, gateway) in [(&self.wan, wan), (&self.lan, self.lan_host)] {
            for (four, six) in self.containers.values() {
                for (address, gateway) in [
                    (Some(IpAddr::from(*four)), IpAddr::from(gateway.0)),
                    (*six, IpAddr::from(gateway.1)),
                ] {
                    if let Some(address) = address {
                        let (address, gateway) = (address.to_string(), gateway.to_string());
                        let route = ["ip", "route", "replace", &address, "via", &gateway];
                        inside(&side.outside, &route).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The host itself reaches what is published: a closed port is closed by the firewall, not because nothing is there.
    async fn works_inside(&self) -> anyhow::Result<()> {
        for port in [5432, 6379, 8080, 8081, 9100] {
            let url = format!("http://127.0.0.1:{port}/up");
            self.world
                .run(&[
                    "curl",
                    "--silent",
                    "--show-error",
                    "--fail",
                    "--retry",
                    "20",
                    "--retry-delay",
                    "1",
                    "--retry-all-errors",
                    "--max-time",
                    "5",
                    &url,
                ])
                .await
                .with_context(|| format!("nothing answers on port {port} of the host itself"))?;
        }
        Ok(())
    }

    /// Waits until the kernel holds the confirmed rules again.
    async fn healed(&self) -> anyhow::Result<()> {
        let script = "for _ in $(seq 100); do appliance firewall status >/dev/null 2>&1 && exit; read -rt 0.1 <> <(:); done; exit 1";
        let output = self
            .world
            .host
            .exec(&Command::new(["bash", "-c", script]))
            .await?;
        ensure!(output.success(), "the table did not come back");
        Ok(())
    }

    async fn step(&self, argv: &[&str]) -> anyhow::Result<()> {
        self.world.run(argv).await?;
        self.healed().await.with_context(|| argv.join(" "))?;
        self.check(&argv.join(" ")).await
    }

    /// A card becomes part of a bridge, as where virtual machines live beside containers, and is itself again:
    /// such a bridge is no network of containers, and leads outside for as long as it is there.
    async fn bridged(&self) -> anyhow::Result<()> {
        // Another kind of card than the end of a container's cable, which the host's own are here.
        const BRIDGE: &str = "card=$(ip -brief -4 address show to $1 | cut -d' ' -f1 | cut -d@ -f1)\n\
            four=$(ip -brief -4 address show to $1 | awk '{print $3}')\n\
            ip link add link $card name nic0 type macvlan mode passthru; ip link add br0 type bridge forward_delay 0\n\
            ip link set nic0 master br0; ip address flush dev $card\n\
            ip link set nic0 up; ip link set br0 up; sysctl --quiet --write net.ipv6.conf.br0.disable_ipv6=0\n\
            ip address add $four dev br0; ip address add $2/64 dev br0 nodad; echo $card $four";
        const BACK: &str = "ip link delete br0; ip link delete nic0; ip address add $2 dev $1; ip address add $3/64 dev $1 nodad";
        let (four, six) = (self.lan_host.0.to_string(), self.lan_host.1.to_string());
        let found = self
            .world
            .run(&["bash", "-euc", BRIDGE, "bash", &four, &six])
            .await?;
        let (card, four) = found.split_once(' ').context("a card and its address")?;
        self.leads_outside("br0", true).await?;
        self.check("a card is in a bridge").await?;
        self.world
            .run(&["bash", "-euc", BACK, "bash", card, four, &six])
            .await?;
        self.leads_outside("br0", false).await?;
        self.check("the bridge is gone").await
    }

    /// Waits until the kernel's table takes an interface for one that leads outside, or no more.
    async fn leads_outside(&self, name: &str, expect: bool) -> anyhow::Result<()> {
        let script = format!(
            "until {} nft list set inet appliance outside_if | grep --quiet '\"{name}\"'; do read -rt 0.1 <> <(:); done; true",
            if expect { "" } else { "!" }
        );
        let wait = Command::new(["bash", "-c", &script]).timeout(Duration::from_secs(30));
        let waited = self.world.host.exec(&wait).await;
        ensure!(
            waited.is_ok_and(|output| output.success()),
            "{name} is not taken for what it is: {}",
            self.world.run(&["ip", "-brief", "link"]).await?
        );
        Ok(())
    }

    /// Containers reach the host by its public address where everybody does, and not where nobody does.
    async fn hairpin(&self) -> anyhow::Result<()> {
        let (four, _) = self.world.host.addresses().await?;
        let rows: Vec<_> = TRIED
            .iter()
            .filter(|port| [22, 80, 443, 9000, 9100].contains(*port))
            .map(|port| (four, *port, [80, 443].contains(port)))
            .collect();
        let json = serde_json::to_string(&rows)?;
        for container in ["unpub", "six"] {
            let probe = Command::new(["docker", "exec", container, "python3", "-c", PROBE, &json]);
            let output = self.world.host.exec(&probe).await?;
            let states: Vec<PortState> =
                serde_json::from_slice(&output.stdout).with_context(|| output.error_text())?;
            for ((_, port, open), state) in rows.iter().zip(states) {
                ensure!(
                    (state == PortState::Open) == *open,
                    "from container {container}: port {port} of the host is {state:?}"
                );
            }
        }
        Ok(())
    }

    /// The same table where UFW keeps the host's own ports and ours the containers', whoever takes UFW's rules away.
    async fn where_ufw_keeps_the_host(&self) -> anyhow::Result<()> {
        self.world.run(&["ufw", "delete", "allow", "5432/tcp"]).await?;
        let (four, six) = (self.neighbour.0.to_string(), self.neighbour.1.to_string());
        for from in [&four, &six] {
            let rule = [
                "ufw", "allow", "proto", "tcp", "from", from, "to", "any", "port", "5432",
            ];
            self.world.run(&rule).await?;
        }
        self.world.run(&["ufw", "--force", "enable"]).await?;
        apply(&self.world, "ufw", self.neighbour).await?;
        self.check("mode ufw").await?;
        for argv in [
            &["iptables", "--flush"][..],
            &["ip6tables", "--flush"],
            &["nft", "flush", "ruleset"],
            &["systemctl", "start", "nftables"],
            &["systemctl", "restart", "nftables"],
            &["systemctl", "stop", "nftables"],
        ] {
            let when = format!("{} in mode ufw", argv.join(" "));
            self.world.run(argv).await?;
            self.healed().await.with_context(|| when.clone())?;
            self.ufw_is_back().await.with_context(|| when.clone())?;
            if argv == ["iptables", "--flush"] {
                // It took Docker's own way to what is published along, and UFW passes nothing on by itself.
                self.world.run(&["systemctl", "restart", "docker"]).await?;
            }
            self.check(&when).await?;
        }
        // Without an agent nobody reloads UFW: rules of ours stand in.
        self.world.run(&["systemctl", "stop", "appliance-agent"]).await?;
        self.world.run(&["systemctl", "restart", "nftables"]).await?;
        let stead = ["nft", "list", "table", "inet", "appliance_stead"];
        self.world.run(&stead).await?;
        self.check("UFW's rules are missing").await?;
        self.world.run(&["systemctl", "start", "appliance-agent"]).await?;
        self.ufw_is_back().await?;
        self.check("UFW was reloaded").await?;
        self.world.run(&["systemctl", "stop", "nftables"]).await?;
        apply(&self.world, "own", self.neighbour).await?;
        self.world.run(&["ufw", "disable"]).await?;
        self.step(&["systemctl", "restart", "docker"]).await
    }

    /// Waits until UFW's rules are in the kernel again, and ours in their stead are gone.
    async fn ufw_is_back(&self) -> anyhow::Result<()> {
        let script = "until iptables -S INPUT | grep -q ufw-before-input && ip6tables -S INPUT | grep -q ufw6-before-input \
                      && ! nft list table inet appliance_stead >/dev/null 2>&1; do read -rt 0.2 <> <(:); done; true";
        let wait = Command::new(["bash", "-c", script]).timeout(Duration::from_secs(40));
        let waited = self.world.host.exec(&wait).await;
        if waited.is_ok_and(|output| output.success()) {
            return Ok(());
        }
        let journal = ["journalctl", "--no-pager", "--lines=15", "--unit=appliance-agent"];
        anyhow::bail!(
            "UFW's rules did not come back: {}",
            self.world.run(&journal).await?
        )
    }

    /// The whole table.
    async fn check(&self, when: &str) -> anyhow::Result<()> {
        let neighbour = [&OPEN[..], &[NEIGHBOURS]].concat();
        let wan = self.half(&self.wan, "wan", self.world.host.addresses().await?, &OPEN);
        let lan = self.half(&self.lan, "lan", self.lan_host, &neighbour);
        let (wan, lan) = tokio::try_join!(wan, lan).with_context(|| format!("after {when}"))?;
        let wrong = [wan, lan].concat();
        ensure!(wrong.is_empty(), "after {when}: {}", wrong.join("; "));
        Ok(())
    }

    /// What is not as it should be, seen from one side.
    async fn half(
        &self,
        side: &Side,
        name: &str,
        host: (Ipv4Addr, Ipv6Addr),
        open: &[u16],
    ) -> anyhow::Result<Vec<String>> {
        let mut table: Vec<(String, IpAddr, u16, bool)> = Vec::new();
        for address in [IpAddr::from(host.0), IpAddr::from(host.1)] {
            for port in TRIED {
                let what = format!("{name}: {port} of {address}");
                table.push((what, address, port, open.contains(&port)));
            }
        }
        for (container, (four, six)) in &self.containers {
            for address in [Some(IpAddr::from(*four)), *six].into_iter().flatten() {
                let what = format!("{name}: straight to {container} at {address}");
                table.push((what, address, 80, false));
            }
        }
        // A packet to 127.0.0.1 with the host as its router never reaches what is published on the loopback.
        let loopback = IpAddr::from([127, 0, 0, 1]);
        table.push((format!("{name}: the host's loopback"), loopback, 6379, false));
        let rows: Vec<_> = table
            .iter()
            .map(|(_, address, port, open)| (address, port, open))
            .collect();
        let json = serde_json::to_string(&rows)?;
        let output = side
            .outside
            .exec(&Command::new(["python3", "-c", PROBE, &json]))
            .await?;
        let states: Vec<PortState> =
            serde_json::from_slice(&output.stdout).with_context(|| output.error_text())?;
        ensure!(states.len() == table.len(), "{name}: a row was not tried");
        let wrong = |(what, _, _, open): &(String, IpAddr, u16, bool), state: PortState| match (open, state) {
            (true, PortState::Open) | (false, PortState::Silent) => None,
            // What is routed nowhere may be told so.
            (false, PortState::Unreachable) if what.contains("straight") || what.contains("loopback") => None,
            _ => Some(format!("{what} is {state:?}")),
        };
        Ok(table
            .iter()
            .zip(states)
            .filter_map(|(row, state)| wrong(row, state))
            .collect())
    }

    /// A stranger and a neighbour keep knocking while the host goes down and comes up: at its ports over both families,
    /// at containers' own addresses and at its loopback.
    async fn reboot(&mut self) -> anyhow::Result<()> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut knocking = Vec::new();
        for (side, (v4, v6)) in [
            (&self.wan, self.world.host.addresses().await?),
            (&self.lan, self.lan_host),
        ] {
            let closed: &[&str] = &["6379", "8080", "8081", "9000", "9100"];
            let mut doors: Vec<(IpAddr, &[&str])> = vec![(v4.into(), closed), (v6.into(), closed)];
            for (four, six) in self.containers.values() {
                doors.push(((*four).into(), &["80"]));
                doors.extend(six.map(|six| (six, &["80"][..])));
            }
            doors.push(([127, 0, 0, 1].into(), &["6379"]));
            let (outside, stopped) = (side.outside.clone(), Arc::clone(&stop));
            let doors: Vec<(IpAddr, Vec<String>)> = doors
                .into_iter()
                .map(|(address, ports)| (address, ports.iter().map(ToString::to_string).collect()))
                .collect();
            knocking.push(tokio::spawn(async move {
                let mut rounds = 0;
                while !stopped.load(Ordering::Relaxed) {
                    for (address, ports) in &doors {
                        let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
                        let found = outside
                            .probe(*address, &ports, Duration::from_millis(150))
                            .await?;
                        for (port, state) in found {
                            ensure!(
                                state != PortState::Open,
                                "port {port} of {address} was open while the host booted"
                            );
                        }
                    }
                    rounds += 1;
                }
                anyhow::Ok(rounds)
            }));
        }
        self.world.host.reboot().await?;
        self.world.ready().await?;
        stop.store(true, Ordering::Relaxed);
        for side in knocking {
            let rounds = side.await??;
            ensure!(rounds > 0, "nobody knocked while it booted");
        }
        self.lan_host = address(self.world.host.name().as_str(), "appliance-sandbox-lan").await?;
        self.works_inside_again().await?;
        self.look().await?;
        self.check("a reboot").await
    }

    async fn works_inside_again(&self) -> anyhow::Result<()> {
        self.world
            .run(&[
                "systemd-run",
                "--collect",
                "--unit=service",
                "systemd-socket-activate",
                "--accept",
                "--listen=9000",
                "cat",
            ])
            .await?;
        self.works_inside().await
    }
}

/// Whose rules hold, and one port for the neighbour.
async fn apply(world: &World, mode: &str, (four, six): (Ipv4Addr, Ipv6Addr)) -> anyhow::Result<()> {
    let host_yml = format!(
        "firewall:\n  mode: {mode}\n  open:\n    - {{port: {NEIGHBOURS}, from: [{four}, '{six}'], comment: replica}}\n"
    );
    world.host.copy_in("/root/host.yml", host_yml, 0o644).await?;
    let apply = [
        "appliance",
        "bootstrap",
        "--allow-container",
        "--host-yml",
        "/root/host.yml",
    ];
    world.run(&apply).await.map(drop)
}

/// Runs a program of this machine in an outsider's network.
async fn inside(outside: &Outside, argv: &[&str]) -> anyhow::Result<()> {
    let pid = docker(&["inspect", "--format", "{{.State.Pid}}", outside.name().as_str()]).await?;
    let output = tokio::process::Command::new("nsenter")
        .args(["--target", pid.trim(), "--net"])
        .args(argv)
        .output()
        .await
        .context("cannot run nsenter")?;
    ensure!(
        output.status.success(),
        "{argv:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// A container's addresses on a network.
async fn address(container: &str, network: &str) -> anyhow::Result<(Ipv4Addr, Ipv6Addr)> {
    let format = format!(
        "{{{{with index .NetworkSettings.Networks \"{network}\"}}}}{{{{.IPAddress}}}} {{{{.GlobalIPv6Address}}}}{{{{end}}}}"
    );
    let text = docker(&["inspect", "--format", &format, container]).await?;
    let both = text
        .trim()
        .split_once(' ')
        .and_then(|(four, six)| Some((four.parse().ok()?, six.parse().ok()?)));
    both.with_context(|| format!("{container} on {network}: {text:?}"))
}

async fn docker(argv: &[&str]) -> anyhow::Result<String> {
    let output = tokio::process::Command::new("docker").args(argv).output().await?;
    ensure!(
        output.status.success(),
        "docker {argv:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
