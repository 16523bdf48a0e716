//! Building the image with the `builder` section, as Kamal does (Kamal 2.12, `commands/builder/*`).
//!
//! Everything here is argument vectors: no shell sees a value of the configuration.
//! Where Kamal always pushes to a registry, a deploy loads the image into the local Docker instead, from where it goes
//! straight to the hosts.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;
use appliance_config::model::{Builder, BuilderKind, Resolved};

use super::project::Project;
use crate::failure::{Kind, failure};
use crate::ui;

/// Where the image goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output<'a> {
    /// Into the local Docker.
    Load,
    /// To the registry, under both tags.
    Registry,
    /// As `--output=type=…` says.
    Type(&'a str),
}

/// One build.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// The resolved configuration.
    pub config: &'a Resolved,
    /// Where the image goes.
    pub output: Output<'a>,
    /// Without the build cache.
    pub no_cache: bool,
    /// Added to both tags (`build dev`).
    pub suffix: &'a str,
    /// Whether `docker buildx` is there.
    pub buildx: bool,
    /// Docker's word for this machine's processor.
    pub machine: &'a str,
}

/// Kamal's name of the builder; `None` with the driver `docker`, which needs none.
pub fn builder_name(config: &Resolved) -> Option<String> {
    let builder = &config.builder;
    let remote = builder
        .remote
        .as_ref()
        .map(ToString::to_string)
        .unwrap_or_default();
    let sanitised: String = remote
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '_' || c == '-' {
                c
            } else {
                '-'
            }
        })
        .collect();
    let local = if config.registry.local {
        "-local-registry"
    } else {
        ""
    };
    match builder.kind {
        BuilderKind::Pack => None,
        BuilderKind::Local if builder.driver == "docker" => None,
        BuilderKind::Local if config.registry.local => {
            Some(format!("kamal-local-registry-{}", builder.driver))
        }
        BuilderKind::Local => Some(format!("kamal-local-{}", builder.driver)),
        BuilderKind::Remote => Some(format!("kamal-remote-{sanitised}{local}")),
        BuilderKind::Hybrid => Some(format!("kamal-hybrid-{}-{sanitised}", builder.driver)),
        BuilderKind::Cloud => Some(builder.driver.replace([' ', '/'], "-")),
    }
}

/// The commands that make the builder, each after the one before it.
pub fn create(config: &Resolved) -> Vec<Vec<String>> {
    let Some(name) = builder_name(config) else {
        return Vec::new();
    };
    let builder = &config.builder;
    let remote = builder
        .remote
        .as_ref()
        .map(ToString::to_string)
        .unwrap_or_default();
    let platform = |arches: &[String]| {
        let list: Vec<String> = arches.iter().map(|arch| format!("linux/{arch}")).collect();
        format!("--platform={}", list.join(","))
    };
    let remote_arches: Vec<String> = builder
        .arches
        .iter()
        .filter(|arch| !builder.local_arches.contains(arch))
        .cloned()
        .collect();
    let context = format!("{name}-context");
    let context_create = words(&[
        "docker",
        "context",
        "create",
        &context,
        "--description",
        &format!("{name} host"),
        "--docker",
        &format!("host={remote}"),
    ]);
    match builder.kind {
        BuilderKind::Local => vec![words(&[
            "docker",
            "buildx",
            "create",
            "--name",
            &name,
            &format!("--driver={}", builder.driver),
        ])],
        BuilderKind::Cloud => {
            let mut create = words(&["docker", "buildx", "create", "--driver"]);
            create.extend(builder.driver.split_whitespace().map(str::to_owned));
            vec![create]
        }
        BuilderKind::Remote => vec![
            context_create,
            words(&["docker", "buildx", "create", "--name", &name, &context]),
        ],
        BuilderKind::Hybrid => vec![
            words(&[
                "docker",
                "buildx",
                "create",
                &platform(&builder.local_arches),
                "--name",
                &name,
                &format!("--driver={}", builder.driver),
            ]),
            context_create,
            words(&[
                "docker",
                "buildx",
                "create",
                &platform(&remote_arches),
                "--append",
                "--name",
                &name,
                &context,
            ]),
        ],
        BuilderKind::Pack => Vec::new(),
    }
}

/// The commands that take the builder away.
pub fn remove(config: &Resolved) -> Vec<Vec<String>> {
    let Some(name) = builder_name(config) else {
        return Vec::new();
    };
    let mut commands = Vec::new();
    if matches!(config.builder.kind, BuilderKind::Remote | BuilderKind::Hybrid) {
        commands.push(words(&["docker", "context", "rm", &format!("{name}-context")]));
    }
    commands.push(words(&["docker", "buildx", "rm", &name]));
    commands
}

/// The commands of one build; more than one only for buildpacks.
///
/// # Errors
/// When the configuration asks for something that only `docker buildx` can do, and it is not there.
pub fn build(job: &Job<'_>) -> anyhow::Result<Vec<Vec<String>>> {
    let config = job.config;
    let builder = &config.builder;
    let tags = [
        format!("{}{}", config.image.absolute, job.suffix),
        format!("{}{}", config.image.latest, job.suffix),
    ];
    if builder.kind == BuilderKind::Pack {
        return Ok(pack(job, &tags));
    }
    if !job.buildx {
        plain_is_enough(job)?;
        let mut commands = vec![plain(job, &tags)];
        commands.extend(pushes(job, &tags));
        return Ok(commands);
    }
    let mut argv = words(&["docker", "buildx", "build"]);
    argv.push(match job.output {
        Output::Load => "--output=type=docker".to_owned(),
        Output::Registry => "--output=type=registry".to_owned(),
        Output::Type(kind) => format!("--output=type={kind}"),
    });
    let platforms: Vec<String> = builder
        .arches
        .iter()
        .map(|arch| format!("linux/{arch}"))
        .collect();
    argv.extend(["--platform".to_owned(), platforms.join(",")]);
    if let Some(name) = builder_name(config) {
        argv.extend(["--builder".to_owned(), name]);
    }
    if job.no_cache {
        argv.push("--no-cache".to_owned());
    }
    for tag in tags {
        argv.extend(["-t".to_owned(), tag]);
    }
    if let (Some(to), Some(from)) = (&builder.cache_to, &builder.cache_from) {
        argv.extend([
            "--cache-to".to_owned(),
            to.clone(),
            "--cache-from".to_owned(),
            from.clone(),
        ]);
    }
    options(builder, &config.service, &mut argv);
    if let Some(provenance) = &builder.provenance {
        argv.extend(["--provenance".to_owned(), provenance.to_string()]);
    }
    if let Some(sbom) = builder.sbom {
        argv.extend(["--sbom".to_owned(), sbom.to_string()]);
    }
    argv.push(builder.context.to_string());
    Ok(vec![argv])
}

/// Label, arguments, secrets, Dockerfile, target and SSH: the same for both builders.
fn options(builder: &Builder, service: &str, argv: &mut Vec<String>) {
    argv.extend(["--label".to_owned(), format!("service={service}")]);
    for (name, value) in &builder.args {
        // Without a value Docker takes the one of the environment.
        let pair = value
            .as_ref()
            .map_or_else(|| name.clone(), |value| format!("{name}={value}"));
        argv.extend(["--build-arg".to_owned(), pair]);
    }
    for secret in &builder.secret_names {
        argv.extend(["--secret".to_owned(), format!("id={secret}")]);
    }
    argv.extend(["--file".to_owned(), builder.dockerfile.to_string()]);
    if let Some(target) = &builder.target {
        argv.extend(["--target".to_owned(), target.to_string()]);
    }
    if let Some(ssh) = &builder.ssh {
        argv.extend(["--ssh".to_owned(), ssh.to_string()]);
    }
}

fn plain_is_enough(job: &Job<'_>) -> anyhow::Result<()> {
    let builder = &job.config.builder;
    let mut beyond = Vec::new();
    if builder.arches.len() > 1 || builder.arches.iter().any(|arch| arch != job.machine) {
        beyond.push("builder/arch: another architecture than this machine's");
    }
    if builder.kind != BuilderKind::Local {
        beyond.push("builder/remote or a cloud driver");
    }
    if builder.cache_to.is_some() {
        beyond.push("builder/cache");
    }
    if builder.provenance.is_some() || builder.sbom == Some(true) {
        beyond.push("builder/provenance, builder/sbom");
    }
    if let Output::Type(kind) = job.output
        && kind != "docker"
    {
        beyond.push("an output other than docker and registry");
    }
    if beyond.is_empty() {
        return Ok(());
    }
    Err(failure(
        Kind::Config,
        format!(
            "this Docker has no buildx, which is needed for {}",
            beyond.join("; ")
        ),
    )
    .hint(
        "install Docker's buildx plugin (docker-buildx, or docker-buildx-plugin from Docker's own packages)",
    )
    .into())
}

/// `docker build`, for a Docker without buildx.
fn plain(job: &Job<'_>, tags: &[String; 2]) -> Vec<String> {
    let mut argv = words(&["docker", "build"]);
    if job.no_cache {
        argv.push("--no-cache".to_owned());
    }
    for tag in tags {
        argv.extend(["-t".to_owned(), tag.clone()]);
    }
    options(&job.config.builder, &job.config.service, &mut argv);
    argv.push(job.config.builder.context.to_string());
    argv
}

/// Cloud Native Buildpacks: `pack` builds into the local Docker; for a registry the tags are pushed afterwards.
fn pack(job: &Job<'_>, tags: &[String; 2]) -> Vec<Vec<String>> {
    let config = job.config;
    let builder = &config.builder;
    let Some(pack) = &builder.pack else {
        return Vec::new();
    };
    let mut argv = words(&["pack", "build", &config.image.repository]);
    let platforms: Vec<String> = builder
        .arches
        .iter()
        .map(|arch| format!("linux/{arch}"))
        .collect();
    argv.extend(["--platform".to_owned(), platforms.join(",")]);
    argv.extend(words(&["--creation-time", "now"]));
    if let Some(image) = &pack.builder {
        argv.extend(["--builder".to_owned(), image.clone()]);
    }
    for buildpack in &pack.buildpacks {
        argv.extend(["--buildpack".to_owned(), buildpack.clone()]);
    }
    for tag in tags {
        argv.extend(["-t".to_owned(), tag.clone()]);
    }
    argv.extend([
        "--env".to_owned(),
        format!("BP_IMAGE_LABELS=service={}", config.service),
    ]);
    for (name, value) in &builder.args {
        let value = value.as_deref().unwrap_or_default();
        argv.extend(["--env".to_owned(), format!("{name}={value}")]);
    }
    if job.no_cache {
        argv.push("--clear-cache".to_owned());
    }
    argv.extend(["--path".to_owned(), builder.context.to_string()]);
    let mut commands = vec![argv];
    commands.extend(pushes(job, tags));
    commands
}

/// What brings both tags from the local Docker to the registry, where they are wanted there.
fn pushes(job: &Job<'_>, tags: &[String; 2]) -> Vec<Vec<String>> {
    if job.output != Output::Registry {
        return Vec::new();
    }
    tags.iter().map(|tag| words(&["docker", "push", tag])).collect()
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

/// Whether a deploy has something to build: buildpacks, or the Dockerfile is there.
pub fn wanted(project: &Project) -> bool {
    let builder = &project.loaded.config.builder;
    builder.pack.is_some() || project.directory.join(builder.dockerfile.to_string()).is_file()
}

/// Whether the local Docker has buildx.
pub fn has_buildx() -> bool {
    quiet(&words(&["docker", "buildx", "version"]))
}

/// Builds the image of the configuration.
///
/// # Errors
/// When the Dockerfile is missing, a build secret is missing, or the build fails.
pub fn run(project: &Project, output: Output<'_>, no_cache: bool, suffix: &str) -> anyhow::Result<()> {
    let config = &project.loaded.config;
    let builder = &config.builder;
    if !wanted(project) {
        return Err(failure(Kind::Config, format!("Missing {}", builder.dockerfile))
            .hint("set builder/dockerfile, or deploy an image that is there already: appliance deploy --skip-push")
            .into());
    }
    let buildx = has_buildx();
    let machine = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let job = Job {
        config,
        output,
        no_cache,
        suffix,
        buildx,
        machine,
    };
    let commands = build(&job)?;
    if output == Output::Registry && !config.registry.local {
        crate::commands::registry::login(project)?;
    }
    if buildx
        && let Some(name) = builder_name(config)
        && !quiet(&words(&["docker", "buildx", "inspect", &name]))
    {
        for argv in create(config) {
            spawn(&argv, &project.directory, &[])?;
        }
    }
    let names = builder.secret_names.iter().cloned().collect();
    let secrets: Vec<(String, String)> = project.secrets(&names)?.into_iter().collect();
    let mut env = secrets;
    if !buildx && (!builder.secret_names.is_empty() || builder.ssh.is_some()) {
        env.push(("DOCKER_BUILDKIT".to_owned(), "1".to_owned()));
    }
    let clone = if builder.git_clone && suffix.is_empty() {
        clean_clone(project)?
    } else {
        None
    };
    let directory = clone.as_deref().unwrap_or(&project.directory);
    let step = ui::step("build");
    for argv in commands {
        if let Err(error) = spawn(&argv, directory, &env) {
            step.failed();
            return Err(error);
        }
    }
    step.done(&config.image.absolute);
    Ok(())
}

/// Kamal's private clone: what is committed is what is built. `None` outside of a git repository.
fn clean_clone(project: &Project) -> anyhow::Result<Option<PathBuf>> {
    let git = |directory: &Path, arguments: &[&str]| -> Option<String> {
        let output = Command::new("git")
            .arg("-C")
            .arg(directory)
            .args(arguments)
            .output()
            .ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let Some(root) = git(&project.directory, &["rev-parse", "--show-toplevel"]) else {
        ui::warn(
            "this is no git repository, so the directory is built as it is; set builder/context: . to say so",
        );
        return Ok(None);
    };
    let Some(revision) = git(&project.directory, &["rev-parse", "HEAD"]) else {
        ui::warn("nothing is committed yet, so the directory is built as it is");
        return Ok(None);
    };
    if git(&project.directory, &["status", "--porcelain"]).is_some_and(|changes| !changes.is_empty()) {
        ui::warn("uncommitted changes are not built; commit them, or set builder/context: .");
    }
    let prefix = git(&project.directory, &["rev-parse", "--show-prefix"]).unwrap_or_default();
    let digest = appliance_push::Digest::of(root.as_bytes());
    let name = format!("{}-{}", project.loaded.config.service, &digest.hex()[..13]);
    let clones = std::env::temp_dir().join("kamal-clones").join(name);
    let base = Path::new(&root)
        .file_name()
        .context("the repository's directory has a name")?;
    let clone = clones.join(base);
    fs_err::create_dir_all(&clones)?;
    let run = |directory: &Path, arguments: &[&str]| {
        let mut argv = words(&["git"]);
        argv.extend(words(arguments));
        spawn_quietly(&argv, directory)
    };
    if !clone.join(".git").exists() {
        run(&clones, &["clone", "--recurse-submodules", &root])?;
    } else {
        run(&clone, &["remote", "set-url", "origin", &root])?;
        run(&clone, &["fetch", "origin"])?;
    }
    run(&clone, &["reset", "--hard", &revision])?;
    run(&clone, &["clean", "-fdx"])?;
    run(&clone, &["submodule", "update", "--init"])?;
    if git(&clone, &["rev-parse", "HEAD"]).as_deref() != Some(revision.as_str()) {
        anyhow::bail!(
            "the clone at {} is not at {revision}; remove it and try again",
            clone.display()
        );
    }
    Ok(Some(clone.join(prefix)))
}

fn quiet(argv: &[String]) -> bool {
    command(argv)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn command(argv: &[String]) -> Command {
    let mut words = argv.iter();
    let mut command = Command::new(words.next().map_or("true", String::as_str));
    command.args(words);
    command
}

/// Runs a command; what it writes is shown on standard error, as progress is.
pub fn spawn(argv: &[String], directory: &Path, env: &[(String, String)]) -> anyhow::Result<()> {
    ui::detail(&redacted(argv));
    let status = command(argv)
        .current_dir(directory)
        .envs(env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("cannot run {}", argv[0]))?;
    if status.success() {
        return Ok(());
    }
    Err(failure(
        Kind::Other,
        format!("{} failed ({status})", argv[..argv.len().min(3)].join(" ")),
    )
    .into())
}

fn spawn_quietly(argv: &[String], directory: &Path) -> anyhow::Result<()> {
    ui::detail(&argv.join(" "));
    let output = command(argv)
        .current_dir(directory)
        .output()
        .with_context(|| format!("cannot run {}", argv[0]))?;
    if output.status.success() {
        return Ok(());
    }
    anyhow::bail!(
        "{} failed: {}",
        argv.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    )
}

/// Values of build arguments may be secrets, so they are not shown (Kamal redacts them too).
fn redacted(argv: &[String]) -> String {
    let mut shown = Vec::new();
    let mut value_next = false;
    for word in argv {
        let text = match word.split_once('=') {
            Some((name, _)) if value_next => format!("{name}=[REDACTED]"),
            _ => word.clone(),
        };
        value_next = word == "--build-arg" || word == "--env";
        shown.push(text);
    }
    shown.join(" ")
}

#[cfg(test)]
mod tests;
