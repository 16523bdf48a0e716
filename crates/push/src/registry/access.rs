//! Who may write into the registry: tokens that a signed change was exchanged for.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header::AUTHORIZATION;
use http::request::Parts;
use jiff::{SignedDuration, Timestamp};

use crate::change::{BlobRef, Digest, Fingerprint, Repository};
use crate::store::Reference;

/// What a request is about to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action<'a> {
    /// Look at anything.
    Read,
    /// Begin an upload, with what it is to become if the sender said so.
    Begin {
        /// Digest and size.
        expect: Option<&'a BlobRef>,
    },
    /// Ask about, continue or give up an unfinished upload.
    Continue,
    /// Give an upload its name.
    Finish {
        /// Its digest.
        digest: &'a Digest,
    },
    /// Make a blob of another repository available in this one.
    Mount {
        /// Its digest.
        digest: &'a Digest,
    },
    /// Store a manifest.
    PutManifest {
        /// Under which reference.
        reference: &'a Reference,
        /// Its digest.
        digest: &'a Digest,
    },
    /// Take a tag or manifest away.
    Delete {
        /// Which.
        reference: &'a Reference,
    },
}

/// A request that is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Denied {
    /// Why, and what to do.
    pub message: String,
    /// `WWW-Authenticate`, where other credentials would help (401); else the answer is 403.
    pub challenge: Option<&'static str>,
}

impl Denied {
    /// Nobody may do this.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            challenge: None,
        }
    }

    /// Credentials are missing, wrong or expired.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            challenge: Some("Basic realm=\"appliance\""),
        }
    }
}

/// Decides about every request, from its head; answers how many bytes an upload may have.
pub type Authorize =
    Arc<dyn Fn(&Parts, Option<&Repository>, &Action<'_>) -> Result<u64, Denied> + Send + Sync>;

/// A bearer token, 128 random bits in hexadecimal.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Token(String);

impl Token {
    /// The token as text; it is a secret.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// By what a sender is known again in the store, without its secret.
    pub fn owner(&self) -> String {
        Digest::of(self.0.as_bytes()).hex().to_owned()
    }

    /// The token of a request: `Bearer <token>`, or the password of `Basic` for stock clients.
    pub fn of_request(parts: &Parts) -> Option<Self> {
        let value = parts.headers.get(AUTHORIZATION)?.to_str().ok()?;
        let (scheme, rest) = value.split_once(' ')?;
        if scheme.eq_ignore_ascii_case("bearer") {
            return Some(Self(rest.trim().to_owned()));
        }
        basic(value).map(|(_, password)| Self(password))
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// User and password of an `Authorization: Basic` value (RFC 7617).
pub(super) fn basic(value: &str) -> Option<(String, String)> {
    let (scheme, rest) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(BASE64.decode(rest.trim()).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

/// What a token allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Whose signed change it stands for.
    pub holder: Fingerprint,
    /// Until when.
    pub expires: Timestamp,
    /// What may be written.
    pub scope: Scope,
}

/// What may be written with a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Exactly this content, into any repository, and no tags.
    Blobs(HashMap<Digest, u64>),
    /// Anything into one repository, tags included, up to a number of bytes for each upload.
    Repository {
        /// Which.
        name: Repository,
        /// Most bytes of one upload.
        bytes: u64,
    },
}

impl Scope {
    /// The scope of an `upload` change.
    pub fn blobs<'a>(blobs: impl IntoIterator<Item = &'a BlobRef>) -> Self {
        Scope::Blobs(
            blobs
                .into_iter()
                .map(|blob| (blob.digest.clone(), blob.size))
                .collect(),
        )
    }
}

/// A token that is out.
#[derive(Debug)]
struct Issued {
    grant: Grant,
    /// When a request last came with it.
    used: Timestamp,
    /// What was stored with it, where the grant does not name its content.
    stored: BTreeSet<Digest>,
}

impl Issued {
    fn content(&self) -> BTreeSet<Digest> {
        match &self.grant.scope {
            Scope::Blobs(blobs) => blobs.keys().cloned().collect(),
            Scope::Repository { .. } => self.stored.clone(),
        }
    }
}

/// The tokens that are out; they live in memory and end with the process.
#[derive(Debug, Clone, Default)]
pub struct Grants {
    tokens: Arc<Mutex<HashMap<Token, Issued>>>,
}

impl Grants {
    /// Exchanges a verified change for a token; expired ones are forgotten.
    pub fn issue(&self, grant: Grant, now: Timestamp) -> Token {
        let mut bytes = [0; 16];
        aws_lc_rs::rand::fill(&mut bytes).expect("the operating system gives random bytes");
        let token = Token(hex::encode(bytes));
        let mut tokens = self
            .tokens
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        tokens.retain(|_, issued| issued.grant.expires > now);
        let issued = Issued {
            grant,
            used: now,
            stored: BTreeSet::new(),
        };
        tokens.insert(token.clone(), issued);
        token
    }

    /// Takes a token back.
    pub fn revoke(&self, token: &Token) {
        self.tokens
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .remove(token);
    }

    /// Takes back every token of a key, when the key is removed.
    pub fn revoke_holder(&self, holder: &Fingerprint) {
        let mut tokens = self
            .tokens
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        tokens.retain(|_, issued| issued.grant.holder != *holder);
    }

    /// Everything that pushes under way bring, whether it is here yet or not: no release names it so far.
    ///
    /// Under way is whoever came with a token within `idle`, or writes something that began with it (`writing`, see
    /// [`Token::owner`]): one large layer in one request may take longer than that.
    pub fn under_way(
        &self,
        now: Timestamp,
        idle: SignedDuration,
        writing: &BTreeSet<String>,
    ) -> BTreeSet<Digest> {
        let tokens = self
            .tokens
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let alive = tokens.iter().filter(|(token, issued)| {
            let recent = now.duration_since(issued.used) < idle;
            issued.grant.expires > now && (recent || writing.contains(&token.owner()))
        });
        alive.flat_map(|(_, issued)| issued.content()).collect()
    }

    /// Decides about a write from the token in the request.
    ///
    /// # Errors
    /// When there is no valid token, or it does not allow this.
    pub fn check(
        &self,
        parts: &Parts,
        repository: Option<&Repository>,
        action: &Action<'_>,
        now: Timestamp,
    ) -> Result<u64, Denied> {
        let again = "push again: the command signs a fresh permission";
        let Some(token) = Token::of_request(parts) else {
            return Err(Denied::unauthorized(
                "writing needs a token that a signed `upload` change was exchanged for",
            ));
        };
        let mut tokens = self
            .tokens
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(Issued { grant, used, stored }) = tokens.get_mut(&token) else {
            return Err(Denied::unauthorized(format!(
                "the token is not known to this agent; {again}"
            )));
        };
        if grant.expires <= now {
            return Err(Denied::unauthorized(format!(
                "the token expired at {}; {again}",
                grant.expires
            )));
        }
        let allowed = grant.scope.allows(repository, action).map_err(|message| {
            Denied::forbidden(format!("{message} with the permission of {}", grant.holder))
        })?;
        *used = now;
        if let Action::Finish { digest } | Action::Mount { digest } | Action::PutManifest { digest, .. } =
            action
        {
            stored.insert((*digest).clone());
        }
        Ok(allowed)
    }
}

impl Scope {
    fn allows(&self, repository: Option<&Repository>, action: &Action<'_>) -> Result<u64, String> {
        match self {
            Scope::Blobs(blobs) => {
                let listed = |digest: &Digest| {
                    blobs
                        .get(digest)
                        .copied()
                        .ok_or_else(|| format!("{digest} may not be written"))
                };
                match action {
                    Action::Read | Action::Continue => Ok(0),
                    Action::Begin { expect: Some(expect) } => match listed(&expect.digest)? {
                        size if size == expect.size => Ok(size),
                        size => Err(format!(
                            "{} has {size} bytes, not {}, and may not be written",
                            expect.digest, expect.size
                        )),
                    },
                    Action::Begin { expect: None } => Ok(blobs.values().copied().max().unwrap_or(0)),
                    Action::Finish { digest } | Action::Mount { digest } => listed(digest),
                    Action::PutManifest {
                        reference: Reference::Digest(_),
                        digest,
                    } => listed(digest),
                    Action::PutManifest {
                        reference: Reference::Tag(tag),
                        ..
                    } => Err(format!("the tag {tag} may not be written")),
                    Action::Delete { reference } => Err(format!("{reference} may not be removed")),
                }
            }
            Scope::Repository { name, bytes } => match repository {
                Some(repository) if repository == name => Ok(*bytes),
                Some(repository) => Err(format!(
                    "nothing may be written into {repository}, only into {name},"
                )),
                None => Ok(0),
            },
        }
    }
}
