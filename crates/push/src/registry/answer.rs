//! Answers: bodies, and errors in the form of the specification.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full};

use super::{AnswerBody, Denied};
use crate::change::BadName;
use crate::store::StoreError;

pub(super) fn empty() -> AnswerBody {
    Empty::new().map_err(|never| match never {}).boxed()
}

pub(super) fn full(bytes: impl Into<Bytes>) -> AnswerBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

pub(super) fn json(status: StatusCode, value: &serde_json::Value) -> Response<AnswerBody> {
    let text = value.to_string();
    let mut response = Response::new(full(text.clone()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(CONTENT_LENGTH, text.len().into());
    response
}

/// A text as a header value; what no header can carry is left out.
pub(super) fn header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Why a request was not carried out.
#[derive(Debug)]
pub(super) enum Problem {
    Denied(Denied),
    Store(StoreError),
    /// Status, code of the specification, message.
    Request(StatusCode, &'static str, String),
    /// The sender's bytes stopped coming.
    CutOff(String),
    Internal(String),
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        Problem::Store(error)
    }
}

impl Problem {
    pub(super) fn bad(code: &'static str, message: impl Into<String>) -> Self {
        Problem::Request(StatusCode::BAD_REQUEST, code, message.into())
    }

    pub(super) fn not_found(path: &str) -> Self {
        let path: String = path.chars().take(200).collect();
        Problem::Request(
            StatusCode::NOT_FOUND,
            "UNSUPPORTED",
            format!("there is nothing at {path:?}"),
        )
    }

    pub(super) fn upload_unknown(id: &str) -> Self {
        Problem::Store(StoreError::UploadUnknown {
            id: id.chars().take(64).collect(),
        })
    }

    pub(super) fn name_invalid(error: BadName) -> Self {
        Self::bad("NAME_INVALID", error.to_string())
    }

    pub(super) fn digest_invalid(error: BadName) -> Self {
        Self::bad("DIGEST_INVALID", error.to_string())
    }

    pub(super) fn manifest_reference(error: BadName) -> Self {
        Self::bad("MANIFEST_INVALID", error.to_string())
    }

    pub(super) fn method_not_allowed(method: &Method) -> Self {
        Problem::Request(
            StatusCode::METHOD_NOT_ALLOWED,
            "UNSUPPORTED",
            format!("{method} is not possible here"),
        )
    }

    fn parts(&self) -> (StatusCode, &'static str, String) {
        let message = |error: &StoreError| {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(error);
            while let Some(cause) = source {
                text.push_str(": ");
                text.push_str(&cause.to_string());
                source = cause.source();
            }
            text
        };
        match self {
            Problem::Denied(denied) if denied.challenge.is_some() => {
                (StatusCode::UNAUTHORIZED, "UNAUTHORIZED", denied.message.clone())
            }
            Problem::Denied(denied) => (StatusCode::FORBIDDEN, "DENIED", denied.message.clone()),
            Problem::Request(status, code, message) => (*status, code, message.clone()),
            Problem::CutOff(why) => (StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", why.clone()),
            Problem::Internal(why) => (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", why.clone()),
            Problem::Store(error) => {
                let (status, code) = match error {
                    StoreError::Io { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN"),
                    StoreError::NoRoom { .. } => (StatusCode::INSUFFICIENT_STORAGE, "SIZE_INVALID"),
                    StoreError::DigestMismatch { .. } => (StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
                    StoreError::DeltaInvalid { .. } => (StatusCode::BAD_REQUEST, "DELTA_INVALID"),
                    StoreError::SizeMismatch { .. } => (StatusCode::BAD_REQUEST, "SIZE_INVALID"),
                    StoreError::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID"),
                    StoreError::TooManyUploads { .. } => (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
                    StoreError::WrongOffset { .. } => {
                        (StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID")
                    }
                    StoreError::UploadUnknown { .. } => (StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
                    StoreError::BlobUnknown { .. } => (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
                    StoreError::ManifestUnknown { .. } => (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
                    StoreError::ManifestBlobUnknown { .. } => {
                        (StatusCode::NOT_FOUND, "MANIFEST_BLOB_UNKNOWN")
                    }
                    StoreError::ManifestInvalid { .. } => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
                };
                (status, code, message(error))
            }
        }
    }

    pub(super) fn into_response(self) -> Response<AnswerBody> {
        let (status, code, message) = self.parts();
        if status.is_server_error() {
            tracing::warn!(%code, %message, "registry request failed");
        }
        let mut response = json(
            status,
            &serde_json::json!({"errors": [{"code": code, "message": message, "detail": null}]}),
        );
        if let Problem::Denied(Denied {
            challenge: Some(challenge),
            ..
        }) = &self
        {
            response
                .headers_mut()
                .insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if let Problem::Store(StoreError::WrongOffset { expected, .. }) = &self {
            response
                .headers_mut()
                .insert(http::header::RANGE, header(&super::uploads::range(*expected)));
        }
        response
    }
}
