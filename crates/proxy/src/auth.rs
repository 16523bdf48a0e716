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
/// Passwords that may wait for a hash at the same time; more are told to come again.
const WAITING: usize = 64;
/// Unknown passwords that a visitor may try in a row, and how many more with each second: a hash costs a processor a
/// quarter of a second, and one visitor must not have them all.
pub(crate) const TRIES: (f64, f64) = (10.0, 0.5);
/// A hash that no password has, so that unknown names take as long as known ones.
const NOBODY: &str = "$2b$10$abcdefghijklmnopqrstuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuu";

type Digest = [u8; 32];

/// What is remembered, and who may work.
#[derive(Debug)]
pub(crate) struct Gatekeeper {
    key: hmac::Key,
    known: Mutex<HashMap<Digest, (bool, Instant)>>,
    work: Arc<Semaphore>,
    /// What is waited for, and by how many.
    waiting: Mutex<HashMap<Digest, usize>>,
}

/// One request that waits.
struct Waits<'a>(&'a Gatekeeper, Digest);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = waiting.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.1);
            }
        }
    }
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
            work: Arc::new(Semaphore::new(at_once())),
            waiting: Mutex::default(),
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

    /// Whether nobody waits for this one yet.
    pub(crate) fn is_first(&self, check: &Check) -> bool {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        !waiting.contains_key(&check.digest)
    }

    /// Hashes, and remembers the outcome; false when too many wait already.
    pub(crate) async fn check(&self, check: Box<Check>) -> bool {
        let waits = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.len() >= WAITING && !waiting.contains_key(&check.digest) {
                return false;
            }
            *waiting.entry(check.digest).or_default() += 1;
            Waits(self, check.digest)
        };
        let Ok(_permit) = Arc::clone(&self.work).acquire_owned().await else {
            return false;
        };
        let digest = check.digest;
        let answered = |known: &HashMap<Digest, (bool, Instant)>| {
            known
                .get(&digest)
                .is_some_and(|(_, until)| *until > Instant::now())
        };
        // A browser asks for many things at once, all with the same password.
        if answered(&self.known.lock().unwrap_or_else(PoisonError::into_inner)) {
            return true;
        }
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
        drop(known);
        drop(waits);
        true
    }
}

/// Hashes at the same time: half of the processors are left for requests.
fn at_once() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
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
            assert!(keeper.check(check).await);
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
