//! The engine's answers in our words. Pure.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::models::{
    ContainerInspectResponse, ContainerState, ContainerStateStatusEnum, ContainerSummary as Summary,
    ContainerSummaryStateEnum, EndpointSettings, HealthStatusEnum, ImageInspect, SystemInfo, SystemVersion,
};

use crate::engine::{
    Address, ContainerId, ContainerInfo, ContainerSummary, EngineInfo, Health, ImageInfo, LogLine, State,
    Stream,
};
use crate::error::EngineError;

/// An error of the client library.
pub(super) fn error(doing: &str, socket: &Path, error: Error) -> EngineError {
    let doing = doing.to_owned();
    match error {
        Error::DockerResponseServerError { status_code, message } => {
            let message = message.trim().to_owned();
            match status_code {
                404 => EngineError::NotFound { doing, message },
                409 => EngineError::Conflict { doing, message },
                status => EngineError::Refused {
                    doing,
                    status,
                    message,
                },
            }
        }
        Error::DockerStreamError { error } => EngineError::Refused {
            doing,
            status: 0,
            message: error,
        },
        Error::RequestTimeoutError => EngineError::TimedOut {
            doing,
            limit: super::PATIENCE,
        },
        Error::SocketNotFoundError(_) => EngineError::Unreachable {
            doing,
            socket: socket.to_owned(),
            source: error,
        },
        Error::HyperLegacyError { ref err } if err.is_connect() => EngineError::Unreachable {
            doing,
            socket: socket.to_owned(),
            source: error,
        },
        other => EngineError::Exchange { doing, source: other },
    }
}

pub(super) fn info(info: SystemInfo, version: SystemVersion, api_version: String) -> EngineInfo {
    let containerd_store = info.driver_status.unwrap_or_default().iter().any(|pair| {
        pair.first().is_some_and(|name| name == "driver-type")
            && pair
                .get(1)
                .is_some_and(|kind| kind.starts_with("io.containerd.snapshotter"))
    });
    EngineInfo {
        version: info.server_version.or(version.version).unwrap_or_default(),
        api_version,
        os: info.os_type.unwrap_or_default(),
        architecture: version.arch.unwrap_or_default(),
        live_restore: info.live_restore_enabled.unwrap_or_default(),
        log_driver: info.logging_driver.unwrap_or_default(),
        storage_driver: info.driver.unwrap_or_default(),
        containerd_store,
        data_root: info.docker_root_dir.unwrap_or_default(),
        cgroup_version: info
            .cgroup_version
            .map(|version| version.to_string())
            .unwrap_or_default(),
        cpus: info
            .ncpu
            .and_then(|count| u32::try_from(count).ok())
            .unwrap_or_default(),
        memory: info
            .mem_total
            .and_then(|bytes| u64::try_from(bytes).ok())
            .unwrap_or_default(),
        containers_running: info
            .containers_running
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or_default(),
        warnings: info.warnings.unwrap_or_default(),
    }
}

pub(super) fn image(image: ImageInspect) -> Option<ImageInfo> {
    let config = image.config.unwrap_or_default();
    let has_healthcheck = config
        .healthcheck
        .and_then(|health| health.test)
        .is_some_and(|test| test.first().is_some_and(|kind| kind != "NONE"));
    Some(ImageInfo {
        id: image.id?,
        tags: image.repo_tags.unwrap_or_default(),
        digests: image.repo_digests.unwrap_or_default(),
        os: image.os.unwrap_or_default(),
        architecture: image.architecture.unwrap_or_default(),
        variant: image.variant.filter(|variant| !variant.is_empty()),
        created: image.created.filter(|created| !created.is_empty()),
        size: image
            .size
            .and_then(|size| u64::try_from(size).ok())
            .unwrap_or_default(),
        diff_ids: image.root_fs.and_then(|root| root.layers).unwrap_or_default(),
        labels: sorted(config.labels),
        env: config.env.unwrap_or_default(),
        user: config.user.unwrap_or_default(),
        exposed_ports: config.exposed_ports.unwrap_or_default(),
        volumes: config.volumes.unwrap_or_default(),
        has_healthcheck,
    })
}

pub(super) fn container(container: ContainerInspectResponse) -> Option<ContainerInfo> {
    let state = container.state.unwrap_or_default();
    let config = container.config.unwrap_or_default();
    let networks = container
        .network_settings
        .and_then(|settings| settings.networks)
        .unwrap_or_default();
    let (health, health_log) = health(&state);
    Some(ContainerInfo {
        id: ContainerId(container.id?),
        name: bare(container.name.unwrap_or_default()),
        image_id: container.image.unwrap_or_default(),
        image: config.image.unwrap_or_default(),
        labels: sorted(config.labels),
        env: config.env.unwrap_or_default(),
        created: container.created.unwrap_or_default(),
        state: life(&state),
        exit_code: state.exit_code.unwrap_or_default(),
        oom_killed: state.oom_killed.unwrap_or_default(),
        error: state.error.unwrap_or_default(),
        started: state.started_at.unwrap_or_default(),
        finished: state.finished_at.unwrap_or_default(),
        health,
        health_log,
        restarts: container
            .restart_count
            .and_then(|count| u64::try_from(count).ok())
            .unwrap_or_default(),
        networks: networks
            .into_iter()
            .map(|(name, endpoint)| (name, address(endpoint)))
            .collect(),
        pid: state.pid.unwrap_or_default(),
        hostname: config.hostname.unwrap_or_default(),
    })
}

pub(super) fn summary(container: Summary) -> Option<ContainerSummary> {
    Some(ContainerSummary {
        id: ContainerId(container.id?),
        // A container that others link to has further names with a second slash in them.
        name: container
            .names
            .unwrap_or_default()
            .into_iter()
            .map(bare)
            .find(|name| !name.contains('/'))
            .unwrap_or_default(),
        image: container.image.unwrap_or_default(),
        image_id: container.image_id.unwrap_or_default(),
        labels: sorted(container.labels),
        state: match container.state {
            Some(ContainerSummaryStateEnum::RUNNING | ContainerSummaryStateEnum::STOPPING) => State::Running,
            Some(ContainerSummaryStateEnum::PAUSED) => State::Paused,
            Some(ContainerSummaryStateEnum::RESTARTING) => State::Restarting,
            Some(ContainerSummaryStateEnum::REMOVING) => State::Removing,
            Some(ContainerSummaryStateEnum::CREATED) => State::Created,
            Some(ContainerSummaryStateEnum::DEAD) => State::Dead,
            Some(ContainerSummaryStateEnum::EXITED | ContainerSummaryStateEnum::EMPTY) | None => {
                State::Exited
            }
        },
        status: container.status.unwrap_or_default(),
        created: container.created.unwrap_or_default(),
    })
}

pub(super) fn line(output: LogOutput) -> LogLine {
    let stream = match output {
        LogOutput::StdErr { .. } => Stream::Stderr,
        LogOutput::StdOut { .. } | LogOutput::StdIn { .. } | LogOutput::Console { .. } => Stream::Stdout,
    };
    LogLine {
        stream,
        bytes: output.into_bytes(),
    }
}

/// The word an event or a state has for a health check's verdict.
pub(super) fn verdict(word: &str) -> Health {
    match word {
        "healthy" => Health::Healthy,
        "unhealthy" => Health::Unhealthy,
        "starting" => Health::Starting,
        _ => Health::None,
    }
}

fn health(state: &ContainerState) -> (Health, Vec<String>) {
    let Some(health) = &state.health else {
        return (Health::None, Vec::new());
    };
    let verdict = match health.status {
        Some(HealthStatusEnum::HEALTHY) => Health::Healthy,
        Some(HealthStatusEnum::UNHEALTHY) => Health::Unhealthy,
        Some(HealthStatusEnum::STARTING) => Health::Starting,
        Some(HealthStatusEnum::NONE | HealthStatusEnum::EMPTY) | None => Health::None,
    };
    let log = health
        .log
        .iter()
        .flatten()
        .filter_map(|result| result.output.clone())
        .collect();
    (verdict, log)
}

fn life(state: &ContainerState) -> State {
    match state.status {
        Some(ContainerStateStatusEnum::RUNNING | ContainerStateStatusEnum::STOPPING) => State::Running,
        Some(ContainerStateStatusEnum::PAUSED) => State::Paused,
        Some(ContainerStateStatusEnum::RESTARTING) => State::Restarting,
        Some(ContainerStateStatusEnum::REMOVING) => State::Removing,
        Some(ContainerStateStatusEnum::CREATED) => State::Created,
        Some(ContainerStateStatusEnum::DEAD) => State::Dead,
        Some(ContainerStateStatusEnum::EXITED | ContainerStateStatusEnum::EMPTY) | None => State::Exited,
    }
}

fn address(endpoint: EndpointSettings) -> Address {
    // A container that does not run has empty texts here.
    Address {
        ipv4: endpoint.ip_address.and_then(|text| text.parse().ok()),
        ipv6: endpoint.global_ipv6_address.and_then(|text| text.parse().ok()),
        aliases: endpoint.aliases.unwrap_or_default(),
    }
}

fn bare(name: String) -> String {
    name.strip_prefix('/').map(str::to_owned).unwrap_or(name)
}

fn sorted(map: Option<HashMap<String, String>>) -> BTreeMap<String, String> {
    map.unwrap_or_default().into_iter().collect()
}
