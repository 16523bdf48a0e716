//! Basic authentication (RFC 7617) against bcrypt hashes.
//!
//! A hash takes tens of milliseconds on purpose, so it is made on a thread of its own, few at a time, and its outcome is
//! remembered for a while under a keyed digest: a browser sends its password with every request.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use tokio::sync::Semaphore;

use crate::snapshot::Auth;

/// How long an outcome is remembered.
const GOOD_FOR: Duration = Duration::from_secs(300);
/// Outcomes that are remembered.
const MOST: usize = 4_096;
/// Hashes at the same time.
const AT_ONCE: usize = 2;
/// A hash that no password has, so that unknown names take as long as known ones.
const NOBODY: &str = "$2b$10$abcdefghijklmnopqrstuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuu";

type Digest = [u8; 32];

/// What is remembered, and who may work.
#[derive(Debug)]
pub(crate) struct Gatekeeper {
    key: hmac::Key,
    known: Mutex<HashMap<Digest, (bool, Instant)>>,
    work: Arc<Semaphore>,
}

/// A password that has to be hashed.
#[derive(Debug)]
pub(crate) struct Check {
    digest: Digest,
    password: Vec<u8>,
    hash: String,
    known_user: bool,
}

/// What is known of a request's credentials.
#[derive(Debug)]
pub(crate) enum Standing {
    Admitted,
    Refused,
    Unknown(Box<Check>),
}

impl Default for Gatekeeper {
    fn default() -> Self {
        let mut key = [0_u8; 32];
        aws_lc_rs::rand::fill(&mut key).expect("the system's generator never fails once it is seeded");
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, &key),
            known: Mutex::default(),
            work: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }
}

impl Gatekeeper {
    /// Looks at the value of `Authorization`.
    pub(crate) fn standing(&self, auth: &Auth, value: Option<&[u8]>, now: Instant) -> Standing {
        let Some((user, password)) = value.and_then(credentials) else {
            return Standing::Refused;
        };
        let hash = auth.users.get(&user);
        let mut context = hmac::Context::with_key(&self.key);
        // The hash is part of it, so that a changed password counts at once.
        for part in [
            user.as_bytes(),
            hash.map_or(&[][..], |hash| hash.as_bytes()),
            &password,
        ] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut digest = Digest::default();
        digest.copy_from_slice(context.sign().as_ref());
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(&digest) {
            Some((good, until)) if *until > now => {
                if *good {
                    Standing::Admitted
                } else {
                    Standing::Refused
                }
            }
            _ => Standing::Unknown(Box::new(Check {
                digest,
                password,
                known_user: hash.is_some(),
                hash: hash.cloned().unwrap_or_else(|| NOBODY.to_owned()),
            })),
        }
    }

    /// Hashes, and remembers the outcome.
    pub(crate) async fn check(&self, check: Box<Check>) {
        let Ok(_permit) = Arc::clone(&self.work).acquire_owned().await else {
            return;
        };
        let digest = check.digest;
        let hashed = tokio::task::spawn_blocking(move || {
            bcrypt::verify(&check.password, &check.hash).unwrap_or(false) && check.known_user
        });
        let good = hashed.await.unwrap_or(false);
        let now = Instant::now();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.retain(|_, (good, until)| *good && *until > now);
            if known.len() >= MOST {
                known.clear();
            }
        }
        known.insert(digest, (good, now + GOOD_FOR));
    }
}

/// User and password of `Basic …`.
fn credentials(value: &[u8]) -> Option<(String, Vec<u8>)> {
    let (scheme, rest) = value.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") || rest.len() > 1_024 {
        return None;
    }
    let decoded = base64::engine::general_purpose::STANDARD
        .decode(rest.trim_ascii())
        .ok()?;
    let colon = decoded.iter().position(|b| *b == b':')?;
    let user = String::from_utf8(decoded[..colon].to_vec()).ok()?;
    Some((user, decoded[colon + 1..].to_vec()))
}

/// What a visitor without credentials gets.
pub(crate) fn challenge(mut page: Response<Bytes>, auth: &Auth) -> Response<Bytes> {
    *page.status_mut() = StatusCode::UNAUTHORIZED;
    let value = format!("Basic realm=\"{}\", charset=\"UTF-8\"", auth.realm);
    if let Ok(value) = HeaderValue::try_from(value) {
        page.headers_mut().insert(header::WWW_AUTHENTICATE, value);
    }
    page
}

/// Whether `hash` is one that can be checked.
pub(crate) fn is_hash(hash: &str) -> bool {
    matches!(hash.get(..4), Some("$2a$" | "$2b$" | "$2y$"))
        && hash.len() == 60
        && hash[4..6]
            .parse::<u8>()
            .is_ok_and(|cost| (4..=14).contains(&cost))
        && hash.as_bytes()[6] == b'$'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(text: &str) -> String {
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text))
    }

    #[tokio::test]
    async fn only_the_right_password_is_admitted_and_the_outcome_is_remembered() {
        let keeper = Gatekeeper::default();
        let hash = bcrypt::hash("s3:cret", 4).unwrap();
        assert!(is_hash(&hash), "{hash}");
        let mut auth = Auth {
            realm: "Staging".into(),
            users: [("ada".to_owned(), hash)].into(),
            except: Vec::new(),
        };
        let now = Instant::now();
        for (value, good) in [
            (basic("ada:s3:cret"), true),
            (basic("ada:wrong"), false),
            (basic("bob:s3:cret"), false),
        ] {
            let Standing::Unknown(check) = keeper.standing(&auth, Some(value.as_bytes()), now) else {
                panic!("nothing is known yet");
            };
            keeper.check(check).await;
            let standing = keeper.standing(&auth, Some(value.as_bytes()), now);
            assert_eq!(matches!(standing, Standing::Admitted), good, "{value}");
            assert_eq!(matches!(standing, Standing::Refused), !good, "{value}");
        }
        for nonsense in ["", "Basic", "Basic !!!", "Bearer x", &basic("no colon")] {
            assert!(matches!(
                keeper.standing(&auth, Some(nonsense.as_bytes()), now),
                Standing::Refused
            ));
        }
        auth.users.insert("ada".into(), bcrypt::hash("other", 4).unwrap());
        let standing = keeper.standing(&auth, Some(basic("ada:s3:cret").as_bytes()), now);
        assert!(
            matches!(standing, Standing::Unknown(_)),
            "a changed password counts at once"
        );
    }
}
