//! Certificates of many names: had before they are needed, renewed early, never given up while they are valid.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt as _;
use futures_util::stream::{self, StreamExt as _};
use instant_acme::{Account, RevocationReason, RevocationRequest};
use jiff::{SignedDuration, Timestamp};

use crate::account;
use crate::error::AcmeError;
use crate::front::Front;
use crate::http;
use crate::name::Name;
use crate::order::{self, Ordering};
use crate::schedule::{self, Failures, Window};
use crate::settings::Settings;
use crate::store::{Held, Pending, Record, Store};

/// Orders at the same time.
const AT_ONCE: usize = 4;
/// How long an authority that cannot be reached is not asked for advice.
const NO_ADVICE: SignedDuration = SignedDuration::from_mins(30);
/// How often an order is come back to whose authority does not answer about it; then another is made.
const COME_BACK: u32 = 8;
/// Longest time until [`Certificates::tend`] wants to be called again.
const LONGEST_REST: SignedDuration = SignedDuration::from_hours(6);

/// Certificates, their store and their authority.
pub struct Certificates {
    store: Store,
    front: Arc<dyn Front>,
    /// One order for a name at a time.
    names: Mutex<HashMap<Name, Arc<tokio::sync::Mutex<()>>>>,
    /// The account in use, with the settings it belongs to.
    account: tokio::sync::Mutex<Option<(Settings, Account)>>,
    /// Records that the disk did not take; each look at one tries again.
    unwritten: Mutex<BTreeMap<Name, (Record, String)>>,
    /// Names whose certificates are held and could not be shown; each pass tries again.
    unshown: Mutex<BTreeSet<Name>>,
}

/// What a pass of [`Certificates::tend`] did.
#[derive(Debug)]
pub struct Tended {
    /// Names with a new certificate.
    pub renewed: Vec<Name>,
    /// Names whose renewal failed; the former certificate is shown on.
    pub failed: Vec<(Name, AcmeError)>,
    /// When to come again.
    pub next: Timestamp,
}

impl Certificates {
    /// The certificates in `store`, shown by `front`.
    pub fn new(store: Store, front: Arc<dyn Front>) -> Self {
        Self {
            store,
            front,
            names: Mutex::default(),
            account: tokio::sync::Mutex::default(),
            unwritten: Mutex::default(),
            unshown: Mutex::default(),
        }
    }

    /// Every record there is.
    pub fn list(&self) -> Vec<Record> {
        let unwritten = self.unwritten();
        let mut records: Vec<Record> = self.store.all();
        records.retain(|record| !unwritten.contains_key(&record.name));
        records.extend(unwritten.values().map(|(record, _)| record.clone()));
        records.sort_by(|one, other| one.name.cmp(&other.name));
        records
    }

    /// What is only in memory because the disk did not take it, each with the reason.
    pub fn unkept(&self) -> Vec<(Name, String)> {
        let unwritten = self.unwritten();
        let unkept = unwritten.iter();
        unkept
            .map(|(name, (_, why))| (name.clone(), why.clone()))
            .collect()
    }

    fn unwritten(&self) -> MutexGuard<'_, BTreeMap<Name, (Record, String)>> {
        self.unwritten.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unshown(&self) -> MutexGuard<'_, BTreeSet<Name>> {
        self.unshown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a record down; one that the disk does not take is kept in memory, and tried again at each look.
    fn keep(&self, record: &Record) -> Result<(), AcmeError> {
        let outcome = self.store.write(record);
        let mut unwritten = self.unwritten();
        match &outcome {
            Ok(()) => {
                unwritten.remove(&record.name);
            }
            Err(error) => {
                unwritten.insert(record.name.clone(), (record.clone(), words(error)));
            }
        }
        outcome
    }

    fn discard(&self, name: &Name) -> Result<(), AcmeError> {
        self.unwritten().remove(name);
        self.unshown().remove(name);
        self.store.remove(name)
    }

    /// Makes sure that each name has a certificate that is shown; names that have one cost nothing.
    ///
    /// A certificate in hand is never given up for a failure: only a name without a valid one can fail here.
    ///
    /// # Errors
    /// The names that cannot be served, each with its reason.
    pub async fn ensure(
        &self,
        settings: &Settings,
        names: &[Name],
        now: Timestamp,
        luck: impl Fn() -> f64 + Sync,
    ) -> Result<(), Vec<(Name, AcmeError)>> {
        let luck = &luck;
        let orders = names.iter().cloned().map(|name| {
            async move {
                let outcome = self.ensure_one(settings, &name, now, luck()).await;
                outcome.err().map(|error| (name, error))
            }
            .boxed()
        });
        let outcomes: Vec<_> = stream::iter(orders).buffer_unordered(AT_ONCE).collect().await;
        let failures: Vec<_> = outcomes.into_iter().flatten().collect();
        if failures.is_empty() {
            Ok(())
        } else {
            Err(failures)
        }
    }

    async fn ensure_one(
        &self,
        settings: &Settings,
        name: &Name,
        now: Timestamp,
        luck: f64,
    ) -> Result<(), AcmeError> {
        let lives = |held: &Held| held.validity.not_after > now + schedule::HARDLY_ALIVE;
        let does = |held: &Held| lives(held) && held.directory == settings.directory;
        // A name that needs nothing does not wait for whoever asks a slow authority about it.
        let record = self.record(name)?;
        if record.held.as_ref().is_some_and(does) {
            return self.install(&record).await;
        }
        let turn = self.turn(name);
        let _turn = turn.lock().await;
        let mut record = self.record(name)?;
        let alive = record.held.as_ref().is_some_and(lives);
        if record.held.as_ref().is_some_and(does) {
            return self.install(&record).await;
        }
        // A person waits for this order: only what the authority asked for holds it up, not our own back-off.
        let outcome = match record.failures.wait_until {
            Some(until) if until > now => Err(AcmeError::RateLimited {
                name: name.clone(),
                until,
                why: record.failures.why.clone(),
            }),
            _ => self.order(settings, &mut record, luck).await,
        };
        match outcome {
            Err(error) if alive => {
                tracing::warn!("{error}; the certificate of another authority is shown on");
                self.install(&record).await
            }
            outcome => outcome,
        }
    }

    /// Renews what is due among `names`, asks for the authority's advice, and tells when to come again.
    pub async fn tend(
        &self,
        settings: &Settings,
        names: &[Name],
        now: Timestamp,
        luck: impl Fn() -> f64 + Sync,
    ) -> Tended {
        let luck = &luck;
        let passes = names.iter().cloned().map(|name| {
            async move {
                let outcome = self.tend_one(settings, &name, now, luck()).await;
                (name, outcome)
            }
            .boxed()
        });
        let passes: Vec<_> = stream::iter(passes).buffer_unordered(AT_ONCE).collect().await;
        let mut tended = Tended {
            renewed: Vec::new(),
            failed: Vec::new(),
            next: now + LONGEST_REST,
        };
        for (name, pass) in passes {
            match pass {
                Ok((true, next)) => {
                    tended.renewed.push(name);
                    tended.next = tended.next.min(next);
                }
                Ok((false, next)) => tended.next = tended.next.min(next),
                Err(error) => {
                    let next = self
                        .record(&name)
                        .map_or(now + SignedDuration::from_mins(5), |record| {
                            next(&record, settings)
                        });
                    tended.next = tended.next.min(next);
                    tended.failed.push((name, error));
                }
            }
        }
        if !(self.unwritten().is_empty() && self.unshown().is_empty()) {
            tended.next = now;
        }
        // However bad things are, a pass a minute is enough.
        tended.next = tended.next.max(now + SignedDuration::from_mins(1));
        tended
    }

    async fn tend_one(
        &self,
        settings: &Settings,
        name: &Name,
        now: Timestamp,
        luck: f64,
    ) -> Result<(bool, Timestamp), AcmeError> {
        let turn = self.turn(name);
        let _turn = turn.lock().await;
        let mut record = self.record(name)?;
        if next(&record, settings) > now {
            self.advise(settings, &mut record, now).await;
            self.install(&record).await?;
        }
        let at = next(&record, settings);
        if at > now {
            return Ok((false, at));
        }
        self.order(settings, &mut record, luck).await?;
        Ok((true, next(&record, settings)))
    }

    /// Renews one name now.
    ///
    /// # Errors
    /// Why it cannot be had; the former certificate stays.
    pub async fn renew(&self, settings: &Settings, name: &Name, luck: f64) -> Result<(), AcmeError> {
        let turn = self.turn(name);
        let _turn = turn.lock().await;
        let mut record = self.record(name)?;
        if self.unshown().contains(name) {
            // The new one is there since the last attempt: the authority gives only so many.
            return self.install(&record).await;
        }
        self.order(settings, &mut record, luck).await
    }

    /// Keeps and shows a certificate that another program had from the authority at `directory`; it is renewed when it is due.
    ///
    /// One that we hold already and that lives longer stays.
    ///
    /// # Errors
    /// When the chain is none, has run out at `now`, or cannot be shown with this key; then nothing is kept.
    pub async fn adopt(
        &self,
        name: &Name,
        directory: &str,
        chain: &str,
        key: &str,
        now: Timestamp,
        luck: f64,
    ) -> Result<(), AcmeError> {
        let turn = self.turn(name);
        let _turn = turn.lock().await;
        let bad = |why: String| AcmeError::Certificate {
            name: name.clone(),
            why,
        };
        let validity = order::validity(chain).map_err(bad)?;
        if validity.not_after <= now + schedule::HARDLY_ALIVE {
            return Err(bad(format!("it ends at {}", validity.not_after)));
        }
        let mut record = self.record(name)?;
        let ours = record.held.as_ref().map(|held| held.validity.not_after);
        if ours.is_some_and(|end| end >= validity.not_after) {
            return self.install(&record).await;
        }
        record.held = Some(Held {
            chain: chain.to_owned(),
            key: key.to_owned(),
            validity,
            directory: directory.to_owned(),
            luck,
            advice: None,
            ask_advice_at: None,
        });
        self.install(&record).await?;
        self.keep(&record)
    }

    /// Revokes a name's certificate. With `replace` a new one with a new key is shown first, so that nobody notices.
    ///
    /// # Errors
    /// When there is none, or the new one cannot be had (then nothing was revoked), or the authority refuses.
    pub async fn revoke(
        &self,
        settings: &Settings,
        name: &Name,
        compromised: bool,
        replace: bool,
        luck: f64,
    ) -> Result<(), AcmeError> {
        let turn = self.turn(name);
        let _turn = turn.lock().await;
        let mut record = self.record(name)?;
        let Some(old) = record.held.clone() else {
            return Err(AcmeError::Unknown(name.clone()));
        };
        let leaf = order::leaf(&old.chain).ok_or_else(|| AcmeError::Certificate {
            name: name.clone(),
            why: "the stored chain is not PEM".to_owned(),
        })?;
        if compromised {
            // Whoever read the key may have read the next one beside it.
            record.pending = None;
        }
        if replace {
            self.order(settings, &mut record, luck).await?;
        }
        let reason = if compromised {
            RevocationReason::KeyCompromise
        } else if replace {
            RevocationReason::Superseded
        } else {
            RevocationReason::CessationOfOperation
        };
        // Whoever issued it revokes it, whatever the settings say now.
        let issuer = Settings {
            directory: old.directory.clone(),
            ..settings.clone()
        };
        let revoked = patient_with_nonces(async || {
            let account = self.account(&issuer).await?;
            let request = RevocationRequest {
                certificate: &leaf,
                reason: Some(reason.clone()),
            };
            account
                .revoke(&request)
                .await
                .map_err(|source| AcmeError::Authority {
                    directory: issuer.directory.clone(),
                    doing: "revoke the certificate",
                    source: Box::new(source),
                })
        });
        match revoked.await {
            Err(error) if error.problem() != Some("alreadyRevoked") => return Err(error),
            _ => {}
        }
        if !replace {
            self.discard(name)?;
            self.withdraw(name).await?;
        }
        Ok(())
    }

    /// Forgets names that nobody serves any more, once their certificates have run out.
    ///
    /// # Errors
    /// When a file cannot be removed, or the certificate is shown on.
    pub async fn forget(&self, in_use: &[Name], now: Timestamp) -> Result<Vec<Name>, AcmeError> {
        let mut gone = Vec::new();
        for record in self.list() {
            let alive = record
                .held
                .as_ref()
                .is_some_and(|held| held.validity.not_after > now);
            if !alive && !in_use.contains(&record.name) {
                self.discard(&record.name)?;
                self.withdraw(&record.name).await?;
                gone.push(record.name);
            }
        }
        Ok(gone)
    }

    fn turn(&self, name: &Name) -> Arc<tokio::sync::Mutex<()>> {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(names.entry(name.clone()).or_default())
    }

    fn record(&self, name: &Name) -> Result<Record, AcmeError> {
        let unwritten = self.unwritten().get(name).map(|(record, _)| record.clone());
        if let Some(record) = unwritten {
            if self.keep(&record).is_ok() {
                tracing::info!("the record of {name} is on the disk now");
            }
            return Ok(record);
        }
        Ok(self
            .store
            .read(name)?
            .unwrap_or_else(|| Record::new(name.clone())))
    }

    /// The account of these settings; reading a directory is not repeated for each order.
    async fn account(&self, settings: &Settings) -> Result<Account, AcmeError> {
        let mut current = self.account.lock().await;
        match &*current {
            Some((of, account)) if of == settings => Ok(account.clone()),
            _ => {
                let account = patient_with_nonces(|| account::open(&self.store, settings)).await?;
                *current = Some((settings.clone(), account.clone()));
                Ok(account)
            }
        }
    }

    /// Orders, keeps and shows a certificate; a failure is written down with its time.
    async fn order(&self, settings: &Settings, record: &mut Record, luck: f64) -> Result<(), AcmeError> {
        let (outcome, asked) = http::patiently(async {
            let outcome = self.order_twice(settings, record, luck).await;
            (outcome, http::asked())
        })
        .await;
        match outcome {
            Ok(held) => {
                record.held = Some(held);
                record.failures = Failures::default();
                record.pending = None;
                // Written down before it is shown: whoever dies in between shows it at the next start.
                // Shown even if the disk does not take it: the authority gives only so many of one name.
                if let Err(error) = self.keep(record) {
                    tracing::error!(
                        "the new certificate of {} is shown, but would not outlive a restart: {}",
                        record.name,
                        words(&error)
                    );
                }
                self.install(record).await
            }
            Err(error) => {
                // A directory that has moved its parts is read again.
                *self.account.lock().await = None;
                record.failures = Failures {
                    count: record.failures.count.saturating_add(1),
                    last: Some(Timestamp::now()),
                    wait_until: error.wait_until().or(asked),
                    why: words(&error),
                };
                if let Err(unkept) = self.keep(record) {
                    tracing::warn!("the failure is remembered only in memory: {}", words(&unkept));
                }
                Err(error)
            }
        }
    }

    async fn order_twice(
        &self,
        settings: &Settings,
        record: &mut Record,
        luck: f64,
    ) -> Result<Held, AcmeError> {
        // What could not be kept is not asked for.
        self.store.try_out()?;
        match self.try_order(settings, record, luck).await {
            // The account was removed over there (RFC 8555 §6.7): a new one does as well.
            // Other refusals, `unauthorized` among them, are about the order; the account stays.
            Err(error) if error.problem() == Some("accountDoesNotExist") => {
                tracing::warn!("{error}; making a new account");
                let account = patient_with_nonces(|| account::make(&self.store, settings)).await?;
                *self.account.lock().await = Some((settings.clone(), account));
                self.try_order(settings, record, luck).await
            }
            outcome => outcome,
        }
    }

    async fn try_order(
        &self,
        settings: &Settings,
        record: &mut Record,
        luck: f64,
    ) -> Result<Held, AcmeError> {
        let account = self.account(settings).await?;
        let name = record.name.clone();
        let former = record
            .held
            .as_ref()
            .filter(|held| held.directory == settings.directory)
            .map(|held| held.chain.clone());
        let ordering = Ordering {
            account: &account,
            settings,
            front: &*self.front,
            name: &name,
            replaces: former.as_deref(),
        };
        let issued = match self.resume(&ordering, record).await? {
            Some(issued) => issued,
            None => {
                let order = ordering.prove().await?;
                let pending = ordering.pending(&order)?;
                record.pending = Some(pending.clone());
                // Without a disk the names are proved all the same, and only a crash would cost the order.
                if let Err(error) = self.keep(record) {
                    tracing::warn!("the order is remembered only in memory: {}", words(&error));
                }
                let outcome = ordering.finish(&pending, Some(order)).await;
                outcome.map_err(|unfinished| {
                    if unfinished.is_over {
                        record.pending = None;
                    }
                    unfinished.error
                })?
            }
        };
        Ok(Held {
            chain: issued.chain,
            key: issued.key,
            validity: issued.validity,
            directory: settings.directory.clone(),
            luck,
            advice: None,
            ask_advice_at: None,
        })
    }

    /// The certificate of an order that an earlier attempt left behind; `None` when there is none worth having.
    async fn resume(
        &self,
        ordering: &Ordering<'_>,
        record: &mut Record,
    ) -> Result<Option<order::Issued>, AcmeError> {
        let directory = &ordering.settings.directory;
        let Some(pending) = record
            .pending
            .clone()
            .filter(|pending| pending.directory == *directory)
        else {
            record.pending = None;
            return Ok(None);
        };
        match ordering.finish(&pending, None).await {
            // One that lay there until it is due itself is of no use.
            Ok(issued) if schedule::due(issued.validity, None, 0.0) > Timestamp::now() => {
                tracing::info!(
                    "fetched the certificate of {} that was ordered before",
                    record.name
                );
                Ok(Some(issued))
            }
            Ok(_) => {
                record.pending = None;
                Ok(None)
            }
            Err(unfinished) if unfinished.is_over => {
                tracing::warn!("{}; ordering anew", words(&unfinished.error));
                record.pending = None;
                Ok(None)
            }
            Err(unfinished) => {
                let attempts = pending.attempts + 1;
                record.pending = (attempts < COME_BACK).then_some(Pending { attempts, ..pending });
                Err(unfinished.error)
            }
        }
    }

    async fn install(&self, record: &Record) -> Result<(), AcmeError> {
        let Some(held) = &record.held else {
            return Ok(());
        };
        let shown = self.front.install(&record.name, &held.chain, &held.key).await;
        let mut unshown = self.unshown();
        match &shown {
            Ok(()) => drop(unshown.remove(&record.name)),
            Err(_) => drop(unshown.insert(record.name.clone())),
        }
        shown.map_err(|source| AcmeError::Install {
            name: record.name.clone(),
            source,
        })
    }

    async fn withdraw(&self, name: &Name) -> Result<(), AcmeError> {
        self.front
            .uninstall(name)
            .await
            .map_err(|source| AcmeError::Uninstall {
                name: name.clone(),
                source,
            })
    }

    /// Whether `name` is to be renewed at `now`, or has no certificate yet.
    ///
    /// # Errors
    /// When its record is there and cannot be read.
    pub fn is_due(&self, settings: &Settings, name: &Name, now: Timestamp) -> Result<bool, AcmeError> {
        Ok(next(&self.record(name)?, settings) <= now)
    }

    /// Asks when the authority would like the certificate to be renewed, if it is time to ask; failures are no matter.
    async fn advise(&self, settings: &Settings, record: &mut Record, now: Timestamp) {
        let Some(held) = &mut record.held else { return };
        if held.ask_advice_at.is_some_and(|at| at > now) || held.directory != settings.directory {
            return;
        }
        let Some(identifier) = order::identifier(&held.chain) else {
            return;
        };
        let Ok(account) = self.account(settings).await else {
            held.ask_advice_at = Some(now + NO_ADVICE);
            return drop(self.keep(record));
        };
        held.ask_advice_at = Some(now + schedule::ADVICE_EVERY);
        match account.renewal_info(&identifier).await {
            Ok((info, again)) => {
                let instant = |time: i64| Timestamp::from_second(time).ok();
                held.advice = instant(info.suggested_window.start.unix_timestamp())
                    .zip(instant(info.suggested_window.end.unix_timestamp()))
                    .map(|(start, end)| Window { start, end });
                let again = SignedDuration::try_from(again).unwrap_or(schedule::ADVICE_EVERY);
                let again = again.clamp(SignedDuration::from_mins(10), SignedDuration::from_hours(24));
                held.ask_advice_at = Some(now + again);
            }
            Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "no renewal information"),
        }
        if let Err(error) = self.keep(record) {
            tracing::warn!("{}", words(&error));
        }
    }
}

/// Tries again what the authority refused because of a nonce that was good (RFC 8555 §6.5).
async fn patient_with_nonces<T, F>(attempt: impl Fn() -> F) -> Result<T, AcmeError>
where
    F: Future<Output = Result<T, AcmeError>>,
{
    let mut attempts = 1;
    loop {
        match attempt().await {
            Err(error) if error.problem() == Some("badNonce") && attempts < order::NONCE_ATTEMPTS => {
                attempts += 1;
            }
            outcome => return outcome,
        }
    }
}

/// When a record is to be looked at again: for its renewal, or for advice.
fn next(record: &Record, settings: &Settings) -> Timestamp {
    match &record.held {
        None => schedule::next_try(Timestamp::MIN, &record.failures, None),
        Some(held) => {
            let due = if held.directory == settings.directory {
                schedule::due(held.validity, held.advice, held.luck)
            } else {
                Timestamp::MIN
            };
            schedule::next_try(due, &record.failures, Some(held.validity.not_after))
        }
    }
}

/// An error with its causes on one line.
fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
