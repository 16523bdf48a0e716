//! Mail by SMTP.

use anyhow::Context as _;
use appliance_alerts::Notice;
use appliance_config::host::{Email, MailEncryption};
use lettre::message::{Mailbox, Message, header::ContentType};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Tls, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Tokio1Executor};

/// Sends one message to every recipient.
///
/// # Errors
/// When an address is none, or the server cannot be reached, does not show a certificate that is trusted, or refuses.
pub(super) async fn send(
    email: &Email,
    password: Option<&str>,
    host: &str,
    notice: &Notice,
    text: &str,
) -> anyhow::Result<()> {
    let from: Mailbox = email
        .from
        .parse()
        .with_context(|| format!("alerts/email/from: {:?} is no address", email.from))?;
    let domain = from.email.domain().to_owned();
    let mut message = Message::builder()
        .from(from)
        .subject(format!("[{host}] {}", notice.title()))
        // The same for each attempt, so that a mailbox shows it once.
        .message_id(Some(format!(
            "<appliance-{}-{}-{host}@{domain}>",
            notice.id,
            notice.at.as_millisecond()
        )))
        .header(ContentType::TEXT_PLAIN);
    for to in &email.to {
        let to: Mailbox = to
            .parse()
            .with_context(|| format!("alerts/email/to: {to:?} is no address"))?;
        message = message.to(to);
    }
    let message = message.body(format!("{text}\n"))?;

    let (server, port) = match email.server.split_once(':') {
        Some((server, port)) => (server, Some(port.parse().context("alerts/email/server")?)),
        None => (email.server.as_str(), None),
    };
    let usual = match email.encryption {
        MailEncryption::Starttls => 587,
        MailEncryption::Tls => 465,
        MailEncryption::None => 25,
    };
    let tls = match email.encryption {
        MailEncryption::None => Tls::None,
        MailEncryption::Starttls => Tls::Required(parameters(server)?),
        MailEncryption::Tls => Tls::Wrapper(parameters(server)?),
    };
    let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(server)
        .port(port.unwrap_or(usual))
        .hello_name(ClientId::Domain(host.to_owned()))
        .tls(tls);
    if let Some(username) = &email.username {
        transport = transport.credentials(Credentials::new(
            username.clone(),
            password.unwrap_or_default().to_owned(),
        ));
    }
    transport.build().send(message).await?;
    Ok(())
}

fn parameters(server: &str) -> anyhow::Result<TlsParameters> {
    // The mail client takes the provider of the process; somebody else may have set the same one already.
    let _set_already = rustls::crypto::aws_lc_rs::default_provider().install_default();
    TlsParameters::new_rustls(server.to_owned()).context("no certificates are trusted on this host")
}
