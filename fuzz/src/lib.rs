//! What arbitrary bytes may reach, one function per door. A function panics when a promise is broken; the same functions run
//! under libFuzzer (`cargo xtask fuzz TARGET`) and over the committed corpora in ordinary tests, so that neither rots.
//! An input that was found becomes a named file in `corpus/TARGET/`.

mod delta_session;

use std::sync::LazyLock;

use bytes::Bytes;
use rustls_pki_types::CertificateDer;
use weft_identity::{Bundle, Revocations};
use weft_model::{ResourceRef, SpiffeId, TrustDomain, Wall};
use weft_proxy::codec::{Framing, MAX_HEAD, h1::parse};
use weft_snapshot::detect::{Detect, detect};

pub type Body = fn(&[u8]);

/// Read by `cargo xtask fuzz`, so one line each.
pub const TARGETS: &[(&str, Body)] = &[
    ("spiffe_id", spiffe_id),
    ("resource_name", resource_name),
    ("detect", detect_bytes),
    ("wire_decode", wire_decode),
    ("hello", hello),
    ("document", document),
    ("csr", csr),
    ("http1_head", http1_head),
    ("x509_chain", x509_chain),
    ("delta_session", delta_session::run),
];

/// What is printed is read as the same identity.
fn spiffe_id(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(id) = SpiffeId::parse(text) {
        assert_eq!(SpiffeId::parse(&id.to_string()), Ok(id));
    }
}

/// The same of `kind/namespace/name#section`.
fn resource_name(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(name) = text.parse::<ResourceRef>() {
        assert_eq!(name.to_string().parse(), Ok(name));
    }
}

/// However the bytes are cut into segments, the decision is the one that the whole would get.
fn detect_bytes(data: &[u8]) {
    let whole = detect(data, true);
    assert_ne!(whole, Detect::NeedMore, "nothing follows, and yet more is asked for");
    for length in (0..=data.len().min(512)).filter_map(|n| data.get(..n)) {
        let early = detect(length, false);
        if early != Detect::NeedMore {
            assert_eq!(early, whole, "decided after {} bytes, otherwise after all", length.len());
            return;
        }
    }
}

/// What a control plane sends is refused or understood; what was understood is encoded as it came, where order matters.
fn wire_decode(data: &[u8]) {
    if let Ok(item) = weft_wire::fragment::decode(&Bytes::copy_from_slice(data)) {
        let again = weft_wire::fragment::encode_item(&item);
        assert_eq!(weft_wire::fragment::decode(&again), Ok(item));
    }
}

fn hello(data: &[u8]) {
    let _ = weft_wire::hello::Hello::decode(data);
}

/// What an operator writes: every violation has its words.
fn document(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for refused in weft_resources::parse("fuzz.yaml", text).into_iter().filter_map(Result::err) {
        assert!(!refused.to_string().is_empty());
    }
}

fn csr(data: &[u8]) {
    let _ = weft_identity::csr::parse_csr(data);
}

/// However a head is cut into segments, it ends at the same place; what is understood has one framing, and carries nothing
/// that the next hop could read as a second one.
fn http1_head(data: &[u8]) {
    let whole = parse::end_of_head(data, 0);
    if data.len() <= MAX_HEAD {
        let early = (0..=data.len()).filter_map(|n| Some((n, data.get(..n)?)));
        let early =
            early.map(|(n, part)| parse::end_of_head(part, n.saturating_sub(1))).find(|found| *found != Ok(None));
        assert_eq!(early.unwrap_or(Ok(None)), whole, "byte by byte, and at once");
    }
    let Some(head) = whole.ok().flatten().and_then(|end| data.get(..end)).map(Bytes::copy_from_slice) else { return };
    if let Ok(request) = parse::request(&head) {
        assert_ne!(request.framing, Framing::Close, "a request does not end with its connection");
        assert!(request.head.path.iter().all(|b| *b > b' ' && *b != 0x7f), "a target without spaces and controls");
        clean(&request.head.headers);
    }
    for method in [http::Method::GET, http::Method::HEAD, http::Method::CONNECT] {
        if let Ok(response) = parse::response(&head, &method)
            && response.head.status != http::StatusCode::SWITCHING_PROTOCOLS
        {
            clean(&response.head.headers);
        }
    }
    if let Ok(trailers) = parse::trailers(&head) {
        clean(&trailers);
    }
}

/// Nothing of one connection is left, and no value ends its line.
fn clean(headers: &http::HeaderMap) {
    for name in ["connection", "transfer-encoding", "upgrade", "keep-alive", "proxy-connection", "host"] {
        assert!(!headers.contains_key(name) || name == "host", "{name} goes on to the next hop");
    }
    for value in headers.values() {
        assert!(!value.as_bytes().iter().any(|b| matches!(b, b'\r' | b'\n' | 0)), "{value:?}");
    }
}

/// Certificates behind lengths of two bytes. Of all chains there is one that verifies: the one that was issued.
fn x509_chain(data: &[u8]) {
    const ROOT: &[u8] = include_bytes!("../root.der");
    const GOOD: &[u8] = include_bytes!("../corpus/x509_chain/good");
    /// While the chain is valid.
    const NOW: Wall = Wall::secs(1_795_620_000);
    fn chain(bytes: &[u8]) -> Vec<CertificateDer<'static>> {
        parts(bytes).map(|der| der.to_vec().into()).collect()
    }
    static KNOWN: LazyLock<(Bundle, Vec<CertificateDer<'static>>)> = LazyLock::new(|| {
        let Ok(domain) = TrustDomain::parse("2668cca755be53c1.weft") else { unreachable!("it is one") };
        let Ok(bundle) = Bundle::new(domain, vec![ROOT.into()]) else { unreachable!("the root is one") };
        (bundle, chain(GOOD))
    });
    let (bundle, good) = &*KNOWN;
    let shown = chain(data);
    let verified = weft_identity::recheck(&shown, bundle, &Revocations::default(), NOW).is_ok();
    // what stands above the path, or twice, does no harm
    let leads_up = shown.first() == good.first() && good.get(1).is_some_and(|signer| shown.contains(signer));
    assert_eq!(verified, leads_up && shown.len() <= weft_identity::verify::MAX_CHAIN, "{} certificates", shown.len());
}

/// `data` as pieces, each behind its length in two bytes; the last one may be cut short.
fn parts(mut data: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = data.split_first_chunk()?;
        let (part, rest) = rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
        data = rest;
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeSet, fs, path::Path};

    #[test]
    fn corpora_are_replayed() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
        for (target, body) in TARGETS {
            let files: Vec<_> = fs::read_dir(corpus.join(target)).unwrap().map(|f| f.unwrap().path()).collect();
            assert!(!files.is_empty(), "corpus/{target} is empty");
            for file in files {
                eprintln!("{}", file.display());
                body(&fs::read(file).unwrap());
            }
        }
    }

    #[test]
    fn each_corpus_has_its_target() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
        let folders: BTreeSet<_> =
            fs::read_dir(corpus).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(folders, TARGETS.iter().map(|(t, _)| (*t).to_owned()).collect());
    }
}
