//! The OCI distribution API 1.1 over the store: pull, push, content discovery and content management.
//!
//! ```text
//! GET               /v2/                                     is there a registry?
//! HEAD GET          /v2/<name>/blobs/<digest>                Range is honoured
//! POST              /v2/<name>/blobs/uploads/                begin; ?digest= whole, ?mount= from elsewhere
//! GET PATCH PUT DELETE /v2/<name>/blobs/uploads/<id>         continue, finish, give up
//! HEAD GET PUT DELETE  /v2/<name>/manifests/<tag or digest>
//! GET               /v2/<name>/tags/list                     ?n= ?last=
//! GET               /v2/<name>/referrers/<digest>            ?artifactType=
//! ```
//!
//! Beyond the specification, `POST …/uploads/?expect=<digest>&size=<bytes>` says what is coming: room and permission are
//! checked before any byte moves, and an unfinished upload of the same content is continued where it stopped.
//!
//! Blobs are shared by all repositories of the host, so removing one is left to garbage collection (405).

mod access;
mod answer;
mod content;
mod delta;
mod handover;
mod loopback;
mod route;
mod uploads;

#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response};
use http_body::Body;
use http_body_util::combinators::BoxBody;
use tokio::sync::Semaphore;

pub use access::{Action, Authorize, Denied, Grant, Grants, Scope, Token};
pub use handover::{Documents, Handover};
pub use loopback::{Credentials, Loopback, LoopbackError};

use crate::store::{Store, StoreError};
use answer::Problem;
use route::Route;

/// The body of every answer.
pub type AnswerBody = BoxBody<Bytes, std::io::Error>;

/// The OCI registry of a host; clones share everything.
#[derive(Clone)]
pub struct Registry {
    store: Store,
    authorize: Authorize,
    /// One layer at a time is looked into, so that it never competes with the apps.
    indexing: Arc<Semaphore>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry")
            .field("store", &self.store)
            .finish_non_exhaustive()
    }
}

impl Registry {
    /// A registry over `store`; `authorize` decides about every request before the store is touched.
    pub fn new(store: Store, authorize: Authorize) -> Self {
        Self {
            store,
            authorize,
            indexing: Arc::new(Semaphore::new(1)),
        }
    }

    /// The store below.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Answers a request below `/v2`; other paths are answered with 404.
    pub async fn answer<B>(&self, request: Request<B>) -> Response<AnswerBody>
    where
        B: Body<Data = Bytes> + Send + Unpin,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        let (parts, body) = request.into_parts();
        let head = parts.method == Method::HEAD;
        let mut response = match self.dispatch(parts, body).await {
            Ok(response) => response,
            Err(problem) => problem.into_response(),
        };
        response.headers_mut().insert(
            "docker-distribution-api-version",
            HeaderValue::from_static("registry/2.0"),
        );
        if head {
            // HEAD has the headers of GET and never a body (RFC 9110 §9.3.2).
            response = response.map(|_| answer::empty());
        }
        response
    }

    async fn dispatch<B>(&self, parts: Parts, body: B) -> Result<Response<AnswerBody>, Problem>
    where
        B: Body<Data = Bytes> + Send + Unpin,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        let route = Route::parse(parts.uri.path())?;
        let query = route::Query::parse(parts.uri.query());
        match (&parts.method, route) {
            (&Method::GET | &Method::HEAD, Route::Base) => {
                self.allow(&parts, None, &Action::Read)?;
                Ok(answer::json(http::StatusCode::OK, &serde_json::json!({})))
            }
            (&Method::GET | &Method::HEAD, Route::Blob(name, digest)) => {
                self.allow(&parts, Some(&name), &Action::Read)?;
                content::blob(&self.store, &parts, &digest).await
            }
            (&Method::POST, Route::Uploads(name)) => self.begin_upload(&parts, &name, &query, body).await,
            (&Method::GET | &Method::HEAD, Route::Upload(name, id)) => {
                self.upload_status(&parts, &name, id).await
            }
            (&Method::PATCH, Route::Upload(name, id)) => self.continue_upload(&parts, &name, id, body).await,
            (&Method::PUT, Route::Upload(name, id)) => {
                self.finish_upload(&parts, &name, id, &query, body).await
            }
            (&Method::DELETE, Route::Upload(name, id)) => self.cancel_upload(&parts, &name, id).await,
            (&Method::GET | &Method::HEAD, Route::Manifest(name, reference)) => {
                self.allow(&parts, Some(&name), &Action::Read)?;
                content::manifest(&self.store, name, reference).await
            }
            (&Method::PUT, Route::Manifest(name, reference)) => {
                self.put_manifest(&parts, name, reference, body).await
            }
            (&Method::DELETE, Route::Manifest(name, reference)) => {
                self.allow(
                    &parts,
                    Some(&name),
                    &Action::Delete {
                        reference: &reference,
                    },
                )?;
                content::delete_manifest(&self.store, name, reference).await
            }
            (&Method::GET | &Method::HEAD, Route::Tags(name)) => {
                self.allow(&parts, Some(&name), &Action::Read)?;
                content::tags(&self.store, name, &query).await
            }
            (&Method::GET | &Method::HEAD, Route::Referrers(name, digest)) => {
                self.allow(&parts, Some(&name), &Action::Read)?;
                content::referrers(&self.store, name, digest, &query).await
            }
            (method, _) => Err(Problem::method_not_allowed(method)),
        }
    }

    /// Asks the caller's rule; the answer is how many bytes an upload may have.
    fn allow(
        &self,
        parts: &Parts,
        repository: Option<&crate::change::Repository>,
        action: &Action<'_>,
    ) -> Result<u64, Problem> {
        (self.authorize)(parts, repository, action).map_err(Problem::Denied)
    }
}

/// Runs blocking store work off the async threads.
async fn blocking<T, F>(work: F) -> Result<T, Problem>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, StoreError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(Problem::Store),
        Err(error) => Err(Problem::Internal(error.to_string())),
    }
}
