//! The account at an authority: kept, found again, made anew when it is lost.

use instant_acme::{Account, AccountBuilder, AccountCredentials, Error, ExternalAccountKey, NewAccount};

use crate::error::AcmeError;
use crate::http::Http;
use crate::settings::Settings;
use crate::store::Store;

/// The account that the settings describe, from the store or newly made.
pub(crate) async fn open(store: &Store, settings: &Settings) -> Result<Account, AcmeError> {
    match store.account::<AccountCredentials>(&settings.directory)? {
        Some(credentials) => builder(settings)?
            .from_credentials(credentials)
            .await
            .map_err(failed(settings, "read its directory")),
        None => make(store, settings).await,
    }
}

fn builder(settings: &Settings) -> Result<AccountBuilder, AcmeError> {
    Ok(Account::builder_with_http(Box::new(Http::new(settings)?)))
}

fn failed(settings: &Settings, doing: &'static str) -> impl FnOnce(Error) -> AcmeError {
    let directory = settings.directory.clone();
    move |source| AcmeError::Authority {
        directory,
        doing,
        source: Box::new(source),
    }
}

/// A new account, which takes the place of the kept one only once the authority has granted it: an external account
/// may be bound only once, and who is refused a second must not lose the first.
pub(crate) async fn make(store: &Store, settings: &Settings) -> Result<Account, AcmeError> {
    let contact = settings.email.as_ref().map(|email| format!("mailto:{email}"));
    let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
    let binding = match &settings.external_account {
        Some(account) => Some(ExternalAccountKey::new(account.key_id.clone(), &account.key()?)),
        None => None,
    };
    let (account, credentials) = builder(settings)?
        .create(
            &NewAccount {
                contact: &contact,
                terms_of_service_agreed: true,
                only_return_existing: false,
            },
            settings.directory.clone(),
            binding.as_ref(),
        )
        .await
        .map_err(failed(settings, "make an account"))?;
    store.keep_account(&settings.directory, &credentials)?;
    tracing::info!(
        directory = settings.directory,
        id = account.id(),
        "made an ACME account"
    );
    Ok(account)
}
