//! Events, health, ends, and a daemon that goes away.

use std::time::{Duration, Instant};

use appliance_containers::engine::{Event, Happening, Health, State};
use appliance_containers::spec::{HealthCheck, Restart};
use appliance_containers::{Docker, Engine as _, ready};
use futures_util::stream::StreamExt as _;

use crate::support::{self, wait_for, with_engine, within};

#[tokio::test]
async fn docker_health_is_seen_and_its_words_are_kept() {
    with_engine(|bench| async move {
        let mut spec = bench.spec("health", "sleep 60");
        spec.health = Some(HealthCheck {
            test: ["CMD-SHELL", "echo not well; exit 1"].map(str::to_owned).to_vec(),
            interval: Some(Duration::from_millis(200)),
            retries: Some(2),
            ..HealthCheck::default()
        });
        let mut events = bench.docker.events(vec![bench.label()]);
        assert_eq!(
            within(10, "connecting", events.next()).await,
            Some(Event::Connected)
        );
        let id = bench.docker.create(&spec).await.expect("create");
        bench.docker.start(&id.0).await.expect("start");
        let sick = Happening::Health(Health::Unhealthy);
        within(20, "the verdict", wait_for(&mut events, &spec.name, &sick)).await;
        let found = bench
            .docker
            .inspect(&id.0)
            .await
            .expect("inspect")
            .expect("it exists");
        assert_eq!(found.health, Health::Unhealthy);
        assert!(
            found.health_log.iter().any(|words| words == "not well\n"),
            "{:?}",
            found.health_log
        );
    })
    .await;
}

#[tokio::test]
async fn a_crash_is_an_event_and_counts_as_a_restart() {
    with_engine(|bench| async move {
        let mut events = bench.docker.events(vec![bench.label()]);
        assert_eq!(
            within(10, "connecting", events.next()).await,
            Some(Event::Connected)
        );
        let mut spec = bench.spec("crash", "exit 9");
        spec.restart = Restart::OnFailure { retries: 2 };
        bench.docker.create(&spec).await.expect("create");
        bench.docker.start(&spec.name).await.expect("start");
        for _ in 0..3 {
            within(
                20,
                "a crash",
                wait_for(&mut events, &spec.name, &Happening::Died { code: 9 }),
            )
            .await;
        }
        let exit = within(10, "the end", bench.docker.wait_exit(&spec.name))
            .await
            .expect("wait");
        assert_eq!((exit.code, exit.oom_killed), (9, false));
        let found = bench
            .docker
            .inspect(&spec.name)
            .await
            .expect("inspect")
            .expect("it exists");
        assert_eq!((found.state, found.restarts), (State::Exited, 2));
    })
    .await;
}

#[tokio::test]
async fn a_wait_goes_on_after_the_daemon_was_away() {
    with_engine(|bench| async move {
        let directory = tempfile::tempdir().expect("directory");
        let socket = directory.path().join("docker.sock");
        let relay = support::relay(&socket);
        let docker = Docker::at(&socket);
        let spec = bench.spec("outlives", "trap 'exit 6' TERM; while true; do sleep 0.1; done");
        bench.docker.create(&spec).await.expect("create");
        bench.docker.start(&spec.name).await.expect("start");
        let waiting = tokio::spawn({
            let (docker, name) = (docker.clone(), spec.name.clone());
            async move { docker.wait_exit(&name).await }
        });
        within(10, "two connections", relay.connections(2)).await;
        relay.stop().await;
        assert!(docker.ping().await.is_err());
        let _relay = support::relay(&socket);
        bench.docker.stop(&spec.name, None).await.expect("stop");
        let exit = within(20, "the end", waiting)
            .await
            .expect("no panic")
            .expect("an exit code");
        assert_eq!(exit.code, 6);
        let error = within(10, "an answer", docker.wait_exit("engine-test-no-such-container")).await;
        assert!(error.expect_err("nothing to wait for").is_not_found());
    })
    .await;
}

#[tokio::test]
async fn ready_is_healthy_or_running_and_stable() {
    with_engine(|bench| async move {
        let ready = |id: String| {
            let docker = bench.docker.clone();
            async move { ready::wait(&docker, &id, Duration::from_millis(700)).await }
        };
        let start = async |spec: &appliance_containers::ContainerSpec| {
            bench.docker.create(spec).await.expect("create");
            bench.docker.start(&spec.name).await.expect("start");
            spec.name.clone()
        };
        let runs = start(&bench.spec("runs", "sleep 60")).await;
        let begun = Instant::now();
        within(10, "stable", ready(runs)).await.expect("it runs");
        assert!(begun.elapsed() >= Duration::from_millis(700));

        let mut spec = bench.spec("heals", "sleep 0.6; echo > /well; sleep 60");
        spec.health = Some(HealthCheck {
            test: ["CMD-SHELL", "test -e /well"].map(str::to_owned).to_vec(),
            interval: Some(Duration::from_millis(200)),
            retries: Some(50),
            ..HealthCheck::default()
        });
        within(20, "healthy", ready(start(&spec).await))
            .await
            .expect("it becomes healthy");

        let mut spec = bench.spec("ails", "sleep 60");
        spec.health = Some(HealthCheck {
            test: ["CMD-SHELL", "echo no database; false"]
                .map(str::to_owned)
                .to_vec(),
            interval: Some(Duration::from_millis(200)),
            retries: Some(1),
            ..HealthCheck::default()
        });
        let error = within(20, "unhealthy", ready(start(&spec).await))
            .await
            .expect_err("never healthy");
        assert_eq!(error.to_string(), "its health check failed: no database");

        let mut spec = bench.spec("ends", "sleep 0.3; exit 4");
        spec.restart = Restart::UnlessStopped;
        let error = within(10, "the end", ready(start(&spec).await))
            .await
            .expect_err("it ends");
        assert_eq!(error.to_string(), "it ended with exit code 4");
        let error = ready("engine-test-no-such-container".to_owned())
            .await
            .expect_err("it is not there");
        assert_eq!(error.to_string(), "it was removed");
    })
    .await;
}

#[tokio::test]
async fn without_a_daemon_every_verb_says_so_at_once() {
    let directory = tempfile::tempdir().expect("directory");
    let docker = Docker::at(directory.path().join("docker.sock"));
    let begun = Instant::now();
    let error = docker.inspect("anything").await.expect_err("nobody is there");
    assert!(error.is_unreachable());
    assert!(error.to_string().contains("systemctl status docker"), "{error}");
    assert!(docker.ping().await.is_err());
    assert!(begun.elapsed() < Duration::from_secs(2));
}

/// The daemon is stood in for by a relay in front of the real one, because stopping the real one would hurt others.
#[tokio::test]
async fn events_go_on_after_the_daemon_was_away() {
    with_engine(|bench| async move {
        let directory = tempfile::tempdir().expect("directory");
        let socket = directory.path().join("docker.sock");
        let docker = Docker::at(&socket);
        let mut events = docker.events(vec![bench.label()]);
        let relay = support::relay(&socket);
        assert_eq!(
            within(10, "connecting", events.next()).await,
            Some(Event::Connected)
        );
        let spec = bench.spec("first", "true");
        bench.docker.create(&spec).await.expect("create");
        within(
            10,
            "an event",
            wait_for(&mut events, &spec.name, &Happening::Created),
        )
        .await;

        relay.stop().await;
        let gone = within(10, "the end", events.next()).await;
        assert!(matches!(gone, Some(Event::Disconnected { .. })), "{gone:?}");
        assert!(docker.ping().await.expect_err("away").is_unreachable());

        let _relay = support::relay(&socket);
        assert_eq!(
            within(20, "coming back", events.next()).await,
            Some(Event::Connected)
        );
        let spec = bench.spec("second", "true");
        docker.create(&spec).await.expect("verbs work again too");
        within(
            10,
            "an event",
            wait_for(&mut events, &spec.name, &Happening::Created),
        )
        .await;
    })
    .await;
}
