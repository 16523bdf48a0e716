//! The short-lived listener into which the developer's own Docker pushes.
//!
//! `docker save` exports the whole image, whatever is wanted of it; a push exports only the layers that the registry lacks.
//! So Docker is told that this registry has every layer which is on the host already, and what arrives here is the rest.
//!
//! ```text
//! Docker ── HEAD blob ──► is it one of a layer that the host has? 200 : 404
//!        ── upload ─────► into a temporary store, digest checked
//!        ── manifest ───► kept; it is never asked for
//! ```
//!
//! Nothing that Docker pushes is believed: the image is known by its ID, and each layer's content is checked by its `diff_id`.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, LOCATION};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::access::{Action, Denied};
use super::answer::{self, Problem, header};
use super::loopback::{Answer, serve};
use super::route::Route;
use super::{AnswerBody, Authorize, Credentials, LoopbackError, Registry};
use crate::change::{Digest, Repository};
use crate::store::{Reference, Store};

/// Manifests and indexes of one push.
const DOCUMENTS: usize = 64;

/// A registry on the loopback that takes one image; it ends when this value is dropped.
#[derive(Debug)]
pub struct Handover {
    address: SocketAddr,
    credentials: Credentials,
    taken: Arc<Mutex<Documents>>,
    _ends: DropGuard,
}

/// What was pushed beside the layers.
#[derive(Debug, Clone, Default)]
pub struct Documents {
    /// Manifests and indexes by their digests.
    pub by_digest: BTreeMap<Digest, Bytes>,
    /// The one that was given a tag.
    pub tagged: Option<Digest>,
}

impl Handover {
    /// Listens on any free port of 127.0.0.1 and takes blobs into `store`; those of `there`, with their sizes in bytes,
    /// need not be sent.
    ///
    /// # Errors
    /// When no port can be opened.
    pub async fn start(store: Store, there: BTreeMap<Digest, u64>) -> Result<Self, LoopbackError> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let failed = |source| LoopbackError { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let credentials = Credentials::random();
        let authorize = only(credentials.clone(), store.limits().max_blob);
        let taken = Arc::new(Mutex::new(Documents::default()));
        let desk = Arc::new(Desk {
            registry: Registry::new(store, authorize.clone()),
            authorize,
            there,
            taken: Arc::clone(&taken),
        });
        let answer: Answer = Arc::new(move |request| {
            let desk = Arc::clone(&desk);
            Box::pin(async move { desk.answer(request).await })
        });
        let end = CancellationToken::new();
        tokio::spawn(serve(listener, answer, end.clone()));
        Ok(Self {
            address,
            credentials,
            taken,
            _ends: end.drop_guard(),
        })
    }

    /// The repository as Docker is to call it, `127.0.0.1:PORT/<repository>`.
    pub fn name(&self, repository: &Repository) -> String {
        format!("{}/{repository}", self.address)
    }

    /// What Docker must present.
    pub fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// What was pushed so far, beside the blobs.
    pub fn documents(&self) -> Documents {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Desk {
    registry: Registry,
    authorize: Authorize,
    there: BTreeMap<Digest, u64>,
    taken: Arc<Mutex<Documents>>,
}

impl Desk {
    async fn answer(&self, request: Request<Incoming>) -> Response<AnswerBody> {
        let answered = match (request.method(), Route::parse(request.uri().path())) {
            (&Method::HEAD, Ok(Route::Blob(_, digest))) if self.there.contains_key(&digest) => {
                let (parts, _) = request.into_parts();
                self.has(&parts, &digest)
            }
            (&Method::PUT, Ok(Route::Manifest(name, reference))) => {
                self.manifest(request, &name, &reference).await
            }
            _ => return self.registry.answer(request).await,
        };
        answered.unwrap_or_else(Problem::into_response)
    }

    fn has(&self, parts: &Parts, digest: &Digest) -> Result<Response<AnswerBody>, Problem> {
        (self.authorize)(parts, None, &Action::Read).map_err(Problem::Denied)?;
        let mut response = Response::new(answer::empty());
        let size = self.there.get(digest).copied().unwrap_or_default();
        response.headers_mut().insert(CONTENT_LENGTH, size.into());
        response
            .headers_mut()
            .insert("docker-content-digest", header(digest.as_str()));
        Ok(response)
    }

    async fn manifest(
        &self,
        request: Request<Incoming>,
        name: &Repository,
        reference: &Reference,
    ) -> Result<Response<AnswerBody>, Problem> {
        let (parts, body) = request.into_parts();
        (self.authorize)(&parts, Some(name), &Action::Read).map_err(Problem::Denied)?;
        let limit = usize::try_from(self.registry.store().limits().max_manifest).unwrap_or(usize::MAX);
        let bytes = Limited::new(body, limit)
            .collect()
            .await
            .map_err(|error| Problem::CutOff(error.to_string()))?
            .to_bytes();
        let digest = Digest::of(&bytes);
        {
            let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            if taken.by_digest.len() >= DOCUMENTS {
                return Err(Problem::bad(
                    "MANIFEST_INVALID",
                    "too many manifests for one image",
                ));
            }
            taken.by_digest.insert(digest.clone(), bytes);
            if matches!(reference, Reference::Tag(_)) {
                taken.tagged = Some(digest.clone());
            }
        }
        let mut response = Response::new(answer::empty());
        *response.status_mut() = StatusCode::CREATED;
        let headers = response.headers_mut();
        headers.insert(LOCATION, header(&format!("/v2/{name}/manifests/{digest}")));
        headers.insert("docker-content-digest", header(digest.as_str()));
        Ok(response)
    }
}

/// Everything for who has the credentials, up to `limit` bytes for each blob.
fn only(credentials: Credentials, limit: u64) -> Authorize {
    Arc::new(move |parts, _, _| {
        let value = parts
            .headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        if value.is_some_and(|value| credentials.match_header(value)) {
            Ok(limit)
        } else {
            Err(Denied::unauthorized(
                "this registry takes one push of this machine's own Docker",
            ))
        }
    })
}
