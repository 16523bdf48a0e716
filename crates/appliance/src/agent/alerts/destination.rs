//! Who is told, and how each wants to hear it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use appliance_alerts::{Notice, What};
use appliance_config::host::{Alerts, Email};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use super::mail;

/// How long a destination may take to answer.
const LIMIT: Duration = Duration::from_secs(20);
/// Most bytes of an answer that are read, for the reason of a refusal.
const ANSWER: usize = 4 << 10;
/// Longest message for people, characters: Telegram takes 4,096 and Discord 2,000, with all around it.
const LONGEST: usize = 1_000;
/// Where bots of Telegram are spoken to.
const TELEGRAM: &str = "https://api.telegram.org";

/// One of those who are told.
#[derive(Debug)]
pub(super) struct Destination {
    /// Its place in the settings: what waits for it follows it to a corrected address.
    pub(super) slot: String,
    /// Kind and address, for people by way of [`shown`].
    pub(super) key: String,
    how: How,
}

#[derive(Debug)]
enum How {
    Webhook(String),
    Mail {
        email: Email,
        password: Option<String>,
    },
    Ntfy {
        address: String,
        token: Option<String>,
    },
    Telegram {
        server: String,
        chat: String,
        token: String,
    },
}

/// A key for people: no path of an address. Whoever knows that of a webhook, an ntfy topic or a ping can tell lies in
/// our name, read along, or keep a dead host alive.
pub(super) fn shown(key: &str) -> String {
    match key.split_once(' ') {
        Some((kind @ ("webhook" | "ntfy" | "ping"), address)) => format!("{kind} at {}", host_of(address)),
        _ => key.to_owned(),
    }
}

/// The host of an address, without log-in and path.
pub(in crate::agent) fn host_of(address: &str) -> &str {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    host.rsplit_once('@').map_or(host, |(_, host)| host)
}

/// A destination's answer that is no.
#[derive(Debug, thiserror::Error)]
#[error("it answered {status} {why}")]
struct Refused {
    status: http::StatusCode,
    why: String,
}

/// Whether the destination will not have this very notice, as opposed to any just now.
pub(super) fn is_lasting(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| {
        refused.status.is_client_error() && !matches!(refused.status.as_u16(), 401 | 403 | 408 | 429)
    })
}

/// The places in the settings that name somebody, whether they can be told or not.
pub(super) fn slots(alerts: &Alerts) -> Vec<String> {
    let webhooks = (1..=alerts.webhooks.len()).map(|number| format!("webhook {number}"));
    let others = [
        ("mail", alerts.email.is_some()),
        ("ntfy", alerts.ntfy.is_some()),
        ("telegram", alerts.telegram.is_some()),
    ];
    webhooks
        .chain(
            others
                .into_iter()
                .filter(|(_, there)| *there)
                .map(|(slot, _)| slot.to_owned()),
        )
        .collect()
}

/// Those that can be told, and why others cannot.
pub(super) fn all(alerts: &Alerts, secrets: &Path) -> (Vec<Destination>, Vec<String>) {
    let lines = super::super::host_env::read(secrets);
    let mut problems = Vec::new();
    let mut found: Vec<Destination> = alerts
        .webhooks
        .iter()
        .enumerate()
        .map(|(index, address)| Destination {
            slot: format!("webhook {}", index + 1),
            key: format!("webhook {address}"),
            how: How::Webhook(address.clone()),
        })
        .collect();
    if let Some(email) = &alerts.email {
        match optional(email.password.as_ref(), &lines, secrets) {
            Ok(password) => found.push(Destination {
                slot: "mail".to_owned(),
                key: format!("mail to {} by {}", email.to.join(", "), email.server),
                how: How::Mail {
                    email: email.clone(),
                    password,
                },
            }),
            Err(why) => problems.push(format!("no mail is sent: {why}")),
        }
    }
    if let Some(address) = &alerts.ntfy {
        match optional(alerts.ntfy_token.as_ref(), &lines, secrets) {
            Ok(token) => found.push(Destination {
                slot: "ntfy".to_owned(),
                key: format!("ntfy {address}"),
                how: How::Ntfy {
                    address: address.clone(),
                    token,
                },
            }),
            Err(why) => problems.push(format!("nothing is sent by ntfy: {why}")),
        }
    }
    if let Some(telegram) = &alerts.telegram {
        match secret(&telegram.token, &lines, secrets) {
            Ok(token) => found.push(Destination {
                slot: "telegram".to_owned(),
                key: format!("telegram {}", telegram.chat),
                how: How::Telegram {
                    server: telegram.server.clone().unwrap_or_else(|| TELEGRAM.to_owned()),
                    chat: telegram.chat.clone(),
                    token,
                },
            }),
            Err(why) => problems.push(format!("nothing is sent by Telegram: {why}")),
        }
    }
    (found, problems)
}

fn optional(
    name: Option<&String>,
    lines: &BTreeMap<String, String>,
    path: &Path,
) -> Result<Option<String>, String> {
    name.map(|name| secret(name, lines, path)).transpose()
}

fn secret(name: &str, lines: &BTreeMap<String, String>, path: &Path) -> Result<String, String> {
    use std::os::unix::fs::PermissionsExt as _;
    let open = fs_err::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o077 != 0);
    if open {
        return Err(format!(
            "{path} may be read by others than root; next: chmod 600 {path}",
            path = path.display()
        ));
    }
    lines.get(name).cloned().ok_or_else(|| {
        format!(
            "there is no line {name}=… in {path}; next: add it, then chmod 600 {path}",
            path = path.display()
        )
    })
}

impl Destination {
    /// Sends, and waits until it was taken.
    ///
    /// # Errors
    /// When it cannot be reached within 20 s, or does not take it.
    pub(super) async fn send(&self, notice: &Notice) -> anyhow::Result<()> {
        let host = hostname();
        let sending = async {
            match &self.how {
                How::Webhook(address) => {
                    let body = serde_json::json!({
                        "host": host, "id": notice.id, "status": notice.what, "kind": notice.kind,
                        "subject": notice.subject, "message": notice.message, "next": notice.next,
                        "since": notice.since, "at": notice.at,
                        // What chat services show of it.
                        "text": text(&host, notice), "content": text(&host, notice),
                    });
                    let request = Request::post(address).header("content-type", "application/json");
                    post(request, body.to_string()).await
                }
                How::Mail { email, password } => {
                    mail::send(email, password.as_deref(), &host, notice, &text(&host, notice)).await
                }
                How::Ntfy { address, token } => {
                    let (priority, tag) = match notice.what {
                        What::Firing | What::Again => ("high", "warning"),
                        What::Resolved | What::Test => ("default", "white_check_mark"),
                    };
                    let mut request = Request::post(address)
                        .header("title", format!("{host}: {}", notice.title()))
                        .header("priority", priority)
                        .header("tags", tag);
                    if let Some(token) = token {
                        request = request.header("authorization", format!("Bearer {token}"));
                    }
                    post(request, text(&host, notice)).await
                }
                How::Telegram { server, chat, token } => {
                    let body = serde_json::json!({ "chat_id": chat, "text": text(&host, notice) });
                    let request = Request::post(format!("{server}/bot{token}/sendMessage"))
                        .header("content-type", "application/json");
                    // Errors of the client name the address, and it holds the token.
                    let outcome = post(request, body.to_string()).await;
                    outcome.map_err(|error| match error.downcast::<Refused>() {
                        Ok(refused) => Refused {
                            why: refused.why.replace(token.as_str(), "…"),
                            ..refused
                        }
                        .into(),
                        Err(error) => {
                            anyhow::anyhow!("{}", format!("{error:#}").replace(token.as_str(), "…"))
                        }
                    })
                }
            }
        };
        tokio::time::timeout(LIMIT, sending)
            .await
            .with_context(|| format!("no answer within {} s", LIMIT.as_secs()))?
    }
}

/// The whole notice for people.
fn text(host: &str, notice: &Notice) -> String {
    let mut message: String = notice.message.chars().take(LONGEST).collect();
    if message.len() < notice.message.len() {
        message.push_str(" …; the whole of it: appliance alerts list");
    }
    let mut text = format!("{host}: {}\n{message}", notice.title());
    if !notice.next.is_empty() {
        text.push_str(&format!("\nnext: {}", notice.next));
    }
    if notice.kind.is_some() {
        text.push_str(&format!(
            "\nsince {}",
            notice.since.strftime("%Y-%m-%d %H:%M:%S UTC")
        ));
    }
    text
}

fn hostname() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "unknown".to_owned())
}

async fn post(request: http::request::Builder, body: String) -> anyhow::Result<()> {
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .try_with_platform_verifier()
        .context("no certificates are trusted on this host")?
        .https_or_http()
        .enable_http1()
        .build();
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
    let answer = client.request(request.body(Full::from(body))?).await?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    let why = Limited::new(answer.into_body(), ANSWER).collect().await;
    let why = why.map(|why| String::from_utf8_lossy(&why.to_bytes()).trim().to_owned());
    Err(Refused {
        status,
        why: why.unwrap_or_default(),
    }
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_of_a_webhook_holds_no_secret() {
        assert_eq!(
            shown("webhook https://user:pass@hooks.example.com/services/T0/B0/secret"),
            "webhook at hooks.example.com"
        );
        assert_eq!(shown("ntfy https://ntfy.sh/topic"), "ntfy at ntfy.sh");
        assert_eq!(
            shown("ping https://hc.example.com?id=42"),
            "ping at hc.example.com"
        );
        assert_eq!(shown("telegram 42"), "telegram 42");
    }

    #[test]
    fn only_a_refusal_of_this_notice_is_lasting() {
        let lasting = |status: u16| {
            let status = http::StatusCode::from_u16(status).expect("a status");
            is_lasting(
                &Refused {
                    status,
                    why: String::new(),
                }
                .into(),
            )
        };
        assert!(lasting(400) && lasting(413));
        assert!(!lasting(429) && !lasting(401) && !lasting(500) && !lasting(503));
        assert!(!is_lasting(&anyhow::anyhow!("no answer")));
    }

    #[test]
    fn a_long_message_is_cut_for_people() {
        let notice = Notice {
            id: 1,
            what: What::Firing,
            kind: None,
            subject: String::new(),
            message: "ä".repeat(5_000),
            next: "next".to_owned(),
            since: jiff::Timestamp::UNIX_EPOCH,
            at: jiff::Timestamp::UNIX_EPOCH,
        };
        let text = text("host", &notice);
        assert!(text.chars().count() < 1_200, "{}", text.chars().count());
        assert!(text.contains("alerts list") && text.ends_with("next: next"));
    }

    #[test]
    fn a_secret_that_others_may_read_or_that_is_not_there_is_told_with_the_next_command() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("secrets");
        fs_err::write(&path, "TOKEN=abc\n").expect("written");
        let alerts: Alerts = serde_json::from_value(serde_json::json!({
            "telegram": { "chat": "1", "token": "TOKEN" },
            "ntfy": "https://ntfy.sh/x", "ntfy_token": "OTHER",
        }))
        .expect("settings");
        let chmod = |mode| {
            fs_err::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("changed");
        };
        chmod(0o644);
        let (found, problems) = all(&alerts, &path);
        assert!(found.is_empty() && problems.len() == 2, "{problems:?}");
        assert_eq!(
            slots(&alerts),
            ["ntfy", "telegram"],
            "what waits for them is not forgotten"
        );
        assert!(problems[0].contains("chmod 600"), "{problems:?}");
        chmod(0o600);
        let (found, problems) = all(&alerts, &path);
        assert_eq!(found.len(), 1);
        assert!(problems[0].contains("no line OTHER="), "{problems:?}");
    }
}
