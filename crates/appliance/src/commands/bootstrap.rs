//! `appliance bootstrap`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use appliance_bootstrap::host::Host as _;
use appliance_bootstrap::key::KeyError;
use appliance_bootstrap::{
    ApplyError, Facts, Inputs, Local, Lock, Options, Plan, Progress, PublicKey, apply, check, firewall, gate,
    observe, plan, sshd, want,
};

use crate::failure::{Kind, failure};
use crate::{host_file, ui};

/// Turn this fresh server into an appliance
///
/// Plans first, then applies step by step; running it again changes nothing and says `0 changes`.
/// A run that was killed is continued by running it again.
#[derive(Debug, Clone, clap::Args)]
pub struct BootstrapArgs {
    /// SSH public key of an administrator (`ssh-ed25519 AAAA… name`); may be repeated
    #[arg(long, value_name = "PUBLIC KEY")]
    admin_key: Vec<String>,
    /// SSH public key that may deploy every app; may be repeated
    #[arg(long, value_name = "PUBLIC KEY")]
    deploy_key: Vec<String>,
    /// Where the Docker Engine comes from if it has to be installed
    #[arg(long, value_enum, default_value_t = DockerSource::Auto)]
    docker: DockerSource,
    /// What the host should be; installed as /etc/appliance/host.yml, which is read if this is not given
    #[arg(long, value_name = "FILE")]
    host_yml: Option<PathBuf>,
    /// The text of such a file (how it travels to another machine)
    #[arg(long, hide = true, conflicts_with = "host_yml", allow_hyphen_values = true)]
    host_yml_text: Option<String>,
    /// Replace files of ours that somebody edited
    #[arg(long)]
    force: bool,
    /// Show the plan and touch nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the plan and the outcome as JSON
    #[arg(long)]
    json: bool,
    /// Accept a container as the host, and cgroup v1 (for sandboxes)
    #[arg(long)]
    allow_container: bool,
}

/// Which packages the Docker Engine is installed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DockerSource {
    /// Docker's own repository where it can be reached, else the distribution's package
    Auto,
    /// Docker's own repository
    Docker,
    /// The distribution's package
    Distribution,
}

/// Held while a run changes the host.
pub const LOCK: &str = "/run/appliance-bootstrap.lock";

/// Observes, plans, and unless `--dry-run` applies.
///
/// # Errors
/// An unsupported system (exit code 6, nothing touched), a plan that would lock its administrator out, a step that failed.
pub fn run(args: &BootstrapArgs) -> anyhow::Result<ExitCode> {
    let options = options(args)?;
    // Somebody else than root cannot take the lock; the gate says so better.
    let _lock = match args.dry_run || !nix::unistd::Uid::effective().is_root() {
        true => None,
        false => Some(Lock::take(Path::new(LOCK))?),
    };
    let facts = observe(&Local, &options).context("cannot observe this host")?;
    supported(&options, &facts, args.json)?;
    let plan = plan(&options, &facts);
    if args.dry_run {
        return dry_run(args, &facts, &plan);
    }
    let violations = check(&plan);
    if !violations.is_empty() {
        return Err(refused(&violations));
    }
    if !args.json {
        for text in &plan.notes {
            ui::warn(text);
        }
    }
    let outcome = apply(
        &Local,
        &options,
        &plan,
        &Inputs { secrets: &NewSecrets },
        &mut show,
    )
    .map_err(stopped)?;
    let armed = armed();
    if args.json {
        ui::json(&serde_json::json!({
            "changes": outcome.changed_steps,
            "changed": outcome.changes,
            "notes": plan.notes,
            "armed": armed,
            "engine": facts.engine,
            "degraded": facts.engine.degraded(),
        }));
    } else {
        ui::line(&changes(outcome.changed_steps));
        for text in &armed {
            ui::warn(text);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What goes back by itself unless it is confirmed.
pub(crate) fn armed() -> Vec<String> {
    let mut armed = Vec::new();
    if let Ok(Some(pending)) = firewall::pending::armed(&Local, Local.now()) {
        armed.push(format!(
            "the firewall's change goes back in {} s; over a new connection: appliance firewall confirm {}",
            pending.until.saturating_sub(Local.now()),
            pending.nonce
        ));
    }
    if matches!(sshd::pending::is_armed(&Local), Ok(true)) {
        armed.push(format!(
            "sshd's change goes back in {} s; in a new session: appliance host confirm",
            firewall::pending::PATIENCE
        ));
    }
    armed
}

/// The gate's answer as an error.
///
/// # Errors
/// When the system is not supported.
pub fn supported(options: &Options, facts: &Facts, json: bool) -> anyhow::Result<()> {
    let refusals = gate::refusals(options, facts);
    if !refusals.is_empty() {
        if json {
            ui::json(&serde_json::json!({ "refusals": refusals }));
        }
        let facts: Vec<&str> = refusals.iter().map(|refusal| refusal.fact.as_str()).collect();
        let mut refused = failure(
            Kind::Unsupported,
            format!(
                "this host is not supported, nothing was touched: {}",
                facts.join("; ")
            ),
        );
        for refusal in &refusals {
            refused = refused.hint(refusal.next.clone());
        }
        return Err(refused.into());
    }
    Ok(())
}

fn dry_run(args: &BootstrapArgs, facts: &Facts, plan: &Plan) -> anyhow::Result<ExitCode> {
    let violations = check(plan);
    if args.json {
        ui::json(&serde_json::json!({
            "changes": plan.changes(), "plan": plan, "violations": violations, "facts": facts,
        }));
        return Ok(ExitCode::SUCCESS);
    }
    for handler in &plan.owed {
        ui::line(&format!("resume\n    {}", handler.title()));
    }
    for item in &plan.items {
        let lines: Vec<&String> = plan
            .pending()
            .filter(|step| step.item == item.id)
            .flat_map(|step| &step.changes)
            .collect();
        if lines.is_empty() {
            continue;
        }
        ui::line(&format!("{} ({}): {}", item.title, item.id, item.reason));
        for line in lines {
            ui::line(&format!("    {line}"));
        }
    }
    ui::line(&format!(
        "{} planned, nothing was touched",
        changes(plan.changes())
    ));
    for text in &plan.notes {
        ui::warn(text);
    }
    for violation in &violations {
        ui::warn(&format!("this plan would be refused: {violation}"));
    }
    Ok(ExitCode::SUCCESS)
}

fn changes(count: usize) -> String {
    format!("{count} {}", if count == 1 { "change" } else { "changes" })
}

fn refused(violations: &[appliance_bootstrap::plan::Violation]) -> anyhow::Error {
    let texts: Vec<String> = violations.iter().map(ToString::to_string).collect();
    failure(
        Kind::Config,
        format!("the plan is refused, nothing was touched: {}", texts.join("; ")),
    )
    .into()
}

impl BootstrapArgs {
    /// The same, only to be looked at.
    pub fn dry(&self) -> Self {
        Self {
            dry_run: true,
            ..self.clone()
        }
    }

    /// These arguments as words, for the same command on another machine; a file named here travels as its text.
    ///
    /// # Errors
    /// When `--host-yml` cannot be read, or holds mistakes.
    pub fn words(&self) -> anyhow::Result<Vec<String>> {
        let mut words = Vec::new();
        for (flag, keys) in [
            ("--admin-key", &self.admin_key),
            ("--deploy-key", &self.deploy_key),
        ] {
            for key in keys {
                words.extend([flag.to_owned(), key.clone()]);
            }
        }
        match self.docker {
            DockerSource::Auto => {}
            DockerSource::Docker => words.push("--docker=docker".to_owned()),
            DockerSource::Distribution => words.push("--docker=distribution".to_owned()),
        }
        if let Some(path) = &self.host_yml {
            // Mistakes are found here, with the name of the file as it was given.
            let (text, _) = host_file::read(path)?;
            words.extend(["--host-yml-text".to_owned(), text]);
        }
        for (flag, on) in [
            ("--force", self.force),
            ("--dry-run", self.dry_run),
            ("--json", self.json),
            ("--allow-container", self.allow_container),
        ] {
            if on {
                words.push(flag.to_owned());
            }
        }
        Ok(words)
    }

    /// Whether JSON was asked for.
    pub fn json(&self) -> bool {
        self.json
    }
}

/// What the command line and `host.yml` say together.
///
/// # Errors
/// A bad key, or mistakes in `host.yml`.
pub fn options(args: &BootstrapArgs) -> anyhow::Result<Options> {
    let mut options = Options::new(env!("CARGO_PKG_VERSION"));
    options.admin_keys = keys("--admin-key", &args.admin_key)?;
    options.deploy_keys = keys("--deploy-key", &args.deploy_key)?;
    options.docker = match args.docker {
        DockerSource::Auto => appliance_bootstrap::DockerSource::Auto,
        DockerSource::Docker => appliance_bootstrap::DockerSource::Docker,
        DockerSource::Distribution => appliance_bootstrap::DockerSource::Distribution,
    };
    // What became an appliance once is not asked again whether it may be one.
    options.allow_container = args.allow_container || crate::update::on_a_host();
    options.force = args.force;
    let installed = Path::new(appliance_config::host::PATH);
    if let Some(text) = &args.host_yml_text {
        let host = host_file::parse("host.yml", text)?;
        host_file::apply(&host, &mut options)?;
        options.host_yml = Some(text.clone());
    } else if let Some(path) = &args.host_yml {
        let (text, host) = host_file::read(path)?;
        host_file::apply(&host, &mut options)?;
        options.host_yml = Some(text);
    } else if installed.exists() {
        let (_, host) = host_file::read(installed)?;
        host_file::apply(&host, &mut options)?;
    }
    options.binary = Some(std::env::current_exe().context("cannot tell where this program lies")?);
    Ok(options)
}

/// What was done stays done; the next run goes on from there.
fn stopped(error: ApplyError) -> anyhow::Error {
    let mut text =
        String::from("bootstrap stopped; what was done stays done, and running it again goes on from there");
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    let stopped = failure(Kind::Other, text);
    match &error {
        ApplyError::Step { step, .. } if step.contains("docker-ce") => stopped
            .hint("to take the distribution's engine instead: appliance bootstrap --docker distribution")
            .into(),
        _ => stopped.into(),
    }
}

/// Public keys from the command line.
pub fn keys(option: &str, given: &[String]) -> anyhow::Result<Vec<PublicKey>> {
    given
        .iter()
        .map(|line| {
            line.parse().map_err(|error: KeyError| {
                failure(Kind::Config, format!("{option}: {error}"))
                    .hint(format!("{option} \"$(cat ~/.ssh/id_ed25519.pub)\""))
                    .into()
            })
        })
        .collect()
}

fn show(progress: Progress<'_>) {
    match progress {
        Progress::Begin { item, changes } => {
            for change in changes {
                ui::detail(&format!("{item}: {change}"));
            }
        }
        Progress::Done {
            item,
            changes,
            seconds,
        } => {
            ui::note(&format!("✓ {item}: {} ({seconds:.1} s)", changes.join("; ")));
        }
    }
}

/// Randomness of the operating system.
struct NewSecrets;

impl want::Secrets for NewSecrets {
    fn host_identity(&self) -> String {
        use age::secrecy::ExposeSecret as _;
        age::x25519::Identity::generate()
            .to_string()
            .expose_secret()
            .to_owned()
    }

    fn nonce(&self) -> String {
        hex::encode(crate::agent::random::<5>())
    }

    fn session(&self) -> String {
        std::env::var("SSH_CONNECTION").unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_mistyped_key_is_named_with_its_option_and_an_example() {
        let error = super::keys("--admin-key", &["ssh-dss AAAA old".to_owned()]).expect_err("refused");
        let (kind, hints) = crate::failure::classify(&error);
        assert_eq!(kind.code(), 2);
        assert!(
            error.to_string().starts_with("--admin-key: keys of type"),
            "{error}"
        );
        assert!(hints[0].starts_with("--admin-key"), "{hints:?}");
    }
}
