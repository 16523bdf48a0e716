//! The Docker Engine: settings first, so that it never runs with others.

use crate::docker::{self, Engine, Origin};
use crate::facts::Facts;
use crate::host::Owner;
use crate::item::{Item, Level};
use crate::options::Options;
use crate::want::{Check, Content, FileWant, Handler, Want};

pub(super) fn items(options: &Options, facts: &Facts) -> Vec<Item> {
    let mut items = vec![config(options, facts)];
    if facts.engine_from == Origin::Docker {
        items.push(repository(facts));
    }
    items.push(engine(facts));
    items.extend(switches());
    items.push(socket());
    items
}

/// Items whose keys stand in `daemon.json` with the others: they only switch, and are written by `docker-config`.
fn switches() -> Vec<Item> {
    let switch = |id, title, reason, references| Item {
        id,
        level: Level::Should,
        title,
        reason,
        references,
        rollback: "switch it off in host.yml, take its key out of /etc/docker/daemon.json, systemctl restart docker",
        wants: Vec::new(),
    };
    vec![
        switch(
            "docker-no-new-privileges",
            "Programs in containers gain no rights",
            "setuid programs are the usual way out of an app; images that use sudo inside need this off",
            &["S01", "D2.14"],
        ),
        switch(
            "docker-separate",
            "Containers of the default network do not reach each other",
            "apps have networks of their own; this only concerns what was started without one",
            &["S02", "D2.2"],
        ),
        switch(
            "docker-open-files",
            "Containers may open many files",
            "newer engines give 1024, which a busy app runs out of",
            &["S05", "D2.8"],
        ),
        switch(
            "docker-metrics",
            "The engine's metrics can be read on the host",
            "what Docker does over time, in Prometheus' form, on 127.0.0.1:9323 and nowhere else",
            &["S07"],
        ),
        switch(
            "docker-build-cache",
            "The build cache is bounded",
            "it grows until the disk is full",
            &["S06"],
        ),
    ]
}

fn socket() -> Item {
    Item {
        id: "docker-files",
        level: Level::Must,
        title: "Docker's files and socket are root's and the group's",
        reason: "whoever writes to the socket is root",
        // Certificates of an API on the network (D3.9 to D3.14) and Red Hat's files (D3.21, D3.22) are on no host of ours.
        references: &[
            "M22", "D3.1", "D3.2", "D3.3", "D3.4", "D3.5", "D3.6", "D3.7", "D3.8", "D3.15", "D3.16", "D3.17",
            "D3.18", "D3.19", "D3.20", "D3.23", "D3.24",
        ],
        rollback: "none needed: these are Docker's own modes",
        wants: vec![
            Want::Rights {
                paths: FILES.to_vec(),
            },
            Want::Owned {
                paths: FILES.iter().map(|(path, _)| *path).collect(),
            },
        ],
    }
}

/// Docker's files and sockets, and the widest mode of each.
const FILES: [(&str, u32); 10] = [
    ("/run/docker.sock", 0o660),
    ("/etc/docker", 0o755),
    ("/etc/docker/certs.d", 0o755),
    ("/etc/docker/daemon.json", 0o644),
    ("/lib/systemd/system/docker.service", 0o644),
    ("/lib/systemd/system/docker.socket", 0o644),
    ("/etc/default/docker", 0o644),
    ("/etc/containerd", 0o755),
    ("/etc/containerd/config.toml", 0o644),
    ("/run/containerd/containerd.sock", 0o660),
];

/// Whether an item of the list is switched on.
fn on(options: &Options, id: &str) -> bool {
    switches()
        .iter()
        .find(|item| item.id == id)
        .is_some_and(|item| item.is_on(options))
}

/// Whether the engine that is or will be there has metrics outside its experiments, which is since 23.
fn counts(facts: &Facts) -> bool {
    match (&facts.engine, facts.engine_from) {
        (Engine::Installed { version, .. }, _) => docker::major(version).is_some_and(|major| major >= 23),
        (_, Origin::Distribution) => !(facts.os.id == "debian" && facts.os.version == "12"),
        (_, Origin::Docker) => true,
        (_, Origin::Other) => false,
    }
}

fn config(options: &Options, facts: &Facts) -> Item {
    let swarm = matches!(facts.engine, Engine::Installed { swarm: true, .. });
    // `dockerd --validate` came with 23; an engine that is not installed has no opinion.
    let validates = match &facts.engine {
        Engine::Installed { version, .. } => docker::major(version).is_some_and(|major| major >= 23),
        _ => false,
    };
    let file = FileWant {
        path: docker::DAEMON_JSON.into(),
        content: Content::DockerDaemon(docker::Wanted {
            swarm,
            fresh: facts.docker_fresh,
            pool_free: facts.pool_free,
            log_size: options.log_size,
            no_new_privileges: on(options, "docker-no-new-privileges"),
            separate: on(options, "docker-separate"),
            // A container may not raise limits.
            open_files: on(options, "docker-open-files") && facts.container.is_none(),
            build_cache: on(options, "docker-build-cache").then_some(options.image_cache),
            ipv6: options.docker_ipv6,
            metrics: on(options, "docker-metrics") && facts.metrics_free && counts(facts),
        }),
        mode: 0o644,
        owner: Owner::root(),
        force: false,
        check: validates.then_some(Check(&["dockerd", "--validate", "--config-file", "{}"])),
    };
    Item {
        id: "docker-config",
        level: Level::Must,
        title: "Docker's defaults",
        reason: "logs are rotated, containers survive a restart of the daemon; keys of others stay",
        references: &["M18", "M19", "M20", "M21", "D2.13", "D2.15"],
        rollback: "remove our keys from /etc/docker/daemon.json; systemctl restart docker",
        wants: vec![Want::Files {
            files: vec![file],
            after: match facts.engine {
                Engine::Absent => Vec::new(),
                _ => vec![Handler::DockerReload],
            },
        }],
    }
}

fn repository(facts: &Facts) -> Item {
    let sources = docker::sources(&facts.os.id, &facts.os.codename, &facts.architecture);
    let present = matches!(facts.engine, Engine::Installed { .. });
    // An engine that is there came from somewhere; a second description of its repository would contradict the first.
    let files = if present {
        Vec::new()
    } else {
        vec![
            FileWant::ours(docker::KEY_FILE, docker::REPOSITORY_KEY),
            FileWant::ours(docker::SOURCES_FILE, sources),
        ]
    };
    Item {
        id: "docker-repository",
        level: Level::Must,
        title: "Docker's own packages",
        reason: "newer engines close holes that the distribution's has; the signing key is compiled in",
        references: &["M17", "D1.2.2"],
        rollback: "rm /etc/apt/sources.list.d/docker.sources /etc/apt/keyrings/docker.asc",
        wants: if files.is_empty() {
            Vec::new()
        } else {
            vec![Want::Files {
                files,
                after: Vec::new(),
            }]
        },
    }
}

fn engine(facts: &Facts) -> Item {
    // Also for an engine that is there: its installation may have been cut off before the last package.
    let names: &[&str] = match facts.engine_from {
        Origin::Other => &[],
        Origin::Docker => &["docker-ce", "docker-ce-cli", "containerd.io", "iptables"],
        // Debian 13 moved the client into a package of its own.
        Origin::Distribution if facts.os.id == "debian" && facts.os.version != "12" => {
            &["docker.io", "docker-cli", "iptables"]
        }
        Origin::Distribution => &["docker.io", "iptables"],
    };
    let mut wants = Vec::new();
    if !names.is_empty() {
        wants.push(Want::Packages {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        });
    }
    wants.push(Want::Unit {
        name: "docker.service".to_owned(),
    });
    Item {
        id: "docker",
        level: Level::Must,
        title: "The Docker Engine",
        reason: "apps run in containers; an engine that is there already is kept",
        references: &["M17"],
        rollback: "apt-get remove docker.io (or docker-ce); /var/lib/docker stays",
        wants,
    }
}
