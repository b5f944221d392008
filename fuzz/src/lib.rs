//! What arbitrary bytes may reach, one function per door. A function panics when a promise is broken; the same functions run
//! under libFuzzer (`cargo xtask fuzz TARGET`) and over the committed corpora in ordinary tests, so that neither rots.
//! An input that was found becomes a named file in `corpus/TARGET/`.

use bytes::Bytes;
use weft_model::{ResourceRef, SpiffeId};
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
