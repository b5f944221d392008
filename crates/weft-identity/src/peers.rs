//! The verdict as rustls wants it: a server's and a client's verifier, and that of a client that knows only a pin.

use rustls::{
    DigitallySignedStruct, DistinguishedName, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use weft_model::{SpiffeId, Wall};

use crate::{
    bundle::{Bundle, Revocations, Trust},
    cert::{Facts, KeyHash},
    tls::{ClientAuth, provider},
    verify::{MAX_CHAIN, PeerInfo, VerifyError, expect, recheck, wall},
};

/// The client's side: checks the server against the identities expected of it.
#[derive(Debug)]
pub(crate) struct ServerIs {
    trust: Trust,
    expected: Vec<SpiffeId>,
}

/// The server's side: any identity of the trust domain; what it may do is authorization's question.
#[derive(Debug)]
pub(crate) struct ClientIs {
    trust: Trust,
    auth: ClientAuth,
}

/// A joining client's side: it knows one key only.
#[derive(Debug)]
pub(crate) struct PinnedRoot {
    pub(crate) pin: KeyHash,
}

// === constructors, verdict of a pin ===

impl ServerIs {
    pub(crate) fn new(trust: Trust, expected: Vec<SpiffeId>) -> Self {
        Self { trust, expected }
    }
}

impl ClientIs {
    pub(crate) fn new(trust: Trust, auth: ClientAuth) -> Self {
        Self { trust, auth }
    }
}

impl PinnedRoot {
    /// The pinned root becomes the whole bundle; the server must be the control plane of the root's trust domain.
    fn judge(&self, chain: &[CertificateDer<'_>], now: Wall) -> Result<PeerInfo, VerifyError> {
        let foreign = || VerifyError::ForeignRoot { pin: self.pin };
        if chain.len() > MAX_CHAIN {
            return Err(VerifyError::ChainTooLong);
        }
        let pinned = |c: &&CertificateDer<'_>| Facts::read(c).is_ok_and(|f| f.key == self.pin);
        let root = chain.iter().skip(1).find(pinned).ok_or_else(foreign)?;
        let td = Facts::read(root).and_then(|f| f.spiffe_id()).map_err(VerifyError::Certificate)?.trust_domain();
        let bundle = Bundle::new(td.clone(), vec![root.clone().into_owned()]).map_err(|_| foreign())?;
        let info = recheck(chain, &bundle, &Revocations::default(), now)?;
        expect(info, &[crate::control_plane_id(&td)])
    }
}

fn whole(leaf: &CertificateDer<'_>, above: &[CertificateDer<'_>]) -> Vec<CertificateDer<'static>> {
    std::iter::once(leaf).chain(above).map(|c| c.clone().into_owned()).collect()
}

fn algorithms() -> &'static WebPkiSupportedAlgorithms {
    &provider().signature_verification_algorithms
}

/// TLS 1.2 is never negotiated; rustls still wants an answer.
fn no_tls12() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is not spoken inside the mesh".into())
}

macro_rules! tls13_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Err(no_tls12())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            verify_tls13_signature(message, cert, dss, algorithms())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            algorithms().supported_schemes()
        }
    };
}

impl ServerCertVerifier for ServerIs {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = whole(end_entity, intermediates);
        recheck(&chain, &self.trust.bundle, &self.trust.revocations, wall(now))
            .and_then(|info| expect(info, &self.expected))
            .map(|_| ServerCertVerified::assertion())
            .map_err(VerifyError::into_tls)
    }

    tls13_signatures!();
}

impl ServerCertVerifier for PinnedRoot {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.judge(&whole(end_entity, intermediates), wall(now))
            .map(|_| ServerCertVerified::assertion())
            .map_err(VerifyError::into_tls)
    }

    tls13_signatures!();
}

impl ClientCertVerifier for ClientIs {
    fn client_auth_mandatory(&self) -> bool {
        matches!(self.auth, ClientAuth::Required)
    }

    /// None: names of authorities would only make the handshake longer, a client of ours has one SVID.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let chain = whole(end_entity, intermediates);
        recheck(&chain, &self.trust.bundle, &self.trust.revocations, wall(now))
            .map(|_| ClientCertVerified::assertion())
            .map_err(VerifyError::into_tls)
    }

    tls13_signatures!();
}
