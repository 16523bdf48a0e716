//! `appliance tunnel`: the host's own registry on a port of this machine, for stock clients.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use appliance_push::change::{AppName, Destination, Expectation, Repository, Verb};
use appliance_push::transport::Client;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

use super::accessory_tunnel;
use crate::developer::change::{Subject, conclude, submit};
use crate::developer::image;
use crate::developer::project::Project;
use crate::developer::reach::ReachArgs;
use crate::developer::targets::AppArgs;
use crate::failure::{Kind, failure};
use crate::globals::Globals;
use crate::ui;
use crate::wire::{self, End};

/// Let docker push, skopeo and others push into the app's repository on the primary server
///
/// `appliance tunnel -- skopeo copy docker-archive:app.tar docker://localhost:5000/app:v2` runs one command; without a
/// command the tunnel stays open until Ctrl-C. What was pushed is deployed by `appliance deploy --image host:TAG`.
#[derive(Debug, clap::Args)]
pub struct TunnelArgs {
    #[command(flatten)]
    reach: ReachArgs,
    /// An accessory to reach instead of the registry, such as the database
    #[arg(value_name = "ACCESSORY")]
    accessory: Option<String>,
    /// The app, where no configuration names it: service or service@destination
    #[arg(long, value_name = "APP", requires = "accessory")]
    app: Option<String>,
    /// Port in the accessory's container (default: the one that is configured, or usual for its image)
    #[arg(long, value_name = "PORT", requires = "accessory")]
    to: Option<u16>,
    /// Port on this machine, at 127.0.0.1 only; 0 picks a free one (default: 5000, or the accessory's own)
    #[arg(long)]
    port: Option<u16>,
    /// Repository that may be written (default: the configuration's image)
    #[arg(long, value_name = "NAME")]
    repository: Option<String>,
    /// Largest blob in bytes
    #[arg(long, default_value_t = 16 << 30)]
    bytes: u64,
    /// A command to run with the tunnel open, instead of waiting; PORT and HOST:PORT are in APPLIANCE_TUNNEL
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Where stock clients find the registry.
const PORT: u16 = 5000;

type Answer = BoxBody<Bytes, hyper::Error>;

/// Opens the tunnel; the exit code is the command's.
///
/// # Errors
/// When the host cannot be reached or refuses, or the port is taken.
pub async fn run(args: &TunnelArgs, globals: &Globals) -> anyhow::Result<ExitCode> {
    if let Some(name) = &args.accessory {
        let app = AppArgs {
            reach: args.reach.clone(),
            app: args.app.clone(),
        };
        accessory_tunnel::open(&app, name, args.port, args.to, globals).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let project = Project::open(globals)?;
    let config = &project.loaded.config;
    let repository = match &args.repository {
        Some(name) => Repository::parse(name)
            .map_err(|error| failure(Kind::Config, format!("--repository: {error}")))?,
        None => image::repository(config)?,
    };
    let settings = project.ssh();
    let link = if args.reach.on.is_empty() {
        let host = project.connecting(globals)?.remove(0);
        args.reach.connect(&host, &settings).await?
    } else {
        args.reach.hosts().await?.remove(0)
    };
    let info: wire::Host = link.get("/v1/host").await?;
    let signer = args.reach.signer(&link, &settings).await?;
    let subject = Subject {
        host: info.id,
        app: Some(AppName::parse(&config.service).context("service")?),
        destination: project
            .destination
            .as_deref()
            .map(Destination::parse)
            .transpose()
            .context("destination")?,
        expects: Expectation::Any,
    };
    let verb = Verb::Tunnel {
        repository: repository.clone(),
        bytes: args.bytes,
    };
    let End::Token { token, expires_at } = conclude(&link, submit(&link, &signer, subject, verb).await?)?
    else {
        anyhow::bail!("{} answers a tunnel without a token", link.name());
    };
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, args.port.unwrap_or(PORT))))
        .await
        .map_err(|error| {
            failure(
                Kind::Other,
                format!(
                    "cannot listen on 127.0.0.1:{}: {error}",
                    args.port.unwrap_or(PORT)
                ),
            )
            .hint("appliance tunnel --port 0")
        })?;
    let place = format!("localhost:{}", listener.local_addr()?.port());
    ui::note(&format!(
        "{place} is the registry of {} until {expires_at}; {repository} may be written",
        link.name()
    ));
    let bearer = HeaderValue::from_str(&format!("Bearer {token}")).context("the token")?;
    let serving = tokio::spawn(serve(listener, link.client().clone(), bearer));
    let code = match args.command.split_first() {
        None => {
            tokio::signal::ctrl_c().await.context("cannot wait for Ctrl-C")?;
            ExitCode::SUCCESS
        }
        Some((program, arguments)) => {
            let status = tokio::process::Command::new(program)
                .args(arguments)
                .env("APPLIANCE_TUNNEL", &place)
                .status()
                .await
                .with_context(|| format!("cannot run {program}"))?;
            ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1))
        }
    };
    serving.abort();
    Ok(code)
}

async fn serve(listener: TcpListener, client: Client, bearer: HeaderValue) {
    let bearer = Arc::new(bearer);
    while let Ok((stream, _)) = listener.accept().await {
        let (client, bearer) = (client.clone(), Arc::clone(&bearer));
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let (client, bearer) = (client.clone(), Arc::clone(&bearer));
                async move { Ok::<_, std::convert::Infallible>(forward(&client, &bearer, request).await) }
            });
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let _cut = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// Passes a request on with our token in place of whatever the client says of itself.
async fn forward(client: &Client, bearer: &HeaderValue, request: Request<Incoming>) -> Response<Answer> {
    let path = request.uri().path();
    if path != "/v2" && !path.starts_with("/v2/") {
        return plain(StatusCode::NOT_FOUND, "the tunnel carries /v2 only");
    }
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("/v2/", |path| path.as_str());
    let Ok(uri) = path.parse() else {
        return plain(StatusCode::BAD_REQUEST, "the address cannot be passed on");
    };
    parts.uri = uri;
    parts.version = http::Version::HTTP_2;
    // Hop by hop (RFC 9110 §7.6.1); HTTP/2 has none of them.
    for name in [
        header::CONNECTION,
        header::HOST,
        header::TE,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ] {
        parts.headers.remove(name);
    }
    parts.headers.remove("keep-alive");
    parts.headers.insert(header::AUTHORIZATION, bearer.clone());
    let body = body.map_err(std::io::Error::other).boxed();
    match client.send(Request::from_parts(parts, body)).await {
        Ok(answer) => answer.map(http_body_util::BodyExt::boxed),
        Err(error) => plain(StatusCode::BAD_GATEWAY, &crate::agent::chain(&error)),
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Answer> {
    let body = Full::new(Bytes::from(format!("{text}\n")))
        .map_err(|never| match never {})
        .boxed();
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer
}
