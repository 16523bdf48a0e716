//! `appliance proxy VERB`: Kamal's verbs for the proxy, which here is a service of the host and not a container.
//!
//! What changes something is a command that an administrator runs on the host: signed, and recorded as such.

use std::time::Duration;

use anyhow::Context as _;
use appliance_push::session::Frame;

use super::listing::{self, ListArgs};
use super::logs::{self, Which};
use super::parts::{self, Ignored};
use super::server;
use crate::developer::hooks::Hooks;
use crate::developer::link::Link;
use crate::developer::project::Project;
use crate::developer::reach::{ReachArgs, SshSettings};
use crate::developer::session::{self, Input};
use crate::developer::targets::Target;
use crate::failure::{Kind, failure};
use crate::globals::Globals;
use crate::{ui, wire};

/// The proxy's units, as `appliance bootstrap` installs them.
const UNITS: [&str; 3] = [
    "appliance-proxy-http.socket",
    "appliance-proxy-https.socket",
    "appliance-proxy.service",
];
/// How long a successor may take to load its snapshot and take the sockets over.
const SUCCESSION: Duration = Duration::from_secs(30);
/// Between two looks at which process serves.
const LOOK: Duration = Duration::from_millis(100);

/// Kamal's verbs for the proxy
#[derive(Debug, clap::Subcommand)]
pub enum ProxyVerb {
    /// Show what the proxy serves
    Details(ListArgs),
    /// Show the proxy's log: a line for each request
    Logs(LogsArgs),
    /// Start the proxy where it does not run
    #[command(alias = "boot")]
    Start(ReachArgs),
    /// Stop the proxy, and with it every app of the host
    Stop(AskArgs),
    /// Start a new process of the proxy, which takes the sockets over: no request is dropped
    Restart(ReachArgs),
    /// The same as restart, between the hooks pre-proxy-reboot and post-proxy-reboot
    Reboot(RebootArgs),
    /// (removing the app removes its routes)
    Remove(Ignored),
    /// (the host's own settings take the place of Kamal's boot options)
    #[command(name = "boot_config", alias = "boot-config")]
    BootConfig(Ignored),
    /// Kamal's hidden parts of remove, and its move from Traefik
    #[command(
        name = "upgrade",
        aliases = ["remove_container", "remove_image", "remove_proxy_directory"],
        hide = true
    )]
    Part(Ignored),
}

/// Show the proxy's log
#[derive(Debug, clap::Args)]
pub struct LogsArgs {
    #[command(flatten)]
    reach: ReachArgs,
    #[command(flatten)]
    which: Which,
}

/// Which hosts, and whether to ask
#[derive(Debug, clap::Args)]
pub struct AskArgs {
    #[command(flatten)]
    reach: ReachArgs,
    /// Do not ask
    #[arg(short = 'y', long)]
    confirmed: bool,
}

/// Which hosts, and in which order
#[derive(Debug, clap::Args)]
pub struct RebootArgs {
    #[command(flatten)]
    reach: ReachArgs,
    /// One host after the other, with the hooks around each
    #[arg(long)]
    rolling: bool,
    /// Taken as in Kamal; there is no outage to ask about
    #[arg(short = 'y', long)]
    confirmed: bool,
}

/// Carries it out, or says why it is not needed.
///
/// # Errors
/// When a host cannot be reached or refuses.
pub async fn run(verb: &ProxyVerb, globals: &Globals) -> anyhow::Result<()> {
    match verb {
        ProxyVerb::Details(args) => listing::routes(args, globals).await,
        ProxyVerb::Logs(args) => show_log(args, globals).await,
        ProxyVerb::Start(reach) => systemctl(reach, globals, "start").await,
        ProxyVerb::Stop(args) => stop(args, globals).await,
        ProxyVerb::Restart(reach) => {
            let (links, settings) = server::reached(reach, globals).await?;
            for (name, link) in &links {
                succeed(name, link, reach, &settings).await?;
            }
            Ok(())
        }
        ProxyVerb::Reboot(args) => reboot(args, globals).await,
        ProxyVerb::Part(_) => {
            parts::of_proxy();
            Ok(())
        }
        ProxyVerb::Remove(_) => {
            ui::line(
                "routes go with their app: `appliance app remove`; the proxy itself belongs to the host",
            );
            Ok(())
        }
        ProxyVerb::BootConfig(_) => {
            ui::line(
                "ports, bind addresses and limits of the proxy are the host's: /etc/appliance/host.yml; \
                 proxy.run of deploy.yml is checked and otherwise ignored",
            );
            Ok(())
        }
    }
}

async fn show_log(args: &LogsArgs, globals: &Globals) -> anyhow::Result<()> {
    let (links, _) = server::reached(&args.reach, globals).await?;
    let query = args.which.query(jiff::Timestamp::now())?;
    let mut targets = Vec::new();
    for (name, link) in links {
        let info: wire::Host = link.get("/v1/host").await?;
        targets.push(Target {
            name,
            link,
            id: info.id,
            roles: Vec::new(),
        });
    }
    let sources = targets
        .iter()
        .map(|target| (target, target.name.clone(), format!("/v1/proxy/logs?{query}")))
        .collect();
    logs::show(&args.which, "Proxy", sources).await
}

async fn stop(args: &AskArgs, globals: &Globals) -> anyhow::Result<()> {
    let agreed = args.confirmed
        || ui::ask("This stops every app of the host, not this one alone. Type yes to go on: ")
            .is_some_and(|typed| typed == "yes");
    if !agreed {
        return Err(failure(
            Kind::Refused,
            "this stops every app of the host, not this one alone; it was not confirmed",
        )
        .hint("appliance app maintenance")
        .hint("appliance proxy stop -y")
        .into());
    }
    systemctl(&args.reach, globals, "stop").await
}

async fn systemctl(reach: &ReachArgs, globals: &Globals, verb: &str) -> anyhow::Result<()> {
    let (links, settings) = server::reached(reach, globals).await?;
    for (name, link) in &links {
        let command = ["systemctl", verb].into_iter().chain(UNITS);
        on_host(link, reach, &settings, command).await?;
        let outcome = if verb == "stop" { "stopped" } else { "runs" };
        ui::note(&format!("{name}: the proxy {outcome}"));
    }
    Ok(())
}

async fn reboot(args: &RebootArgs, globals: &Globals) -> anyhow::Result<()> {
    let (links, settings) = server::reached(&args.reach, globals).await?;
    let configured = globals.directory()?.join(&globals.config_file).exists();
    let project = configured.then(|| Project::open(globals)).transpose()?;
    let names: Vec<String> = links.iter().map(|(name, _)| name.clone()).collect();
    let hooks = project.as_ref().map(|project| {
        let mut hooks = Hooks::new(project, globals, &names);
        hooks.locked();
        hooks
    });
    let hook = async |name: &str, hosts: &[String]| match &hooks {
        Some(hooks) => hooks.run_for(name, hosts).await,
        None => Ok(()),
    };
    let groups: Vec<_> = if args.rolling {
        links.chunks(1).collect()
    } else {
        vec![links.as_slice()]
    };
    for group in groups {
        let names: Vec<String> = group.iter().map(|(name, _)| name.clone()).collect();
        hook("pre-proxy-reboot", &names).await?;
        for (name, link) in group {
            succeed(name, link, &args.reach, &settings).await?;
        }
        hook("post-proxy-reboot", &names).await?;
    }
    Ok(())
}

/// Has a new process take the sockets over, and waits until it serves.
async fn succeed(name: &str, link: &Link, reach: &ReachArgs, settings: &SshSettings) -> anyhow::Result<()> {
    let serving = async || -> anyhow::Result<Option<u32>> {
        let status: wire::Status = link.get("/v1/status").await?;
        Ok(status.proxy.map(|proxy| proxy.pid))
    };
    let before = serving().await?;
    let Some(before) = before else {
        return Err(failure(Kind::Other, format!("{name}: the proxy does not run"))
            .hint("appliance proxy start")
            .into());
    };
    let kill = [
        "systemctl",
        "kill",
        "--kill-who=main",
        "--signal=SIGUSR2",
        "appliance-proxy.service",
    ];
    let step = ui::step(&format!("{name}: proxy"));
    on_host(link, reach, settings, kill.into_iter()).await?;
    // The successor announces itself to systemd alone; from here only who answers can be seen.
    let begun = std::time::Instant::now();
    while begun.elapsed() < SUCCESSION {
        if let Some(after) = serving().await?.filter(|after| *after != before) {
            step.done(&format!("process {after} took over from {before}"));
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
    step.failed();
    Err(failure(
        Kind::Other,
        format!(
            "{name}: process {before} still serves after {} s; no request was dropped",
            SUCCESSION.as_secs()
        ),
    )
    .hint("appliance proxy logs")
    .into())
}

/// Runs a command as root on the host; what it complains about is shown.
async fn on_host(
    link: &Link,
    reach: &ReachArgs,
    settings: &SshSettings,
    command: impl Iterator<Item = &str>,
) -> anyhow::Result<()> {
    let command: Vec<String> = command.map(str::to_owned).collect();
    let shown = command.join(" ");
    let session = server::begin(link, reach, settings, command).await?;
    let code = session::run(link, &session, Input::None, |frame| {
        if let Frame::Output(bytes) | Frame::Error(bytes) = frame {
            ui::raw_error(&bytes);
        }
        Ok(())
    })
    .await
    .with_context(|| format!("{}: {shown}", link.name()))?;
    if code == 0 {
        return Ok(());
    }
    Err(
        failure(Kind::Other, format!("{}: {shown} ended with {code}", link.name()))
            .hint("appliance proxy logs")
            .into(),
    )
}
