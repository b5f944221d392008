//! Errors as Kubernetes says them: a `Status` object with every cause.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use weft_resources::{ResourceKey, Violations};

use crate::{documents::DocumentError, replica::CommitFailure};

/// An answer that is a refusal.
#[derive(Debug)]
pub struct Failure {
    code: StatusCode,
    reason: &'static str,
    message: String,
    of: Option<ResourceKey>,
    causes: Vec<Value>,
}

pub type Answer<T = Response> = Result<T, Failure>;

impl Failure {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), of: None, causes: Vec::new() }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", message)
    }

    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", message)
    }

    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "Conflict", message)
    }

    /// What the watcher asked to begin from is no longer in the log.
    pub fn gone(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    pub fn unsupported_media(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
    }

    /// All violations, each with its field.
    pub fn invalid(of: Option<ResourceKey>, violations: &Violations) -> Self {
        let what = of.as_ref().map_or_else(|| "the document".to_owned(), |k| format!("`{k}`"));
        let mut this = Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Invalid",
            format!("{what} is not valid: {}", violations.to_string().replace('\n', "; ")),
        );
        this.of = of;
        this.causes = violations
            .iter()
            .map(|v| json!({ "reason": "FieldValueInvalid", "message": v.message, "field": v.spot.path }))
            .collect();
        this
    }

    #[must_use]
    pub fn of(mut self, key: &ResourceKey) -> Self {
        self.of = Some(key.clone());
        self
    }

    /// The object itself, for a watch's last event.
    pub fn to_json(&self) -> Value {
        let mut details = json!({ "causes": self.causes });
        if let (Some(key), Some(map)) = (&self.of, details.as_object_mut()) {
            map.insert("name".into(), json!(key.name));
            map.insert("group".into(), json!(key.kind.info().group));
            map.insert("kind".into(), json!(key.kind.info().plural));
        }
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": self.message,
            "reason": self.reason, "details": details, "code": self.code.as_u16(),
        })
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = (self.code, Json(self.to_json())).into_response();
        if self.code == StatusCode::UNAUTHORIZED {
            let bearer = axum::http::HeaderValue::from_static("Bearer realm=\"weft\"");
            response.headers_mut().insert(axum::http::header::WWW_AUTHENTICATE, bearer);
        }
        response
    }
}

impl From<CommitFailure<DocumentError>> for Failure {
    fn from(e: CommitFailure<DocumentError>) -> Self {
        match e {
            CommitFailure::Refused(e) => {
                let message = e.to_string();
                match e {
                    DocumentError::Exists(key) => Self::new(StatusCode::CONFLICT, "AlreadyExists", message).of(&key),
                    DocumentError::Missing(key) => Self::not_found(message).of(&key),
                    DocumentError::Conflict { key, .. } => Self::conflict(message).of(&key),
                    DocumentError::Twice(key) => Self::bad_request(message).of(&key),
                }
            }
            other => Self::of_commit(&other),
        }
    }
}

impl Failure {
    /// For failures of the store itself.
    pub fn of_commit<E: std::error::Error + 'static>(e: &CommitFailure<E>) -> Self {
        use weft_store::CommitError;
        let told = e.told();
        match e {
            CommitFailure::Refused(_) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", told),
            CommitFailure::Contended => Self::conflict(told),
            CommitFailure::Store(CommitError::TooLarge { .. }) => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", told)
            }
            CommitFailure::Store(CommitError::Unknown { .. }) => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", told)
            }
            CommitFailure::Behind => Self::unavailable(told),
            CommitFailure::Store(_) | CommitFailure::Read(_) => Self::internal(told),
        }
    }
}
