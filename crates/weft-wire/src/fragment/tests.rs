use proptest::prelude::*;

use super::*;
use crate::arbitrary;

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 500, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn decode_undoes_encode(fragment in arbitrary::fragment()) {
        let bytes = encode(&fragment);
        prop_assert_eq!(&bytes, &encode(&fragment.clone()));
        prop_assert_eq!(decode(&bytes), Ok(Item::Entry(fragment)));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
        let _ = decode(&bytes.into());
    }

    /// Broken near the truth: what a fuzzer would take long to reach.
    #[test]
    fn damaged_fragments_are_read_or_refused(
        fragment in arbitrary::fragment(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = encode(&fragment).to_vec();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = decode(&bytes.clone().into());
        bytes.truncate(cut.index(bytes.len()));
        let _ = decode(&bytes.into());
    }
}

#[test]
fn items_round_trip() {
    let commit = Commit { revision: Revision::new(2, 77), set_digest: Digest::of(b"x"), subscriptions_seq: 3 };
    for item in [Item::Whole, Item::Held, Item::Commit(commit)] {
        assert_eq!(decode(&encode_item(&item)), Ok(item));
    }
}

#[test]
fn the_wrong_field_is_named() {
    let message = pb::Inbound {
        uid: "a/b/c/d".into(),
        mtls: pb::MtlsMode::Strict as i32,
        default_action: pb::DefaultAction::Deny as i32,
        policies: vec![pb::Policy {
            origin: "AuthorizationPolicy/shop/p".into(),
            action: pb::Action::Allow as i32,
            rules: vec![pb::Rule {
                from: vec![pb::Source {
                    ip_blocks: Some(pb::Blocks {
                        any: vec![pb::IpBlock { addr: Bytes::from_static(b"abc"), prefix: 1 }],
                        none: vec![],
                    }),
                    ..pb::Source::default()
                }],
                ..pb::Rule::default()
            }],
        }],
        ..pb::Inbound::default()
    };
    let check = |message: pb::Inbound, want: &str| {
        assert_eq!(decode(&of_kind(pb::fragment::Kind::Inbound(message))).unwrap_err().to_string(), want);
    };
    check(
        message.clone(),
        "inbound.policies[0].rules[0].from[0].ip_blocks.any[0].addr has 3 bytes, an address has 4 or 16",
    );
    check(pb::Inbound { mtls: 0, ..message.clone() }, "inbound.mtls is missing");
    check(
        pb::Inbound { default_action: 9, ..message },
        "inbound.default_action is 9, which this version does not know",
    );
}

/// A newer server may know kinds, oneof variants and fields that this build does not.
#[test]
fn what_is_newer_is_refused_by_name() {
    // field 12 of Fragment, an empty message
    let unknown = decode(&Bytes::from_static(&[0x62, 0x00])).unwrap_err();
    assert_eq!(unknown.to_string(), "fragment is of a kind that this version does not know");
    // a StringMatch whose kind is unknown would otherwise match nothing, and a DENY with it deny nothing
    let rule = pb::Rule {
        from: vec![pb::Source {
            principals: Some(pb::Values { any: vec![pb::StringMatch { kind: None }], none: vec![] }),
            ..pb::Source::default()
        }],
        ..pb::Rule::default()
    };
    let refused = inbound::read_inbound(pb::Inbound {
        uid: "u".into(),
        mtls: 1,
        default_action: 1,
        policies: vec![pb::Policy { origin: "a/b/c".into(), action: 1, rules: vec![rule] }],
        ..pb::Inbound::default()
    });
    assert_eq!(
        refused.unwrap_err().to_string(),
        "policies[0].rules[0].from[0].principals.any[0].kind is missing, or of a kind that this version does not know"
    );
    // one more field at the end of an otherwise good policy set
    let mut message =
        pb::Inbound { uid: "u".into(), mtls: 1, default_action: 1, ..pb::Inbound::default() }.encode_to_vec();
    message.extend([0xf8, 0x07, 0x01]);
    let mut bytes = vec![0x2a, u8::try_from(message.len()).unwrap()];
    bytes.extend(message);
    assert!(decode(&bytes.into()).unwrap_err().to_string().starts_with("fragment has fields"));
}
