use std::io::{Read as _, Write as _};

use rustls::{ClientConnection, HandshakeKind, ServerConnection};
use rustls_pki_types::ServerName;

use super::*;
use crate::{
    Revocations, SvidError, VerifyError, control_plane_id, principal, recheck,
    testing::{HOUR, NOW, TestCa, clock, dates, id},
};

const WEB: &str = "spiffe://mesh.weft/ns/shop/sa/web";
const API: &str = "spiffe://mesh.weft/ns/shop/sa/api";
const BOTH: &[&[u8]] = &[ALPN_WEFT1, ALPN_H2];

struct Pair {
    client: ClientConnection,
    server: ServerConnection,
}

/// Which side refused, and why.
#[derive(Debug)]
enum Refused {
    Client(rustls::Error),
    Server(rustls::Error),
}

impl Refused {
    fn verdict(&self) -> &VerifyError {
        let (Self::Client(e) | Self::Server(e)) = self;
        VerifyError::in_handshake(e).unwrap_or_else(|| panic!("{self:?}"))
    }
}

fn carry(mut from: impl FnMut(&mut Vec<u8>), mut to: impl FnMut(&mut &[u8])) -> bool {
    let mut bytes = Vec::new();
    from(&mut bytes);
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        to(&mut rest);
    }
    !bytes.is_empty()
}

fn shake(client: Arc<ClientConfig>, server: Arc<ServerConfig>, name: &str) -> Result<Pair, Refused> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(client, name).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    loop {
        let up = carry(|b| while client.write_tls(b).unwrap() > 0 {}, |b| _ = server.read_tls(b).unwrap());
        server.process_new_packets().map_err(Refused::Server)?;
        let down = carry(|b| while server.write_tls(b).unwrap() > 0 {}, |b| _ = client.read_tls(b).unwrap());
        client.process_new_packets().map_err(Refused::Client)?;
        if !up && !down {
            return Ok(Pair { client, server });
        }
    }
}

fn uid(s: &str) -> Uid {
    Uid::parse(s).unwrap()
}

#[test]
fn sec_15_sec_14_sec_07_mutual_handshake_is_tls13_post_quantum_and_knows_both_identities() {
    let ca = TestCa::new("mesh.weft");
    let (web, api) = (ca.svid(WEB), ca.svid(API));
    let client = client_config(&web, &ca.trust(), &[id(API)], BOTH, &clock());
    let server = server_config(&api, &ca.trust(), ClientAuth::Required, BOTH, &clock());
    let sni = uid("shop/api/n1/api-1").sni();
    let mut pair = shake(client, server, &sni).unwrap();

    let seen = negotiated(&pair.client).unwrap();
    assert_eq!(seen.version, "TLSv1.3");
    assert_eq!(seen.group, "X25519MLKEM768");
    assert!(seen.post_quantum);
    assert_eq!(seen.cipher, "TLS_AES_128_GCM_SHA256");
    assert_eq!(seen.alpn.as_deref(), Some(ALPN_WEFT1));
    assert_eq!(negotiated(&pair.server).unwrap(), seen);
    assert_eq!(pair.client.handshake_kind(), Some(HandshakeKind::Full), "the first key share was right");

    assert_eq!(pair.server.server_name(), Some(sni.as_str()));
    assert_eq!(principal(pair.server.peer_certificates().unwrap()).unwrap(), id(WEB));
    assert_eq!(principal(pair.client.peer_certificates().unwrap()).unwrap(), id(API));
    let live = recheck(pair.server.peer_certificates().unwrap(), &ca.bundle(), &Revocations::default(), NOW).unwrap();
    assert_eq!((live.serial, live.not_after), (web.serial().clone(), web.not_after()));

    pair.client.writer().write_all(b"hello").unwrap();
    carry(|b| _ = pair.client.write_tls(b).unwrap(), |b| _ = pair.server.read_tls(b).unwrap());
    pair.server.process_new_packets().unwrap();
    let mut got = [0; 5];
    pair.server.reader().read_exact(&mut got).unwrap();
    assert_eq!(&got, b"hello");
}

#[test]
fn sec_15_falls_back_to_x25519_and_says_so() {
    let ca = TestCa::new("mesh.weft");
    let mut classical = (**provider()).clone();
    classical.kx_groups = vec![kx_group::X25519];
    let client = ClientConfig::builder_with_details(Arc::new(classical), Arc::new(clock()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerIs::new(ca.trust(), vec![id(API)])))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(ca.svid(WEB).certified_key().clone())));
    let server = server_config(&ca.svid(API), &ca.trust(), ClientAuth::Required, BOTH, &clock());
    let pair = shake(Arc::new(client), server, "x.weft.internal").unwrap();
    let seen = negotiated(&pair.server).unwrap();
    assert_eq!((seen.group, seen.post_quantum), ("X25519", false));
    assert_eq!(seen.alpn, None, "a peer without ALPN is let through and visible");
}

#[test]
fn sec_14_tls12_is_not_spoken() {
    let ca = TestCa::new("mesh.weft");
    let client = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let server = server_config(&ca.svid(API), &ca.trust(), ClientAuth::Required, BOTH, &clock());
    let e = shake(Arc::new(client), server, "x.weft.internal").err().unwrap();
    assert!(matches!(e, Refused::Server(rustls::Error::PeerIncompatible(_))), "{e:?}");
}

#[test]
fn sec_07_alpn_prefers_weft1_and_refuses_strangers() {
    let ca = TestCa::new("mesh.weft");
    let with = |offer: &[&[u8]]| {
        let client = client_config(&ca.svid(WEB), &ca.trust(), &[id(API)], offer, &clock());
        let server = server_config(&ca.svid(API), &ca.trust(), ClientAuth::Required, BOTH, &clock());
        shake(client, server, "10.0.0.1")
    };
    let pair = with(&[ALPN_H2, ALPN_WEFT1]).unwrap();
    assert_eq!(pair.client.alpn_protocol(), Some(ALPN_WEFT1));
    assert_eq!(pair.server.server_name(), None, "an address as name sends no SNI");
    assert_eq!(with(&[ALPN_H2]).unwrap().server.alpn_protocol(), Some(ALPN_H2));
    assert!(matches!(with(&[b"http/1.1"]), Err(Refused::Server(rustls::Error::NoApplicationProtocol))));
}

#[test]
fn sec_13_the_client_checks_identities_not_names() {
    let ca = TestCa::new("mesh.weft");
    let server = server_config(&ca.svid(API), &ca.trust(), ClientAuth::Required, BOTH, &clock());
    let to = |expected: &[SpiffeId]| {
        let client = client_config(&ca.svid(WEB), &ca.trust(), expected, BOTH, &clock());
        shake(client, server.clone(), "no.such.name").map(|_| ())
    };
    to(&[id(API)]).unwrap();
    let e = to(&[id(WEB)]).unwrap_err();
    assert_eq!(e.verdict(), &VerifyError::UnexpectedId { got: id(API), want: vec![id(WEB)] });
    assert_eq!(to(&[]).unwrap_err().verdict().reason(), "unexpected_id");
}

#[test]
fn sec_07_the_server_refuses_foreign_expired_revoked_and_absent_clients() {
    let (ca, other) = (TestCa::new("mesh.weft"), TestCa::new("other.weft"));
    let api = ca.svid(API);
    let server = |trust: &Trust, auth| server_config(&api, trust, auth, BOTH, &clock());
    let client = |svid: &Svid| client_config(svid, &ca.trust(), &[id(API)], BOTH, &clock());
    let refused = |svid: &Svid, trust: &Trust| {
        let e = shake(client(svid), server(trust, ClientAuth::Required), "x.y").err().unwrap();
        assert!(matches!(e, Refused::Server(_)), "{e:?}");
        e.verdict().clone()
    };
    let foreign = other.svid("spiffe://other.weft/ns/shop/sa/web");
    assert_eq!(refused(&foreign, &ca.trust()).reason(), "foreign_trust_domain");
    let (chain, key) = ca.leaf(WEB, |p| dates(p, NOW.minus(HOUR * 3), NOW.minus(HOUR)));
    assert_eq!(refused(&Svid::new(chain, key).unwrap(), &ca.trust()).reason(), "expired");
    let revoked = Revocations { ids: [id(WEB)].into(), ..Default::default() };
    assert_eq!(refused(&ca.svid(WEB), &Trust::new(ca.bundle(), revoked)).reason(), "revoked");

    let anonymous = || {
        let verifier = Arc::new(ServerIs::new(ca.trust(), vec![id(API)]));
        let c = client_builder(&clock()).dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
        finish_client(c, BOTH)
    };
    let e = shake(anonymous(), server(&ca.trust(), ClientAuth::Required), "x.y").err().unwrap();
    assert!(matches!(e, Refused::Server(rustls::Error::NoCertificatesPresented)), "{e:?}");
    let pair = shake(anonymous(), server(&ca.trust(), ClientAuth::Optional), "x.y").unwrap();
    assert!(pair.server.peer_certificates().is_none());
    let e = shake(client(&foreign), server(&ca.trust(), ClientAuth::Optional), "x.y").err().unwrap();
    assert_eq!(e.verdict().reason(), "foreign_trust_domain", "optional is not careless");
}

#[test]
fn sec_14_nothing_is_resumed() {
    let ca = TestCa::new("mesh.weft");
    let client = client_config(&ca.svid(WEB), &ca.trust(), &[id(API)], BOTH, &clock());
    let server = server_config(&ca.svid(API), &ca.trust(), ClientAuth::Required, BOTH, &clock());
    for _ in 0..3 {
        let pair = shake(client.clone(), server.clone(), "x.weft.internal").unwrap();
        assert_eq!(pair.client.tls13_tickets_received(), 0);
        assert_eq!(pair.server.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[test]
fn sec_10_a_joining_client_trusts_the_pinned_root_and_the_control_plane_only() {
    let (ca, other) = (TestCa::new("mesh.weft"), TestCa::new("mesh.weft"));
    let mid = ca.intermediate(rcgen::BasicConstraints::Constrained(0), |_| ());
    let pin = ca.bundle().authorities()[0].key;
    let control = control_plane_id(&ca.td);
    let join = |svid: &Svid| {
        let server = server_config(svid, &ca.trust(), ClientAuth::Optional, &[ALPN_H2], &clock());
        shake(join_client_config(pin, &[ALPN_H2], &clock()), server, "localhost").map(|_| ())
    };
    join(&mid.svid(control.as_str()).with_authority(&ca.der).unwrap()).unwrap();
    // the right root, but a workload: it must not be able to collect tokens
    let e = join(&mid.svid(WEB).with_authority(&ca.der).unwrap()).unwrap_err();
    assert_eq!(e.verdict(), &VerifyError::UnexpectedId { got: id(WEB), want: vec![control.clone()] });
    // another mesh
    let e = join(&other.svid(control.as_str()).with_authority(&other.der).unwrap()).unwrap_err();
    assert_eq!(e.verdict(), &VerifyError::ForeignRoot { pin });
    // the pinned root is shown, but did not sign
    let e = join(&other.svid(control.as_str()).with_authority(&ca.der).unwrap()).unwrap_err();
    assert_eq!(e.verdict().reason(), "unknown_authority");
    let e = join(&mid.svid(control.as_str())).unwrap_err();
    assert!(e.verdict().to_string().contains("the token is of another mesh"));
}

#[test]
fn sec_07_server_names_and_addresses_choose_the_workload() {
    let ca = TestCa::new("mesh.weft");
    let config = server_config(&ca.svid(API), &ca.trust(), ClientAuth::Required, BOTH, &clock());
    let identity = |u: &str| ServerIdentity { uid: uid(u), config: config.clone() };
    let [one, two, shared]: [IpAddr; 3] = ["10.0.0.1", "10.0.0.2", "127.0.0.1"].map(|s| s.parse().unwrap());
    let mut p = Presented::default();
    p.add(identity("a/a/n/1"), [one, shared]);
    p.add(identity("b/b/n/1"), [two, shared]);
    p.add(identity("b/b/n/1"), [two]);
    let chosen = |sni: Option<&str>, at| p.select(sni, at).map(|i| i.uid.to_string());
    assert_eq!(chosen(Some(&uid("b/b/n/1").sni()), shared).unwrap(), "b/b/n/1");
    assert_eq!(chosen(None, one).unwrap(), "a/a/n/1");
    assert_eq!(chosen(None, two).unwrap(), "b/b/n/1");
    assert_eq!(chosen(None, shared).unwrap_err(), SelectError::Ambiguous(shared));
    assert_eq!(chosen(Some("x.example"), one).unwrap_err().reason(), "unknown_sni");
    let nowhere = "10.9.9.9".parse().unwrap();
    assert_eq!(chosen(None, nowhere).unwrap_err(), SelectError::UnknownAddress(nowhere));
    assert!(p.by_uid(&uid("a/a/n/1")).is_some());
}

#[test]
fn sec_07_an_svid_is_checked_when_made_and_hides_its_key() {
    let ca = TestCa::new("mesh.weft");
    let svid = ca.svid(WEB);
    let again = Svid::from_pem(svid.chain_pem().as_bytes(), svid.key_pem().as_bytes()).unwrap();
    assert_eq!((again.id(), again.serial(), again.chain()), (svid.id(), svid.serial(), svid.chain()));
    assert_eq!(format!("{svid:?}").matches("key").count(), 0);
    let other = ca.svid(WEB);
    let e = Svid::new(svid.chain().to_vec(), other.key().clone_key()).unwrap_err();
    assert_eq!(e, SvidError::KeyMismatch { id: id(WEB) });
    let (chain, key) = ca.leaf(WEB, |p| p.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
    assert!(matches!(Svid::new(chain, key), Err(SvidError::Rule { .. })));
    assert_eq!(Svid::from_pem(b"", b"").unwrap_err(), SvidError::Pem("private key"));
    warm_up();
}
