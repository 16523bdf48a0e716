//! One container from its creation to its removal, and what reaches its inside.

use std::time::Duration;

use appliance_containers::engine::{Event, ExecRequest, Happening, Health, LogLine, LogQuery, State, Stream};
use appliance_containers::spec::{Log, Restart};
use appliance_containers::{Docker, Engine as _, EngineError};
use futures_util::stream::{StreamExt as _, TryStreamExt as _};
use tokio::sync::mpsc;

use crate::support::{wait_for, with_engine, within};

async fn log_of(docker: &Docker, id: &str, query: LogQuery) -> Vec<(Stream, String)> {
    let lines: Vec<LogLine> = docker
        .logs(id, query)
        .try_collect()
        .await
        .expect("the log can be read");
    lines
        .into_iter()
        .map(|line| (line.stream, String::from_utf8_lossy(&line.bytes).into_owned()))
        .collect()
}

async fn run(docker: &Docker, spec: &appliance_containers::ContainerSpec) -> (i64, String) {
    let (sender, mut receiver) = mpsc::channel(64);
    let (exit, text) = tokio::join!(docker.run_once(spec, sender), async {
        let mut text = Vec::new();
        while let Some(line) = receiver.recv().await {
            text.extend_from_slice(&line.bytes);
        }
        String::from_utf8(text).expect("text")
    });
    (exit.expect("it ran").code, text)
}

#[tokio::test]
async fn the_daemon_tells_about_itself() {
    with_engine(|bench| async move {
        let info = bench.docker.info().await.expect("info");
        assert!(!info.version.is_empty());
        assert!(
            ["amd64", "arm64"].contains(&info.architecture.as_str()),
            "{}",
            info.architecture
        );
        let minor: u32 = info
            .api_version
            .strip_prefix("1.")
            .and_then(|minor| minor.parse().ok())
            .expect("1.x");
        assert!(minor >= 41);
        assert_eq!(
            info.degraded().is_empty(),
            info.live_restore && info.log_driver != "json-file"
        );
    })
    .await;
}

#[tokio::test]
async fn a_container_lives_through_all_its_states() {
    with_engine(|bench| async move {
        let docker = &bench.docker;
        let mut spec = bench.spec(
            "life",
            "echo begun; trap 'echo asked; exit 3' TERM; while true; do sleep 0.1; done",
        );
        spec.hostname = Some("chosen".to_owned());
        spec.restart = Restart::UnlessStopped;
        let name = spec.name.clone();
        assert_eq!(docker.inspect(&name).await.expect("inspect"), None);

        let id = docker.create(&spec).await.expect("create");
        let created = docker.inspect(&name).await.expect("inspect").expect("it exists");
        assert_eq!(
            (created.state, created.name.as_str(), &created.id),
            (State::Created, name.as_str(), &id)
        );
        assert_eq!(created.image_id, bench.image);
        assert_eq!(created.labels["appliance-test"], bench.name);
        assert!(matches!(
            docker.create(&spec).await,
            Err(EngineError::Conflict { .. })
        ));

        docker.start(&name).await.expect("start");
        docker.start(&name).await.expect("starting again changes nothing");
        let running = docker.inspect(&id.0).await.expect("inspect").expect("it exists");
        assert_eq!(
            (running.state, running.health, running.hostname.as_str()),
            (State::Running, Health::None, "chosen")
        );
        assert!(running.pid > 0);
        let mut followed = docker.logs(
            &name,
            LogQuery {
                follow: true,
                ..LogQuery::default()
            },
        );
        let first = within(10, "the first line", followed.next())
            .await
            .expect("a line")
            .expect("read");
        assert_eq!(&first.bytes[..], b"begun\n");

        let other = format!("{name}-replaced");
        docker.rename(&name, &other).await.expect("rename");
        docker
            .stop(&other, Some(Duration::from_secs(10)))
            .await
            .expect("stop");
        docker
            .stop(&other, None)
            .await
            .expect("stopping again changes nothing");
        let stopped = docker.inspect(&other).await.expect("inspect").expect("it exists");
        assert_eq!((stopped.state, stopped.exit_code), (State::Exited, 3));
        let rest: Vec<LogLine> = within(10, "the end of the log", followed.try_collect())
            .await
            .expect("read");
        assert_eq!(&rest[0].bytes[..], b"asked\n");

        let listed = docker.list(&[bench.label()]).await.expect("list");
        assert_eq!(
            listed.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(),
            [other.as_str()]
        );
        assert!(docker.remove(&other, false).await.expect("remove"));
        assert!(
            !docker
                .remove(&other, false)
                .await
                .expect("removing again finds nothing")
        );
    })
    .await;
}

#[tokio::test]
async fn environment_arrives_byte_for_byte() {
    with_engine(|bench| async move {
        let odd = "line one\nline two\ttab \\n back\\slash $HOME `x` \"quoted\" 'q' ünï # end ";
        let mut spec = bench.spec("env", "printf %s \"$ODD\"");
        spec.env = vec![("ODD".to_owned(), odd.to_owned())];
        assert_eq!(run(&bench.docker, &spec).await, (0, odd.to_owned()));
    })
    .await;
}

#[tokio::test]
async fn logs_keep_streams_apart_and_end_at_the_tail() {
    with_engine(|bench| async move {
        let mut spec = bench.spec("logs", "for i in 1 2 3 4 5; do echo out $i; done; echo err >&2");
        spec.log = Some(Log {
            driver: Some("local".to_owned()),
            options: [("max-size".to_owned(), "1m".to_owned())].into(),
        });
        let (code, _) = run(&bench.docker, &spec).await;
        assert_eq!(code, 0);
        let all = log_of(&bench.docker, &spec.name, LogQuery::default()).await;
        assert_eq!(all.len(), 6);
        assert!(all.contains(&(Stream::Stderr, "err\n".to_owned())));
        let out: Vec<_> = all
            .iter()
            .filter(|line| line.0 == Stream::Stdout)
            .map(|line| line.1.as_str())
            .collect();
        assert_eq!(out, ["out 1\n", "out 2\n", "out 3\n", "out 4\n", "out 5\n"]);
        let tail = log_of(
            &bench.docker,
            &spec.name,
            LogQuery {
                tail: Some(2),
                ..LogQuery::default()
            },
        )
        .await;
        assert_eq!(tail, all[4..]);
        let future = LogQuery {
            since: Some(4_000_000_000),
            ..LogQuery::default()
        };
        assert_eq!(log_of(&bench.docker, &spec.name, future).await, []);
    })
    .await;
}

#[tokio::test]
async fn a_release_command_runs_once_whoever_asks() {
    with_engine(|bench| async move {
        let mut events = bench.docker.events(vec![bench.label()]);
        assert_eq!(
            within(10, "connecting", events.next()).await,
            Some(Event::Connected)
        );
        let mut spec = bench.spec(
            "release",
            "echo ran >> /data/count; echo migrating; sleep 1; echo done; exit 7",
        );
        spec.volumes = vec![format!("{}:/data", bench.volume())];
        // A second caller, as after a restart of the agent, follows the run that is on.
        let ((first, _), (second, said)) = tokio::join!(run(&bench.docker, &spec), async {
            wait_for(&mut events, &spec.name, &Happening::Started).await;
            run(&bench.docker, &spec).await
        });
        assert_eq!((first, second), (7, 7));
        assert!(said.contains("done"), "{said}");
        // A third one comes after the end and reads what was said.
        assert_eq!(
            run(&bench.docker, &spec).await,
            (7, "migrating\ndone\n".to_owned())
        );
        let mut count = bench.spec("count", "cat /data/count");
        count.volumes = spec.volumes.clone();
        assert_eq!(run(&bench.docker, &count).await, (0, "ran\n".to_owned()));
    })
    .await;
}

#[tokio::test]
async fn containers_on_the_network_have_addresses_and_names() {
    with_engine(|bench| async move {
        let network = bench.network();
        assert!(bench.docker.ensure_network(&network).await.expect("made"));
        assert!(
            !bench
                .docker
                .ensure_network(&network)
                .await
                .expect("there already")
        );
        let mut spec = bench.spec("net", "sleep 60");
        spec.network = Some(network.clone());
        spec.aliases = vec!["db".to_owned()];
        let id = bench.docker.create(&spec).await.expect("create");
        bench.docker.start(&id.0).await.expect("start");
        let found = bench
            .docker
            .inspect(&id.0)
            .await
            .expect("inspect")
            .expect("it exists");
        assert!(
            found.ip_on(&network).is_some_and(|ip| ip.is_private()),
            "{:?}",
            found.networks
        );
        assert!(found.networks[&network].aliases.contains(&"db".to_owned()));
        bench.docker.remove(&id.0, true).await.expect("remove");
        let removed = std::process::Command::new("docker")
            .args(["network", "rm", &network])
            .output();
        assert!(removed.expect("docker").status.success());
    })
    .await;
}

#[tokio::test]
async fn a_program_that_does_not_exist_is_refused_with_dockers_words() {
    with_engine(|bench| async move {
        let mut spec = bench.spec("missing", "");
        spec.cmd = Some(vec!["/no/such/program".to_owned()]);
        bench.docker.create(&spec).await.expect("create");
        let error = bench.docker.start(&spec.name).await.expect_err("it cannot start");
        assert!(error.to_string().contains("/no/such/program"), "{error}");
        spec.image = "appliance-test-no-such-image:1".to_owned();
        spec.name.push_str("-2");
        let error = bench.docker.create(&spec).await.expect_err("there is no image");
        assert!(error.is_not_found(), "{error}");
        let error = bench
            .docker
            .start("x/../../images")
            .await
            .expect_err("not a name");
        assert!(matches!(error, EngineError::Malformed { .. }), "{error}");
    })
    .await;
}

#[tokio::test]
async fn commands_run_inside_and_tell_their_exit_code() {
    with_engine(|bench| async move {
        let spec = bench.spec("exec", "sleep 60");
        bench.docker.create(&spec).await.expect("create");
        bench.docker.start(&spec.name).await.expect("start");
        let (sender, mut receiver) = mpsc::channel(8);
        let request = ExecRequest {
            command: ["/bin/sh", "-c", "echo $WORD; exit 5"]
                .map(str::to_owned)
                .to_vec(),
            env: vec!["WORD=given".to_owned()],
            ..ExecRequest::default()
        };
        let (code, line) = tokio::join!(bench.docker.exec(&spec.name, &request, sender), receiver.recv());
        assert_eq!(code.expect("exec"), 5);
        assert_eq!(&line.expect("a line").bytes[..], b"given\n");
    })
    .await;
}

#[tokio::test]
async fn options_take_effect_inside() {
    with_engine(|bench| async move {
        let script = "ulimit -n; cat /proc/sys/net/ipv4/ip_default_ttl; cat /etc/hosts | grep added; pwd; id -u; \
            touch /x 2>/dev/null || echo read-only; touch /scratch/x && echo scratch; \
            grep /dev/shm /proc/mounts; grep CapBnd /proc/self/status; cat /proc/1/comm; hostname";
        let mut spec = bench.spec("options", script);
        for (name, value) in [
            ("ulimit", "nofile=512:1024"),
            ("sysctl", "net.ipv4.ip_default_ttl=77"),
            ("add-host", "added:10.1.2.3"),
            ("workdir", "/bin"),
            ("user", "1234"),
            ("read-only", "true"),
            ("tmpfs", "/scratch:size=1m,mode=1777"),
            ("shm-size", "8m"),
            ("cap-drop", "ALL"),
            ("init", "true"),
            ("hostname", "from-options"),
            ("memory", "64m"),
            ("pids-limit", "50"),
            ("restart", "on-failure:1"),
            ("stop-timeout", "3"),
            ("stop-signal", "SIGINT"),
            ("security-opt", "no-new-privileges"),
            ("log-opt", "max-size=1m"),
            ("log-driver", "json-file"),
        ] {
            appliance_containers::options::apply(name, &[value.to_owned()], &mut spec).expect("it applies");
        }
        let (code, said) = run(&bench.docker, &spec).await;
        assert_eq!(code, 0, "{said}");
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[0], "512");
        assert_eq!(lines[1], "77");
        assert_eq!(lines[2].split_whitespace().collect::<Vec<_>>(), ["10.1.2.3", "added"]);
        assert_eq!(lines[3..7], ["/bin", "1234", "read-only", "scratch"]);
        assert!(lines[7].contains("size=8192k"), "{}", lines[7]);
        assert_eq!(lines[8], "CapBnd:\t0000000000000000");
        assert_ne!(lines[9], "sh", "process 1 is the init");
        assert_eq!(lines[10], "from-options");
    })
    .await;
}

#[tokio::test]
async fn a_container_joins_several_networks() {
    with_engine(|bench| async move {
        let network = bench.network();
        bench.docker.ensure_network(&network).await.expect("made");
        let mut spec = bench.spec("joins", "sleep 60");
        spec.network = Some("bridge".to_owned());
        spec.tuning.more_networks = vec![network.clone()];
        let id = bench.docker.create(&spec).await.expect("create");
        bench.docker.start(&id.0).await.expect("start");
        let found = bench
            .docker
            .inspect(&id.0)
            .await
            .expect("inspect")
            .expect("it exists");
        assert!(
            found.ip_on("bridge").is_some() && found.ip_on(&network).is_some(),
            "{:?}",
            found.networks
        );

        let mut spec = bench.spec("joins-not", "sleep 60");
        spec.network = Some("bridge".to_owned());
        spec.tuning.more_networks = vec!["engine-test-no-such-network".to_owned()];
        let error = bench
            .docker
            .create(&spec)
            .await
            .expect_err("there is no such network");
        assert!(
            error.to_string().contains("engine-test-no-such-network"),
            "{error}"
        );
        assert_eq!(
            bench.docker.inspect(&spec.name).await.expect("inspect"),
            None,
            "no half container is left"
        );
    })
    .await;
}
