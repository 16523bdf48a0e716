//! Bytes between a developer's machine and a port of an accessory.
//!
//! A signed change buys a ticket; each connection is one request with it, whose body goes up while the answer's comes down.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use jiff::{SignedDuration, Timestamp};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_util::io::ReaderStream;

use super::Which;
use crate::agent::api::{Body, problem};
use crate::agent::permit::Sight;
use crate::agent::{Agent, chain, random};

/// How long a ticket opens new connections.
pub const LIFE: SignedDuration = SignedDuration::from_hours(12);
/// Bytes read at once.
const CHUNK: usize = 64 << 10;
/// Tickets at a time; the oldest goes first.
const MOST: usize = 256;

/// Permission to reach one port of one accessory.
#[derive(Debug, Clone)]
pub struct Ticket {
    /// Which accessory.
    pub which: Which,
    /// Port in its container.
    pub port: u16,
    /// Whose key bought it.
    pub holder: String,
    /// Until when.
    pub expires: Timestamp,
}

/// The tickets that were sold and have not expired.
#[derive(Debug, Default)]
pub struct Tickets(Mutex<BTreeMap<String, Ticket>>);

impl Tickets {
    /// Sells a ticket; answers with its token.
    pub fn sell(&self, ticket: Ticket, now: Timestamp) -> String {
        let token = hex::encode(random::<32>());
        let mut sold = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sold.retain(|_, ticket| ticket.expires > now);
        while sold.len() >= MOST {
            let Some(oldest) = sold
                .iter()
                .min_by_key(|(_, ticket)| ticket.expires)
                .map(|(token, _)| token.clone())
            else {
                break;
            };
            sold.remove(&oldest);
        }
        sold.insert(token.clone(), ticket);
        token
    }

    /// The ticket of a token, for this accessory, while it is valid.
    pub fn check(&self, token: &str, which: &Which, now: Timestamp) -> Option<Ticket> {
        let sold = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sold.get(token)
            .filter(|ticket| ticket.which == *which && ticket.expires > now)
            .cloned()
    }
}

/// Joins a request to a port of an accessory.
pub async fn serve(
    agent: Arc<Agent>,
    sight: &Sight,
    which: Which,
    request: Request<Incoming>,
) -> Response<Body> {
    let token = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    let ticket = token.and_then(|token| agent.accessories.tickets.check(token, &which, Timestamp::now()));
    // A stolen token is of no use to another key, nor is one whose key was removed.
    let ticket = ticket.filter(|ticket| {
        let keys = agent.gate.keys().keys;
        keys.iter()
            .any(|entry| entry.fingerprint.as_str() == ticket.holder)
            && match sight {
                Sight::All => true,
                Sight::Of(entry) => entry.fingerprint.as_str() == ticket.holder,
            }
    });
    let Some(ticket) = ticket else {
        return problem(
            StatusCode::UNAUTHORIZED,
            "no-ticket",
            "this connection has no valid ticket; run appliance tunnel again",
        );
    };
    match connect(&agent, &ticket).await {
        Ok(stream) => join(stream, request),
        Err(error) => problem(StatusCode::BAD_GATEWAY, "no-connection", &chain(&*error)),
    }
}

async fn connect(agent: &Agent, ticket: &Ticket) -> anyhow::Result<TcpStream> {
    let record = agent.accessories.records.read(&ticket.which)?;
    let found = agent
        .container_of(&record)
        .await?
        .ok_or_else(|| anyhow::anyhow!("{} has no container", ticket.which))?;
    let address = found
        .networks
        .values()
        .find_map(|network| network.ipv4)
        .ok_or_else(|| anyhow::anyhow!("{} does not run, or has no address", found.name))?;
    Ok(TcpStream::connect((address, ticket.port)).await?)
}

fn join(stream: TcpStream, request: Request<Incoming>) -> Response<Body> {
    let (down, mut up) = stream.into_split();
    tokio::spawn(async move {
        let mut body = request.into_body();
        while let Some(Ok(frame)) = body.frame().await {
            let Ok(data) = frame.into_data() else { continue };
            if up.write_all(&data).await.is_err() {
                return;
            }
        }
        // The developer's side has nothing more to say; the server may.
        let _gone = up.shutdown().await;
    });
    let bytes =
        ReaderStream::with_capacity(down, CHUNK).map(|read| read.map(|bytes: Bytes| Frame::data(bytes)));
    Response::new(http_body_util::BodyExt::boxed(StreamBody::new(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn which(name: &str) -> Which {
        Which {
            app: "shop".to_owned(),
            name: name.to_owned(),
        }
    }

    #[test]
    fn a_ticket_is_for_one_accessory_and_a_time() {
        let tickets = Tickets::default();
        let now = Timestamp::UNIX_EPOCH;
        let ticket = Ticket {
            which: which("db"),
            port: 5432,
            holder: "SHA256:x".to_owned(),
            expires: now + LIFE,
        };
        let token = tickets.sell(ticket, now);
        assert_eq!(
            tickets.check(&token, &which("db"), now).map(|ticket| ticket.port),
            Some(5432)
        );
        assert!(tickets.check(&token, &which("cache"), now).is_none());
        assert!(tickets.check(&token, &which("db"), now + LIFE).is_none());
        assert!(tickets.check("", &which("db"), now).is_none());
    }

    #[test]
    fn tickets_that_nobody_uses_do_not_pile_up() {
        let tickets = Tickets::default();
        for second in 0..300 {
            let now = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(second);
            let ticket = Ticket {
                which: which("db"),
                port: 1,
                holder: String::new(),
                expires: now + LIFE,
            };
            tickets.sell(ticket, now);
        }
        assert_eq!(tickets.0.lock().expect("nobody panicked").len(), MOST);
    }
}
