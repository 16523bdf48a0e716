//! A place of backups and the keys that go with it; what is in it is found by listing.

use std::collections::BTreeMap;
use std::str::FromStr as _;
use std::sync::Arc;

use age::x25519;
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::manifest::{DrillResult, FORMAT, Manifest};
use crate::names::{self, BackupId, MANIFEST, README, REPOSITORY, Subject};
use crate::sign::{self, PublicKey, SignatureError, Signer};
use crate::spool::Spool;
use crate::store::{Store, StoreError, StoreErrorKind};

/// Documents of one kind beside a backup that may come in one second.
const SAME_SECOND: i64 = 60;

/// Why a repository cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A document in it is not accepted.
    #[error("{key} in {place} is not accepted")]
    Document {
        /// Which.
        key: String,
        /// Where.
        place: String,
        /// Why.
        #[source]
        source: SignatureError,
    },
    /// The description is of another form.
    #[error("{place} holds something else than backups of this program, or of a newer version: {why}")]
    Form {
        /// Where.
        place: String,
        /// What is odd.
        why: String,
    },
    /// A recipient is not one.
    #[error("{text:?} is not an age recipient (age1…): {why}")]
    Recipient {
        /// What was given.
        text: String,
        /// What age says.
        why: &'static str,
    },
}

/// The repository's own description, written once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Description {
    format: u32,
    repository: String,
    recipients: Vec<String>,
    signing_key: PublicKey,
    made_at: Timestamp,
}

/// The keys of this host.
#[derive(Clone)]
pub struct Keys {
    /// Signs what this host stores.
    pub signer: Arc<Signer>,
    /// Further keys whose signatures are trusted: those of a host that this one replaces.
    pub trusted: Vec<PublicKey>,
    /// Opens backups.
    pub identity: x25519::Identity,
    /// Who can open backups: this host, and whoever keeps the recovery key.
    pub recipients: Vec<String>,
    /// How this host is called in manifests.
    pub host: String,
}

/// A place of backups.
#[derive(Clone)]
pub struct Repository {
    /// The store.
    pub store: Arc<dyn Store>,
    /// The keys.
    pub keys: Keys,
    /// Its random id.
    pub id: String,
    /// Where parts wait on their way to it.
    pub spool: Option<Spool>,
    recipients: Vec<x25519::Recipient>,
}

/// A backup in a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Its manifest; every object that it names is there.
    pub manifest: Manifest,
    /// The newest drill that it passed.
    pub drill: Option<DrillResult>,
    /// Whether somebody wants it kept.
    pub held: bool,
    /// Keys of its drills and holds.
    pub beside: Vec<String>,
    /// Which host signed it: ours, or one that is trusted.
    pub signer: PublicKey,
}

/// Something that looks like a backup and is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    /// Which.
    pub id: BackupId,
    /// Of what.
    pub subject: Subject,
    /// Why.
    pub why: String,
    /// Its keys.
    pub keys: Vec<String>,
    /// Whether it has no manifest: under way, or broken off.
    pub uncommitted: bool,
    /// Whether it is signed by somebody else: another host that uses the same place, or one that this host replaces. Whoever
    /// can write to the place can sign what was ours with a key of their own, so this alone is no reason to be calm about it.
    pub foreign: bool,
}

/// What a repository holds of some subjects.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Catalogue {
    /// Backups, oldest first.
    pub backups: Vec<Found>,
    /// The rest.
    pub unusable: Vec<Unusable>,
}

impl Repository {
    /// Opens the repository in `store`, or makes it there; `random` becomes the id of a new one.
    ///
    /// # Errors
    /// When the store fails, or holds something else.
    pub async fn open(
        store: Arc<dyn Store>,
        keys: Keys,
        now: Timestamp,
        random: [u8; 16],
    ) -> Result<Self, RepositoryError> {
        let recipients = parse_recipients(&keys.recipients)?;
        let wanted = Description {
            format: FORMAT,
            repository: hex::encode(random),
            recipients: keys.recipients.clone(),
            signing_key: keys.signer.public(),
            made_at: now,
        };
        let form = |why: String| RepositoryError::Form {
            place: store.place(),
            why,
        };
        let found = match whole(&*store, REPOSITORY).await? {
            Some(bytes) => bytes,
            None => {
                let text = serde_json::to_vec_pretty(&wanted).map_err(|error| form(error.to_string()))?;
                match store.put_new(REPOSITORY, text.into()).await {
                    Ok(()) => {}
                    Err(error) if error.kind == StoreErrorKind::Exists => {}
                    Err(error) => return Err(error.into()),
                }
                match whole(&*store, REPOSITORY).await? {
                    Some(bytes) => bytes,
                    None => return Err(form(format!("{REPOSITORY} vanished"))),
                }
            }
        };
        let found: Description = serde_json::from_slice(&found).map_err(|error| form(error.to_string()))?;
        if found.format != FORMAT {
            return Err(form(format!("form {}", found.format)));
        }
        if store.size(README).await?.is_none() {
            let text = Bytes::from_static(crate::readme::TEXT.as_bytes());
            match store.put_new(README, text).await {
                Ok(()) => {}
                Err(error) if error.kind == StoreErrorKind::Exists => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self {
            store,
            keys,
            id: found.repository,
            spool: None,
            recipients,
        })
    }

    /// The same repository through another store, as of other credentials.
    #[must_use]
    pub fn through(&self, store: Arc<dyn Store>) -> Self {
        Self {
            store,
            ..self.clone()
        }
    }

    /// The same repository, with a disk before it.
    #[must_use]
    pub fn spooling(self, spool: Spool) -> Self {
        Self {
            spool: Some(spool),
            ..self
        }
    }

    /// Who can open what is stored from now on.
    pub fn recipients(&self) -> &[x25519::Recipient] {
        &self.recipients
    }

    fn trusted(&self) -> Vec<PublicKey> {
        let mut trusted = self.keys.trusted.clone();
        trusted.push(self.keys.signer.public());
        trusted
    }

    /// Every backup whose key begins with `prefix`, proved: signed by a key we trust, for this place, all objects there.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn catalogue(&self, prefix: &str) -> Result<Catalogue, RepositoryError> {
        let mut groups: BTreeMap<(Subject, BackupId), BTreeMap<String, u64>> = BTreeMap::new();
        for listed in self.store.list(prefix).await? {
            if let Some((subject, id, object)) = Subject::of_key(&listed.key) {
                groups
                    .entry((subject, id))
                    .or_default()
                    .insert(object, listed.size);
            }
        }
        let mut catalogue = Catalogue::default();
        for ((subject, id), objects) in groups {
            let keys = || objects.keys().map(|name| subject.key(&id, name)).collect();
            let unusable = |why: String, uncommitted: bool, foreign: bool| Unusable {
                id: id.clone(),
                subject: subject.clone(),
                why,
                keys: keys(),
                uncommitted,
                foreign,
            };
            if !objects.contains_key(MANIFEST) {
                catalogue.unusable.push(unusable(
                    "it has no manifest: under way, or broken off".to_owned(),
                    true,
                    false,
                ));
                continue;
            }
            match self.proved(&subject, &id, &objects).await {
                Ok(found) => catalogue.backups.push(found),
                Err(Doubt::Store(error)) => return Err(error.into()),
                Err(Doubt::Content(why)) => catalogue.unusable.push(unusable(why, false, false)),
                Err(Doubt::Stranger(why)) => catalogue.unusable.push(unusable(why, false, true)),
            }
        }
        catalogue
            .backups
            .sort_by(|a, b| a.manifest.id.cmp(&b.manifest.id));
        Ok(catalogue)
    }

    async fn proved(
        &self,
        subject: &Subject,
        id: &BackupId,
        objects: &BTreeMap<String, u64>,
    ) -> Result<Found, Doubt> {
        let trusted = self.trusted();
        let bytes = whole(&*self.store, &subject.key(id, MANIFEST))
            .await?
            .ok_or_else(|| Doubt::Content("its manifest vanished".to_owned()))?;
        let opened = sign::open_signed::<Manifest>(&bytes, &trusted);
        let (manifest, signer) = opened.map_err(|error| match error {
            SignatureError::Stranger { .. } => Doubt::Stranger(error.to_string()),
            error => Doubt::Content(chain(&error)),
        })?;
        if manifest.repository != self.id || manifest.subject != *subject || manifest.id != *id {
            return Err(Doubt::Content(format!(
                "its manifest is of {} {} in another place: a copy",
                manifest.subject, manifest.id
            )));
        }
        for object in manifest.objects() {
            match objects.get(&object.name) {
                Some(size) if *size == object.size => {}
                Some(size) => {
                    return Err(Doubt::Content(format!(
                        "{} has {size} bytes, its manifest says {}",
                        object.name, object.size
                    )));
                }
                None => return Err(Doubt::Content(format!("{} is missing", object.name))),
            }
        }
        let mut found = Found {
            manifest,
            drill: None,
            held: false,
            beside: Vec::new(),
            signer,
        };
        for name in objects.keys() {
            let verified = name.starts_with("verified-");
            if !verified && !name.starts_with("hold-") {
                continue;
            }
            let key = subject.key(id, name);
            if verified {
                let bytes = whole(&*self.store, &key).await?.unwrap_or_default();
                // A forged result must not make retention trust a backup; the backup itself stays good.
                if let Ok(drill) = sign::open::<DrillResult>(&bytes, &trusted)
                    && (&drill.repository, &drill.subject, &drill.id) == (&self.id, subject, id)
                    && found.drill.as_ref().is_none_or(|newest| newest.at < drill.at)
                {
                    found.drill = Some(drill);
                }
            } else {
                found.held = true;
            }
            found.beside.push(key);
        }
        Ok(found)
    }

    /// Commits a backup: stores its manifest, after which it exists.
    ///
    /// # Errors
    /// When the store fails or the key is taken.
    pub async fn commit(&self, manifest: &Manifest) -> Result<(), RepositoryError> {
        self.put_signed(&manifest.subject.key(&manifest.id, MANIFEST), manifest)
            .await
    }

    /// Stores the result of a drill beside its backup.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn verified(&self, result: &DrillResult) -> Result<(), RepositoryError> {
        let key = |at| result.subject.key(&result.id, &names::verified(at));
        self.put_at(key, result.at, result).await
    }

    /// Has the retention keep a backup until [`Repository::release`].
    ///
    /// # Errors
    /// When the store fails.
    pub async fn hold(&self, found: &Found, at: Timestamp) -> Result<(), RepositoryError> {
        let manifest = &found.manifest;
        let key = |at| manifest.subject.key(&manifest.id, &names::hold(at));
        self.put_at(key, at, &at).await
    }

    /// Lets the retention decide again. Answers with how many holds there were.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn release(&self, found: &Found) -> Result<usize, RepositoryError> {
        let is_hold = |key: &&String| {
            key.rsplit('/')
                .next()
                .is_some_and(|name| name.starts_with("hold-"))
        };
        let holds: Vec<&String> = found.beside.iter().filter(is_hold).collect();
        for key in &holds {
            self.store.delete(key).await?;
        }
        Ok(holds.len())
    }

    /// Stores a document under the key of its second, or of the next one that is free: two may come in one second.
    async fn put_at<T: Serialize>(
        &self,
        key: impl Fn(Timestamp) -> String,
        at: Timestamp,
        content: &T,
    ) -> Result<(), RepositoryError> {
        let mut stored = self.put_signed(&key(at), content).await;
        for later in 1..=SAME_SECOND {
            match &stored {
                Err(RepositoryError::Store(error)) if error.kind == StoreErrorKind::Exists => {}
                _ => break,
            }
            let Ok(next) = at.checked_add(SignedDuration::from_secs(later)) else {
                break;
            };
            stored = self.put_signed(&key(next), content).await;
        }
        stored
    }

    async fn put_signed<T: Serialize>(&self, key: &str, content: &T) -> Result<(), RepositoryError> {
        let document = self
            .keys
            .signer
            .seal(content)
            .map_err(|error| RepositoryError::Document {
                key: key.to_owned(),
                place: self.store.place(),
                source: SignatureError::Content(error),
            })?;
        let size = document.len() as u64;
        self.store.put_new(key, document.into()).await?;
        let found = self.store.size(key).await?;
        if found != Some(size) {
            return Err(RepositoryError::Form {
                place: self.store.place(),
                why: format!("{key} has {found:?} bytes, {size} were sent"),
            });
        }
        Ok(())
    }
}

enum Doubt {
    Store(StoreError),
    Content(String),
    Stranger(String),
}

impl From<StoreError> for Doubt {
    fn from(error: StoreError) -> Self {
        Doubt::Store(error)
    }
}

/// A small object as a whole; `None` if there is none.
///
/// # Errors
/// When the store fails.
pub(crate) async fn whole(store: &dyn Store, key: &str) -> Result<Option<Bytes>, StoreError> {
    match store.read(key, 0, sign::LIMIT as u64).await {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind == StoreErrorKind::Missing => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse_recipients(texts: &[String]) -> Result<Vec<x25519::Recipient>, RepositoryError> {
    let parse = |text: &String| {
        x25519::Recipient::from_str(text).map_err(|why| RepositoryError::Recipient {
            text: text.clone(),
            why,
        })
    };
    texts.iter().map(parse).collect()
}

/// The whole chain of an error on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
