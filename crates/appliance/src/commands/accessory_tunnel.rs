//! `appliance tunnel NAME`: a port of an accessory on this machine, over SSH.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Context as _;
use appliance_push::change::AccessoryAction;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::io::ReaderStream;

use super::accessory::Places;
use crate::developer::link::Link;
use crate::developer::targets::AppArgs;
use crate::failure::{Kind, failure};
use crate::globals::Globals;
use crate::ui;
use crate::wire::End;

/// Bytes read at once.
const CHUNK: usize = 64 << 10;

/// Give this machine a port of an accessory, such as its database, over SSH
#[derive(Debug, clap::Args)]
pub struct TunnelArgs {
    #[command(flatten)]
    app: AppArgs,
    /// The accessory's name
    name: String,
    /// Port on this machine (default: the same as in the container if it is free, else any)
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// Port in the container (default: the one that is configured, or usual for its image)
    #[arg(long, value_name = "PORT")]
    to: Option<u16>,
}

/// Listens until it is interrupted.
///
/// # Errors
/// When the host refuses, or the port on this machine is taken.
pub async fn run(args: &TunnelArgs, globals: &Globals) -> anyhow::Result<()> {
    open(&args.app, &args.name, args.port, args.to, globals).await
}

/// Listens on `local` of this machine for the port `to` of accessory `wanted` until it is interrupted.
///
/// # Errors
/// When the host refuses, or the port on this machine is taken.
pub async fn open(
    app: &AppArgs,
    wanted: &str,
    local: Option<u16>,
    to: Option<u16>,
    globals: &Globals,
) -> anyhow::Result<()> {
    let places = Places::find(app, globals, wanted).await?;
    let place = places
        .hosts
        .first()
        .with_context(|| format!("{wanted} runs nowhere"))?;
    let name = place.names.first().context("one was selected")?;
    let action = AccessoryAction::Tunnel { port: to };
    let End::Token { token, .. } = places.change(place, name, action).await? else {
        anyhow::bail!("{} answers a tunnel with something else", place.host);
    };
    let (port, token) = token
        .split_once('.')
        .and_then(|(port, token)| Some((port.parse::<u16>().ok()?, token.to_owned())))
        .context("a token that we do not understand")?;
    let listener = listen(local, port).await?;
    let address = listener.local_addr()?;
    // For scripts: where to connect is the result of the command.
    ui::line(&address.to_string());
    ui::note(&format!(
        "{address} is port {port} of {wanted} on {}; Ctrl-C ends it",
        place.host
    ));
    let way = Arc::new(Way {
        link: place.link.clone(),
        path: format!("/v1/apps/{}/accessories/{name}/tunnel", places.app),
        token,
    });
    loop {
        let (stream, _) = tokio::select! {
            accepted = listener.accept() => accepted?,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        if way.link.client().is_closed() {
            return Err(failure(
                Kind::Unreachable,
                format!("the connection to {} is lost", place.host),
            )
            .hint(format!("appliance tunnel {wanted}"))
            .into());
        }
        let way = Arc::clone(&way);
        tokio::spawn(async move {
            if let Err(error) = way.join(stream).await {
                ui::warn(&crate::agent::chain(&*error));
            }
        });
    }
}

async fn listen(wanted: Option<u16>, usual: u16) -> anyhow::Result<TcpListener> {
    let bind = |port| TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    if let Some(port) = wanted {
        return bind(port).await.map_err(|error| {
            failure(Kind::Other, format!("port {port} on this machine: {error}"))
                .hint("--port PORT")
                .into()
        });
    }
    match bind(usual).await {
        Ok(listener) => Ok(listener),
        Err(_) => bind(0).await.context("no port is free on this machine"),
    }
}

/// The way to the port.
struct Way {
    link: Link,
    path: String,
    token: String,
}

impl Way {
    /// Carries one connection to its end.
    async fn join(&self, stream: TcpStream) -> anyhow::Result<()> {
        let (up, mut down) = stream.into_split();
        let bytes =
            ReaderStream::with_capacity(up, CHUNK).map(|read| read.map(|bytes: Bytes| Frame::data(bytes)));
        let request = Request::builder()
            .method(Method::POST)
            .uri(&self.path)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .body(http_body_util::BodyExt::boxed(StreamBody::new(bytes)))
            .context("the tunnel's address")?;
        let answer = self.link.send(request).await?;
        let mut body = self.link.checked("the tunnel", answer).await?.into_body();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            if down.write_all(&data).await.is_err() {
                return Ok(());
            }
        }
        let _gone = down.shutdown().await;
        Ok(())
    }
}
