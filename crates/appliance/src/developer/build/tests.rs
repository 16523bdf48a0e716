//! Argument vectors against Kamal's own command lines (kamal 2.12, `test/commands/builder_test.rs`).

use std::collections::BTreeMap;

use appliance_config::runner::ProcessRunner;
use appliance_config::{LoadOptions, load};

use super::*;

fn config(builder: &str) -> Resolved {
    config_with(builder, "registry: { username: u, password: [P] }")
}

fn config_with(builder: &str, registry: &str) -> Resolved {
    let directory = tempfile::tempdir().expect("directory");
    fs_err::create_dir_all(directory.path().join("config")).expect("made");
    let text = format!("service: app\nimage: dhh/app\nservers: [1.1.1.1]\n{registry}\nbuilder: {builder}\n");
    let file = directory.path().join("config/deploy.yml");
    fs_err::File::create(&file)
        .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
        .expect("written");
    let mut options = LoadOptions::new(directory.path(), BTreeMap::new(), jiff::Zoned::now());
    options.version = Some("123".to_owned());
    let runner = ProcessRunner {
        forward_stderr: false,
    };
    load(&options, &runner).expect("a good configuration").config
}

fn line(config: &Resolved, output: Output<'_>, buildx: bool) -> String {
    let job = Job {
        config,
        output,
        no_cache: false,
        suffix: "",
        buildx,
        machine: "amd64",
    };
    let commands: Vec<String> = build(&job)
        .expect("possible")
        .iter()
        .map(|argv| argv.join(" "))
        .collect();
    commands.join(" && ")
}

#[test]
fn the_command_lines_are_kamals() {
    for (builder, expect) in [
        (
            "{ arch: amd64 }",
            "docker buildx build --output=type=registry --platform linux/amd64 --builder kamal-local-docker-container \
             -t dhh/app:123 -t dhh/app:latest --label service=app --file Dockerfile .",
        ),
        (
            "{ arch: [amd64, arm64], context: ., cache: { type: gha } }",
            "docker buildx build --output=type=registry --platform linux/amd64,linux/arm64 \
             --builder kamal-local-docker-container -t dhh/app:123 -t dhh/app:latest --cache-to type=gha \
             --cache-from type=gha --label service=app --file Dockerfile .",
        ),
        (
            "{ arch: amd64, driver: docker, args: { a: 1, b: 2 }, secrets: [token], target: prod, dockerfile: D.prod, \
             ssh: default=$SSH_AUTH_SOCK, provenance: mode=max, sbom: true, context: ./sub }",
            "docker buildx build --output=type=registry --platform linux/amd64 -t dhh/app:123 -t dhh/app:latest \
             --label service=app --build-arg a=1 --build-arg b=2 --secret id=token --file D.prod --target prod \
             --ssh default=$SSH_AUTH_SOCK --provenance mode=max --sbom true ./sub",
        ),
        (
            "{ arch: amd64, driver: cloud example_org/cloud_builder }",
            "docker buildx build --output=type=registry --platform linux/amd64 \
             --builder cloud-example_org-cloud_builder -t dhh/app:123 -t dhh/app:latest --label service=app \
             --file Dockerfile .",
        ),
        (
            "{ arch: amd64, context: ., pack: { builder: heroku/builder:24, buildpacks: [heroku/ruby] } }",
            "pack build dhh/app --platform linux/amd64 --creation-time now --builder heroku/builder:24 \
             --buildpack heroku/ruby --buildpack paketo-buildpacks/image-labels -t dhh/app:123 -t dhh/app:latest \
             --env BP_IMAGE_LABELS=service=app --path . && docker push dhh/app:123 && docker push dhh/app:latest",
        ),
    ] {
        assert_eq!(
            line(&config(builder), Output::Registry, true),
            expect,
            "{builder}"
        );
    }
}

#[test]
fn a_deploy_loads_the_image_here_with_or_without_buildx() {
    let config = config("{ arch: amd64, args: { a: x y } }");
    assert!(
        line(&config, Output::Load, true)
            .starts_with("docker buildx build --output=type=docker --platform linux/amd64")
    );
    assert_eq!(
        line(&config, Output::Load, false),
        "docker build -t dhh/app:123 -t dhh/app:latest --label service=app --build-arg a=x y --file Dockerfile ."
    );
    let job = Job {
        config: &config,
        output: Output::Load,
        no_cache: true,
        suffix: "",
        buildx: true,
        machine: "amd64",
    };
    let anew = build(&job).expect("possible");
    assert!(anew.iter().flatten().any(|word| word == "--no-cache"), "{anew:?}");
}

#[test]
fn a_registry_is_reached_without_buildx_too() {
    let config = config("{ arch: amd64 }");
    assert_eq!(
        line(&config, Output::Registry, false),
        "docker build -t dhh/app:123 -t dhh/app:latest --label service=app --file Dockerfile . \
         && docker push dhh/app:123 && docker push dhh/app:latest"
    );
}

#[test]
fn what_needs_buildx_is_refused_without_it() {
    for (builder, what) in [
        ("{ arch: arm64 }", "builder/arch"),
        ("{ arch: amd64, cache: { type: gha } }", "builder/cache"),
        ("{ arch: amd64, provenance: false }", "builder/provenance"),
    ] {
        let config = config(builder);
        let job = Job {
            config: &config,
            output: Output::Load,
            no_cache: false,
            suffix: "",
            buildx: false,
            machine: "amd64",
        };
        let error = build(&job).expect_err("refused").to_string();
        assert!(error.contains(what), "{builder}: {error}");
    }
}

#[test]
fn builders_have_kamals_names_and_are_made_its_way() {
    let local = config_with("{ arch: amd64 }", "registry: { server: localhost:5000 }");
    assert_eq!(
        builder_name(&local).as_deref(),
        Some("kamal-local-registry-docker-container")
    );
    let hybrid = config("{ arch: [amd64, arm64], remote: ssh://app@host, local: true }");
    let made: Vec<String> = create(&hybrid).iter().map(|argv| argv.join(" ")).collect();
    if hybrid.builder.kind == BuilderKind::Hybrid {
        assert_eq!(
            made,
            [
                "docker buildx create --platform=linux/amd64 --name kamal-hybrid-docker-container-ssh---app-host \
                 --driver=docker-container",
                "docker context create kamal-hybrid-docker-container-ssh---app-host-context --description \
                 kamal-hybrid-docker-container-ssh---app-host host --docker host=ssh://app@host",
                "docker buildx create --platform=linux/arm64 --append --name \
                 kamal-hybrid-docker-container-ssh---app-host \
                 kamal-hybrid-docker-container-ssh---app-host-context",
            ]
        );
    }
    let remote = config("{ arch: amd64, remote: ssh://app@host, local: false }");
    let gone: Vec<String> = remove(&remote).iter().map(|argv| argv.join(" ")).collect();
    assert_eq!(
        gone,
        [
            "docker context rm kamal-remote-ssh---app-host-context",
            "docker buildx rm kamal-remote-ssh---app-host",
        ]
    );
}

#[test]
fn values_of_build_arguments_are_not_shown() {
    let argv = words(&["docker", "build", "--build-arg", "TOKEN=secret", "--file", "a=b"]);
    assert_eq!(
        redacted(&argv),
        "docker build --build-arg TOKEN=[REDACTED] --file a=b"
    );
}
