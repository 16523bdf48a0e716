//! The Docker Engine: settings first, so that it never runs with others.

use crate::docker::{self, Engine, Origin};
use crate::facts::Facts;
use crate::host::Owner;
use crate::item::Item;
use crate::want::{Check, Content, FileWant, Handler, Want};

pub(super) fn items(facts: &Facts) -> Vec<Item> {
    let mut items = vec![config(facts)];
    if facts.engine_from == Origin::Docker {
        items.push(repository(facts));
    }
    items.push(engine(facts));
    items
}

fn config(facts: &Facts) -> Item {
    let swarm = matches!(facts.engine, Engine::Installed { swarm: true, .. });
    // `dockerd --validate` came with 23; an engine that is not installed has no opinion.
    let validates = match &facts.engine {
        Engine::Installed { version, .. } => docker::major(version).is_some_and(|major| major >= 23),
        _ => false,
    };
    let file = FileWant {
        path: docker::DAEMON_JSON.into(),
        content: Content::DockerDaemon {
            swarm,
            fresh: facts.docker_fresh,
            pool_free: facts.pool_free,
        },
        mode: 0o644,
        owner: Owner::root(),
        check: validates.then_some(Check(&["dockerd", "--validate", "--config-file", "{}"])),
    };
    Item {
        id: "docker-config",
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
        title: "The Docker Engine",
        reason: "apps run in containers; an engine that is there already is kept",
        references: &["M17"],
        rollback: "apt-get remove docker.io (or docker-ce); /var/lib/docker stays",
        wants,
    }
}
