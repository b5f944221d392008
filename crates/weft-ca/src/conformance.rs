//! What we issue, read by another implementation: the `openssl` command. Without it the tests say so and pass, except in
//! CI, where it must be there.

use std::{path::Path, process::Command};

use weft_identity::csr::KeyPair;

use crate::{
    issue::tests::{NOW, mesh, web},
    slots,
};

fn openssl(dir: &Path, args: &[&str]) -> Option<(bool, String)> {
    match Command::new("openssl").args(args).current_dir(dir).output() {
        Ok(out) => {
            let text = [out.stdout, out.stderr].map(|b| String::from_utf8_lossy(&b).into_owned()).concat();
            Some((out.status.success(), text))
        }
        Err(e) => {
            assert!(std::env::var_os("CI").is_none(), "openssl is needed in CI: {e}");
            eprintln!("skipped: no `openssl` command here ({e})");
            None
        }
    }
}

#[test]
fn sec_01_openssl_verifies_what_we_issue() {
    let (start, _, signer) = mesh();
    let key = KeyPair::generate().unwrap();
    let svid = key.into_svid(signer.issue(&web(&key), NOW).unwrap().chain).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("root.pem", &start.roots.bundle(NOW).unwrap().to_pem());
    write("chain.pem", &svid.chain_pem());
    write("key.pem", &svid.key_pem());
    write("foreign.pem", &mesh().0.roots.bundle(NOW).unwrap().to_pem());
    let at = NOW.as_secs().to_string();
    let verify = |root: &str, at: &str, purpose: &str| {
        let args = [
            "verify",
            "-x509_strict",
            "-attime",
            at,
            "-purpose",
            purpose,
            "-CAfile",
            root,
            "-untrusted",
            "chain.pem",
            "chain.pem",
        ];
        openssl(dir.path(), &args)
    };
    let Some((ok, text)) = verify("root.pem", &at, "sslserver") else { return };
    assert!(ok, "{text}");
    let (ok, text) = verify("root.pem", &at, "sslclient").unwrap();
    assert!(ok, "{text}");
    let (ok, text) = verify("foreign.pem", &at, "sslclient").unwrap();
    assert!(!ok, "{text}");
    let expired = svid.not_after().as_secs() + 1;
    let (ok, text) = verify("root.pem", &expired.to_string(), "sslclient").unwrap();
    assert!(!ok && text.contains("expired"), "{text}");

    let (_, text) = openssl(dir.path(), &["x509", "-in", "chain.pem", "-noout", "-text"]).unwrap();
    for line in [
        "URI:spiffe://mesh.weft/ns/shop/sa/web, DNS:web.shop, DNS:web",
        "CA:FALSE",
        "Digital Signature",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "NIST CURVE: P-256",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    // chain and key belong together for others too
    let (ok, cert_key) = openssl(dir.path(), &["x509", "-in", "chain.pem", "-noout", "-pubkey"]).unwrap();
    let (ok2, key_key) = openssl(dir.path(), &["pkey", "-in", "key.pem", "-pubout"]).unwrap();
    assert!(ok && ok2);
    assert_eq!(cert_key, key_key);
}

#[test]
fn sec_01_a_request_made_by_openssl_is_certified() {
    let (start, kek, signer) = mesh();
    let dir = tempfile::tempdir().unwrap();
    let args = [
        "req",
        "-new",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-keyout",
        "key.pem",
        "-subj",
        "/CN=whoever",
        "-addext",
        "basicConstraints=critical,CA:TRUE",
        "-outform",
        "DER",
        "-out",
        "csr.der",
    ];
    let Some((ok, text)) = openssl(dir.path(), &args) else { return };
    assert!(ok, "{text}");
    let csr = std::fs::read(dir.path().join("csr.der")).unwrap();
    let public_key = weft_identity::csr::parse_csr(&csr).unwrap();
    let issue = crate::Issue { public_key, ..web(&KeyPair::generate().unwrap()) };
    let issued = signer.issue(&issue, NOW).unwrap();
    let facts = weft_identity::Facts::read(&issued.chain[0]).unwrap();
    assert!(!facts.ca && facts.subject.is_empty(), "wishes of the request are ignored");
    let key = std::fs::read(dir.path().join("key.pem")).unwrap();
    let chain: String = issued.chain.iter().map(|c| pem(c)).collect();
    weft_identity::Svid::from_pem(chain.as_bytes(), &key).unwrap();
    // the pin of a join token is what an operator can compute alone
    let root = slots::root_signer(&start.roots, &kek).unwrap();
    std::fs::write(dir.path().join("root.pem"), root.root().to_pem()).unwrap();
    let spki = openssl(dir.path(), &["x509", "-in", "root.pem", "-noout", "-pubkey", "-out", "pub.pem"]).unwrap();
    assert!(spki.0);
    assert!(
        openssl(dir.path(), &["pkey", "-pubin", "-in", "pub.pem", "-outform", "DER", "-out", "pub.der"]).unwrap().0
    );
    let (_, digest) = openssl(dir.path(), &["dgst", "-sha256", "-r", "pub.der"]).unwrap();
    assert_eq!(digest.split(' ').next().unwrap(), root.key_hash().to_string());
}

fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|l| std::str::from_utf8(l).unwrap()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
