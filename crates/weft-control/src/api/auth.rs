//! Who may ask over HTTP: the bearer of the admin token. On loopback too.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, Method, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};

use super::failure::Failure;
use crate::{first_start::hex_sha256, server::Control};

/// Routes that say nothing worth protecting.
const OPEN: [&str; 3] = ["/healthz/", "/version", "/livez"];
/// Beside the header that every client knows, the one of Consul's clients.
const CONSUL_TOKEN: &str = "x-consul-token";

pub async fn check(State(control): State<Arc<Control>>, request: Request, next: Next) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let open = OPEN.iter().any(|p| request.uri().path().starts_with(p)) || (reads && control.open_reads);
    match if open { Ok(()) } else { judge(request.headers(), &control.replica.state().admin.sha256) } {
        Ok(()) => next.run(request).await,
        Err(failure) => failure.into_response(),
    }
}

/// Pure: does one of the headers carry the token with this hash?
fn judge(headers: &HeaderMap, sha256: &str) -> Result<(), Failure> {
    let bearer =
        headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("Bearer "));
    let token = bearer.or_else(|| headers.get(CONSUL_TOKEN).and_then(|v| v.to_str().ok()));
    let Some(token) = token else {
        return Err(Failure::unauthorized(
            "no token; send `Authorization: Bearer …` with the content of <data>/admin.token, or name that file with --token-file or WEFT_TOKEN_FILE",
        ));
    };
    // hashes are compared, so that time says nothing of the token
    if hex_sha256(token.trim().as_bytes()) == sha256 {
        return Ok(());
    }
    Err(Failure::forbidden(
        "the token is not this mesh's admin token; the right one is in <data>/admin.token of its server",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_decides() {
        let sha = hex_sha256(b"right");
        let with =
            |name: &'static str, value: &str| HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())]);
        assert!(judge(&with("authorization", "Bearer right"), &sha).is_ok());
        assert!(judge(&with("x-consul-token", "right"), &sha).is_ok());
        let code = |h: &HeaderMap| judge(h, &sha).unwrap_err().to_json()["code"].clone();
        assert_eq!(code(&HeaderMap::new()), 401);
        assert_eq!(code(&with("authorization", "Basic cmlnaHQ=")), 401);
        assert_eq!(code(&with("authorization", "Bearer wrong")), 403);
    }
}
