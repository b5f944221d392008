//! Reading a signed certificate back before it leaves: every field against its template, and the chain as a peer will
//! verify it. A defect in the encoder, in the template or in a slot must end here.

use rustls_pki_types::CertificateDer;
use weft_identity::{CertError, Facts, Revocations, VerifyError, cert::KeyUses, recheck};
use x509_parser::{
    oid_registry::{
        OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER, OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_EXTENDED_KEY_USAGE,
        OID_X509_EXT_KEY_USAGE, OID_X509_EXT_SUBJECT_ALT_NAME, OID_X509_EXT_SUBJECT_KEY_IDENTIFIER,
    },
    prelude::{FromDer, X509Certificate},
};

use crate::{
    issue::Signer,
    template::{Form, Template},
};

/// In what a signed certificate differs from what was decided.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("it cannot be read back")]
    Unreadable(#[source] CertError),
    #[error("its {0} is not the one decided")]
    Differs(&'static str),
    #[error("it has the extension {0}, which nobody decided")]
    Extension(String),
    #[error("its signature is not the signer's")]
    Signature,
    #[error("a peer would refuse it")]
    Peer(#[source] VerifyError),
}

/// `cert` against `template`, as signed by `signer`.
pub fn check(template: &Template, cert: &CertificateDer<'static>, signer: &Signer) -> Result<(), Violation> {
    let facts = fields(template, cert)?;
    if facts.issuer_der != signer.facts.subject_der {
        return Err(Violation::Differs("issuer"));
    }
    if facts.not_after > signer.facts.not_after {
        return Err(Violation::Differs("end of validity (it outlives its signer)"));
    }
    if !signed_by(cert, &signer.certificate) {
        return Err(Violation::Signature);
    }
    if let Form::Leaf { .. } = template.form {
        let chain = signer.chain_of(cert.clone());
        let peer = recheck(&chain, &signer.root, &Revocations::default(), template.decided).map_err(Violation::Peer)?;
        if peer.id != template.id {
            return Err(Violation::Differs("SPIFFE ID"));
        }
    }
    Ok(())
}

/// A root against its template: it has no signer but itself.
pub fn check_root(template: &Template, cert: &CertificateDer<'static>) -> Result<(), Violation> {
    let facts = fields(template, cert)?;
    if facts.issuer_der != facts.subject_der {
        return Err(Violation::Differs("issuer"));
    }
    if signed_by(cert, cert) { Ok(()) } else { Err(Violation::Signature) }
}

/// Whether the key in `signer` made the signature of `cert`.
pub fn signed_by(cert: &[u8], signer: &[u8]) -> bool {
    let (Ok((_, cert)), Ok((_, signer))) = (X509Certificate::from_der(cert), X509Certificate::from_der(signer)) else {
        return false;
    };
    cert.issuer() == signer.subject() && cert.verify_signature(Some(signer.public_key())).is_ok()
}

fn fields(t: &Template, cert: &[u8]) -> Result<Facts, Violation> {
    let facts = Facts::read(cert).map_err(Violation::Unreadable)?;
    extensions(cert)?;
    let ca = matches!(t.form, Form::Authority { .. });
    let (dns, path_len) = match &t.form {
        Form::Leaf { dns_names } => (dns_names.as_slice(), None),
        Form::Authority { path_len, .. } => (&[][..], Some(u32::from(*path_len))),
    };
    let usage = KeyUses { digital_signature: !ca, cert_sign: ca, crl_sign: ca };
    let extended = match facts.extended {
        None => ca,
        Some(e) => !ca && e.server_auth && e.client_auth && !e.others,
    };
    let name = t.common_name().map(|n| format!("CN={n}")).unwrap_or_default();
    let same = [
        ("subject alternative name", facts.uris == [t.id.as_str()] && facts.dns_names == dns && facts.other_names == 0),
        ("public key", facts.spki == t.public_key.spki()),
        ("serial number", facts.serial == t.serial),
        ("validity", (facts.not_before, facts.not_after) == (t.not_before, t.not_after)),
        ("basic constraint", (facts.ca, facts.path_len) == (ca, path_len)),
        ("key usage", facts.key_usage == Some(usage)),
        ("extended key usage", extended),
        ("subject", facts.subject == name),
    ];
    match same.iter().find(|(_, same)| !same) {
        Some((what, _)) => Err(Violation::Differs(what)),
        None => Ok(facts),
    }
}

fn extensions(cert: &[u8]) -> Result<(), Violation> {
    let known = [
        OID_X509_EXT_AUTHORITY_KEY_IDENTIFIER,
        OID_X509_EXT_BASIC_CONSTRAINTS,
        OID_X509_EXT_EXTENDED_KEY_USAGE,
        OID_X509_EXT_KEY_USAGE,
        OID_X509_EXT_SUBJECT_ALT_NAME,
        OID_X509_EXT_SUBJECT_KEY_IDENTIFIER,
    ];
    let (_, cert) =
        X509Certificate::from_der(cert).map_err(|e| Violation::Unreadable(CertError::Der(e.to_string())))?;
    match cert.extensions().iter().find(|e| !known.contains(&e.oid)) {
        Some(e) => Err(Violation::Extension(e.oid.to_id_string())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
