use proptest::prelude::*;

use super::*;

/// What OpenSSL sends for `Catalog.Shop.example` with ALPN h2 and http/1.1.
const OPENSSL: &[u8] = include_bytes!("../../testdata/client-hello-openssl.bin");

fn check(bytes: impl AsRef<[u8]>, want: Detect) {
    let bytes = bytes.as_ref();
    assert_eq!(detect(bytes, false), want, "{:?}", String::from_utf8_lossy(bytes));
}

fn tls(sni: Option<&str>, alpn: &[&str]) -> Detect {
    Detect::Tls(ClientHello {
        sni: sni.map(Into::into),
        alpn: alpn.iter().map(|p| p.as_bytes().to_vec()).collect(),
        ech: false,
    })
}

#[test]
fn l4t_04_http_1_is_known_by_its_request_line() {
    for line in [
        "GET / HTTP/1.1\r\n",
        "GET / HTTP/1.0\r\nHost: x\r\n\r\nbody",
        "POST /a?b=c HTTP/1.1\n",
        "\r\n\r\nGET / HTTP/1.1\r\n",
        "OPTIONS * HTTP/1.1\r\n",
        "CONNECT a.b:443 HTTP/1.1\r\n",
        "M-SEARCH * HTTP/1.1\r\n",
        "PROPFIND http://a/b HTTP/1.1\r\n",
        // for the codec to refuse, with a status
        "GET / HTTP/3.7\r\n",
        "GET  /  HTTP/1.1\r\n",
        "PRI * HTTP/2.0\r\nHost: x\r\n",
    ] {
        check(line, Detect::Http1);
    }
}

#[test]
fn l4t_04_a_target_that_fills_the_peek_is_still_http() {
    let long = format!("GET /{}", "a".repeat(MAX_PEEK));
    check(&long[..MAX_PEEK - 1], Detect::NeedMore);
    check(&long[..MAX_PEEK], Detect::Http1);
    let other = format!("GET {}", "a".repeat(MAX_PEEK));
    check(&other, Detect::Opaque);
}

#[test]
fn l4t_04_http_2_is_known_by_its_preface() {
    check("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Detect::Http2);
    check("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04", Detect::Http2);
    check("PRI * HTTP/2.0\r\n\r\nSM\r\n\r", Detect::NeedMore);
    check("P", Detect::NeedMore);
}

#[test]
fn l4t_04_other_protocols_are_opaque() {
    for (what, bytes) in [
        ("redis", &b"*1\r\n$4\r\nPING\r\n"[..]),
        ("redis inline", b"PING\r\n"),
        ("redis inline with an argument", b"GET key\r\n"),
        ("nats", b"CONNECT {\"verbose\":false}\r\n"),
        ("memcached", b"get key\r\n"),
        ("smtp", b"EHLO mail.example\r\n"),
        ("postgres startup", b"\0\0\0\x08\x04\xd2\x16\x2f"),
        ("ssh", b"SSH-2.0-OpenSSH_9.2\r\n"),
        ("mqtt", b"\x10\x10\0\x04MQTT\x04\x02"),
        ("amqp", b"AMQP\0\0\x09\x01"),
        ("mongo", b"\x3a\0\0\0\x01\0\0\0\0\0\0\0\xd4\x07\0\0"),
        ("http 0.9", b"GET /\r\n"),
        ("a NUL in the line", b"GET /\0 HTTP/1.1\r\n"),
        ("no method", b" / HTTP/1.1\r\n"),
        ("a method too long", b"ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFGHIJ"),
    ] {
        assert_eq!(detect(bytes, false), Detect::Opaque, "{what}");
    }
}

#[test]
fn undecided_is_opaque_at_the_end() {
    for bytes in [&b""[..], b"GET", b"GET /", b"PRI * HT", b"\r\n", b"\x16", b"\x16\x03\x01\x02"] {
        assert_eq!(detect(bytes, false), Detect::NeedMore, "{bytes:?}");
        assert_eq!(detect(bytes, true), Detect::Opaque, "{bytes:?}");
    }
    assert_eq!(detect(b"GET / HTTP/1.1\r\n", true), Detect::Http1);
}

#[test]
fn l4t_04_reads_a_client_hello() {
    check(OPENSSL, tls(Some("catalog.shop.example"), &["h2", "http/1.1"]));
    check(&OPENSSL[..OPENSSL.len() - 1], Detect::NeedMore);
    check(hello(Some("A.B"), &["weft/1", "h2"], 0), tls(Some("a.b"), &["weft/1", "h2"]));
    check(hello(None, &[], 0), tls(None, &[]));
    let mut ech = Extensions::default();
    ech.push(0xfe0d, &[0; 8]);
    check(ech.hello(), Detect::Tls(ClientHello { ech: true, ..ClientHello::default() }));
}

#[test]
fn l4t_04_a_client_hello_is_joined_over_records_and_segments() {
    // As long as with a post-quantum key share, and longer
    for padding in [1200, 4000, 15_000] {
        let whole = hello(Some("a.b"), &["h2"], padding);
        let want = tls(Some("a.b"), &["h2"]);
        check(&whole, want.clone());
        for size in [1, 7, 600] {
            let split = records(&whole[5..], size);
            if split.len() <= MAX_PEEK {
                check(&split, want.clone());
                check(&split[..split.len() - 1], Detect::NeedMore);
            }
        }
    }
    check(hello(Some("a.b"), &[], 17_000), Detect::Opaque);
}

#[test]
fn l4t_04_what_is_no_client_hello_is_opaque() {
    check([22, 2, 0, 0, 1], Detect::Opaque);
    check([22, 3, 9], Detect::Opaque);
    check([22, 3, 1, 0, 0], Detect::Opaque);
    check([22, 3, 1, 0x40, 1], Detect::Opaque);
    check([22, 3, 1, 0, 4, 2], Detect::Opaque);
    check([22, 3, 1, 0, 4, 1, 0, 0, 0], Detect::Opaque);
    check(hello(Some("a b"), &[], 0), Detect::Opaque);
    check(hello(Some(""), &[], 0), Detect::Opaque);
    // another kind of record in the middle
    let mut split = records(&hello(Some("a.b"), &[], 0)[5..], 20);
    split[25] = 21;
    check(&split, Detect::Opaque);
    // a length that lies
    let mut lies = hello(Some("a.b"), &[], 0);
    lies[8] -= 1;
    check(&lies, Detect::Opaque);
}

// === building hellos ===

#[derive(Default)]
struct Extensions(Vec<u8>);

impl Extensions {
    fn push(&mut self, kind: u16, data: &[u8]) {
        self.0.extend(kind.to_be_bytes());
        self.0.extend(vec16(data));
    }

    fn hello(&self) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 1, 1, 0]);
        body.extend(vec16(&self.0));
        let mut message = vec![1, 0];
        message.extend(vec16(&body));
        records(&message, 1 << 14)
    }
}

fn hello(sni: Option<&str>, alpn: &[&str], padding: usize) -> Vec<u8> {
    let mut extensions = Extensions::default();
    if padding > 0 {
        extensions.push(51, &vec![0; padding]);
    }
    if let Some(sni) = sni {
        let mut entry = vec![0];
        entry.extend(vec16(sni.as_bytes()));
        extensions.push(0, &vec16(&entry));
    }
    if !alpn.is_empty() {
        let list: Vec<u8> =
            alpn.iter().flat_map(|p| [&[u8::try_from(p.len()).unwrap()], p.as_bytes()].concat()).collect();
        extensions.push(16, &vec16(&list));
    }
    extensions.hello()
}

fn vec16(data: &[u8]) -> Vec<u8> {
    [&u16::try_from(data.len()).unwrap().to_be_bytes(), data].concat()
}

fn records(message: &[u8], size: usize) -> Vec<u8> {
    message.chunks(size).flat_map(|c| [&[22, 3, 1], &vec16(c)[..]].concat()).collect()
}

// === properties ===

/// Bytes that look like something.
fn plausible() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        "[A-Z]{0,4} ?/?[a-z ]{0,8} ?(HTTP/1.1)?\r?\n?[a-z\r\n]{0,4}".prop_map(String::into_bytes),
        (prop::collection::vec(any::<(usize, u8)>(), 0..4), 0_usize..300, 1_usize..100).prop_map(
            |(flips, padding, size)| {
                let mut bytes = records(&hello(Some("a.b"), &["h2"], padding)[5..], size);
                for (at, to) in flips {
                    let at = at % bytes.len();
                    bytes[at] = to;
                }
                bytes
            }
        ),
        (0_usize..30, any::<u8>()).prop_map(|(at, to)| {
            let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nxyz".to_vec();
            if let Some(b) = bytes.get_mut(at) {
                *b = to;
            }
            bytes
        }),
    ]
}

proptest! {
    /// What was decided on less stays decided, and at the end something is.
    #[test]
    fn l4t_04_an_answer_holds_for_every_continuation(bytes in plausible()) {
        let mut decided = Detect::NeedMore;
        for n in 0..=bytes.len() {
            let now = detect(&bytes[..n], false);
            if decided != Detect::NeedMore {
                prop_assert_eq!(&now, &decided, "after {} bytes", n);
            }
            prop_assert_ne!(detect(&bytes[..n], true), Detect::NeedMore);
            if now != Detect::NeedMore {
                prop_assert_eq!(&detect(&bytes[..n], true), &now);
            }
            decided = now;
        }
    }
}
