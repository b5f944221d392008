//! Join tokens: `id.secret.sha256(root key)`. **[format]**
//!
//! `id` is 16 hexadecimal digits, `secret` 32 bytes in URL-safe base64 without padding, the pin 64 hexadecimal digits of
//! SHA-256 over the root's SubjectPublicKeyInfo. The server keeps a hash of the secret only. Spending binds the token to
//! the key of the certificate request in one commit, before anything is signed: a retry with the same key succeeds
//! again, another key never does.

use std::{fmt, str::FromStr};

use aws_lc_rs::{constant_time::verify_slices_are_equal, digest, rand};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use weft_identity::{KeyHash, PublicKey, control_plane_id};
use weft_model::{SpiffeId, Wall};

use crate::codec::{DecodeError, Reader, Writer};

const FORMAT: u8 = 1;
/// Of a record that names services: a server that knows no such thing must not read it as one that names none.
const FORMAT_WITH_SERVICE: u8 = 2;
const ID_LEN: usize = 16;
const SECRET_LEN: usize = 32;
/// `*` in a pattern: any.
const ANY: &str = "*";

/// Why a string is not a join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error(
        "join token has {0} parts instead of three (id.secret.root-key); copy it whole, or make a new one with `weft token create`"
    )]
    Parts(usize),
    #[error("the {0} of the join token is malformed; copy it whole, or make a new one with `weft token create`")]
    Part(&'static str),
    #[error("`{0}` is no identity pattern; write namespace/service-account, where either may be `*`")]
    Pattern(String),
    #[error("no random secret could be made")]
    Random,
}

/// What the one who joins holds. `Debug` hides the secret; `Display` is the token itself.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    pub id: String,
    secret: [u8; SECRET_LEN],
    /// Who the server must prove to be, before the secret is sent.
    pub pin: KeyHash,
}

/// Which identities a token may be spent for: `namespace/service-account`, `*` for any. Never the control plane's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    namespace: String,
    service_account: String,
}

/// What the server keeps of a token. **[format]** by [`TokenRecord::encode`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRecord {
    pub id: String,
    pub secret_hash: [u8; 32],
    pub allowed: Allowed,
    /// Which service, beside the one named like its service account, the identity may register; `*`: the one that it
    /// names when it joins.
    pub service: Option<String>,
    pub not_after: Wall,
    pub spent_by: Option<KeyHash>,
}

/// The token is good for this key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Commit this record, expecting the one that was read; only then sign.
    Spend(TokenRecord),
    /// Spent before by the same key: sign again.
    Again,
}

/// Why a join is refused. `reason()` is the label for metrics.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "join token {id} is not known here; it was deleted, or is of another mesh: make a new one with `weft token create`"
    )]
    Unknown { id: String },
    #[error("join token {id} names root key {got}, this mesh has {}; use a token of this mesh", list(ours))]
    ForeignRoot { id: String, got: KeyHash, ours: Vec<KeyHash> },
    #[error("the secret of join token {id} is wrong; copy the token whole, or make a new one with `weft token create`")]
    WrongSecret { id: String },
    #[error("join token {id} expired at {not_after}, it is now {now}; make a new one with `weft token create`")]
    Expired { id: String, not_after: Wall, now: Wall },
    #[error(
        "join token {id} was spent by another key; each token joins once: make a new one with `weft token create`, and find out who used this one if it was not you"
    )]
    SpentByAnother { id: String },
    #[error("join token {id} is for {allowed}, not for {wanted}; make one that allows it with `weft token create`")]
    NotAllowed { id: String, allowed: Allowed, wanted: SpiffeId },
}

// === decisions ===

/// Makes a token and the record to commit. The token is shown once; nothing stored can bring it back.
pub fn mint(allowed: Allowed, not_after: Wall, root: KeyHash) -> Result<(JoinToken, TokenRecord), TokenError> {
    let (mut id, mut secret) = ([0_u8; ID_LEN / 2], [0_u8; SECRET_LEN]);
    rand::fill(&mut id).and_then(|()| rand::fill(&mut secret)).map_err(|_| TokenError::Random)?;
    let id: String = id.iter().map(|b| format!("{b:02x}")).collect();
    let token = JoinToken { id: id.clone(), secret, pin: root };
    Ok((token, TokenRecord { id, secret_hash: hash(&secret), allowed, service: None, not_after, spent_by: None }))
}

/// May `key` join as `wanted` with this token? `record` is what the store has under the token's id, `roots` are the keys
/// of the roots that this mesh has now. Nothing about a token is said to one who does not know its secret.
pub fn spend(
    record: Option<&TokenRecord>,
    token: &JoinToken,
    wanted: &SpiffeId,
    key: &PublicKey,
    roots: &[KeyHash],
    now: Wall,
) -> Result<Verdict, Refusal> {
    let id = || token.id.clone();
    if !roots.contains(&token.pin) {
        return Err(Refusal::ForeignRoot { id: id(), got: token.pin, ours: roots.to_vec() });
    }
    let record = record.filter(|r| r.id == token.id).ok_or_else(|| Refusal::Unknown { id: id() })?;
    // both sides are hashes: comparing leaks nothing of the secret even before the constant time
    if verify_slices_are_equal(&hash(&token.secret), &record.secret_hash).is_err() {
        return Err(Refusal::WrongSecret { id: id() });
    }
    if now >= record.not_after {
        return Err(Refusal::Expired { id: id(), not_after: record.not_after, now });
    }
    if !record.allowed.matches(wanted) {
        return Err(Refusal::NotAllowed { id: id(), allowed: record.allowed.clone(), wanted: wanted.clone() });
    }
    match record.spent_by {
        None => Ok(Verdict::Spend(TokenRecord { spent_by: Some(key.hash()), ..record.clone() })),
        Some(by) if by == key.hash() => Ok(Verdict::Again),
        Some(_) => Err(Refusal::SpentByAnother { id: id() }),
    }
}

fn hash(secret: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, secret).as_ref());
    out
}

fn list(keys: &[KeyHash]) -> String {
    keys.iter().map(KeyHash::to_string).collect::<Vec<_>>().join(", ")
}

// === impl JoinToken ===

impl FromStr for JoinToken {
    type Err = TokenError;
    fn from_str(s: &str) -> Result<Self, TokenError> {
        let parts: Vec<&str> = s.trim().split('.').collect();
        let [id, secret, pin] = parts.as_slice() else { return Err(TokenError::Parts(parts.len())) };
        if id.len() != ID_LEN || !id.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f')) {
            return Err(TokenError::Part("id"));
        }
        let secret = URL_SAFE_NO_PAD.decode(secret).ok().and_then(|s| s.try_into().ok());
        Ok(Self {
            id: (*id).to_owned(),
            secret: secret.ok_or(TokenError::Part("secret"))?,
            pin: pin.parse().map_err(|_| TokenError::Part("root key"))?,
        })
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.id, URL_SAFE_NO_PAD.encode(self.secret), self.pin)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({})", self.id)
    }
}

// === impl Allowed ===

impl Allowed {
    pub fn any() -> Self {
        Self { namespace: ANY.into(), service_account: ANY.into() }
    }

    pub fn matches(&self, id: &SpiffeId) -> bool {
        let part = |pattern: &str, got: &str| pattern == ANY || pattern == got;
        // Istio's form only: the other dialects are views for policies, not identities that we hand out
        let Some(rest) = id.path().strip_prefix("/ns/") else { return false };
        let Some((namespace, account)) = rest.split_once("/sa/") else { return false };
        part(&self.namespace, namespace)
            && part(&self.service_account, account)
            && !account.contains('/')
            && *id != control_plane_id(&id.trust_domain())
    }
}

impl FromStr for Allowed {
    type Err = TokenError;
    fn from_str(s: &str) -> Result<Self, TokenError> {
        let bad = || TokenError::Pattern(s.chars().take(256).collect());
        let (namespace, service_account) = s.split_once('/').ok_or_else(bad)?;
        let fine = |p: &str| {
            p == ANY
                || !p.is_empty()
                    && p.len() <= 253
                    && p.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
        };
        if !fine(namespace) || !fine(service_account) {
            return Err(bad());
        }
        Ok(Self { namespace: namespace.into(), service_account: service_account.into() })
    }
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service_account)
    }
}

// === impl TokenRecord ===

impl TokenRecord {
    #[must_use]
    pub fn for_service(mut self, service: Option<String>) -> Self {
        self.service = service;
        self
    }

    /// The service that one who joins with the token and names `claimed` may register. `None`: its namesake only.
    pub fn grants<'a>(&'a self, claimed: Option<&'a str>) -> Option<&'a str> {
        match self.service.as_deref() {
            Some(ANY) => claimed,
            named => named,
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new(if self.service.is_some() { FORMAT_WITH_SERVICE } else { FORMAT });
        w.text(&self.id).bytes(&self.secret_hash).text(&self.allowed.to_string()).wall(self.not_after);
        match &self.spent_by {
            None => w.byte(0),
            Some(key) => w.byte(1).key(key),
        };
        if let Some(service) = &self.service {
            w.text(service);
        }
        w.done()
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let with_service = bytes.first() == Some(&FORMAT_WITH_SERVICE);
        let format = if with_service { FORMAT_WITH_SERVICE } else { FORMAT };
        let mut r = Reader::new(bytes, "join token", format)?;
        let id = r.text()?.to_owned();
        let secret_hash = r.bytes()?.try_into().map_err(|_| r.corrupt())?;
        let allowed = r.text()?.parse().map_err(|_| r.corrupt())?;
        let not_after = r.wall()?;
        let spent_by = match r.byte()? {
            0 => None,
            1 => Some(r.key()?),
            _ => return Err(r.corrupt()),
        };
        let service = if with_service { Some(r.text()?.to_owned()) } else { None };
        r.done()?;
        Ok(Self { id, secret_hash, allowed, service, not_after, spent_by })
    }
}

// === impl Refusal ===

impl Refusal {
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "unknown",
            Self::ForeignRoot { .. } => "foreign_root",
            Self::WrongSecret { .. } => "wrong_secret",
            Self::Expired { .. } => "expired",
            Self::SpentByAnother { .. } => "spent",
            Self::NotAllowed { .. } => "not_allowed",
        }
    }
}

#[cfg(test)]
mod tests;
