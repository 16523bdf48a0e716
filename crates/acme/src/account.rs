//! The account at an authority: kept, found again, made anew when it is lost.

use instant_acme::{Account, AccountCredentials, ExternalAccountKey, NewAccount};

use crate::error::AcmeError;
use crate::http::Http;
use crate::settings::Settings;
use crate::store::Store;

/// The account that the settings describe, from the store or newly made.
pub(crate) async fn open(store: &Store, settings: &Settings) -> Result<Account, AcmeError> {
    let failed = |doing| {
        let directory = settings.directory.clone();
        move |source| AcmeError::Authority {
            directory,
            doing,
            source: Box::new(source),
        }
    };
    let builder = || Ok(Account::builder_with_http(Box::new(Http::new(settings)?)));
    if let Some(credentials) = store.account::<AccountCredentials>(&settings.directory)? {
        return builder()?
            .from_credentials(credentials)
            .await
            .map_err(failed("read its directory"));
    }
    let contact = settings.email.as_ref().map(|email| format!("mailto:{email}"));
    let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
    let binding = settings
        .external_account
        .as_ref()
        .map(|account| ExternalAccountKey::new(account.key_id.clone(), &account.key));
    let (account, credentials) = builder()?
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
        .map_err(failed("make an account"))?;
    store.keep_account(&settings.directory, &credentials)?;
    tracing::info!(
        directory = settings.directory,
        id = account.id(),
        "made an ACME account"
    );
    Ok(account)
}
