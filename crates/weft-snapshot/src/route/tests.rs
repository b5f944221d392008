use std::collections::BTreeMap;

use proptest::prelude::*;
use weft_model::Labels;

use super::*;
use crate::fragment::{
    Backend, HeaderEdit, HttpFilter, HttpMatch, HttpRule, KeyMatch, PathMatch, PathRewrite, PortRoutes, RetryPolicy,
    TcpRule, Timeouts, ValueMatch,
};

/// `r0: host=a.b GET /x* h:k=v q:k=v | … -> a=9 b=1 !gone=1`, where a path is `=/exact`, `/prefix` or `~regex`, a value
/// `=exact`, `~regex` or `?` for presence.
fn rule(index: usize, text: &str) -> HttpRule {
    let (head, tail) = text.split_once("->").unwrap_or((text, "a=1"));
    let mut rule = HttpRule {
        origin: format!("HTTPRoute/shop/r{index}#rule-0").parse().unwrap(),
        hosts: Vec::new(),
        matches: Vec::new(),
        filters: Vec::new(),
        backends: tail.split_whitespace().map(backend).collect(),
        timeouts: Timeouts::default(),
        retry: RetryPolicy::default(),
    };
    for alternative in head.split('|') {
        let mut m = HttpMatch::default();
        for word in alternative.split_whitespace() {
            if let Some(host) = word.strip_prefix("host=") {
                rule.hosts.push(host.into());
            } else if let Some(header) = word.strip_prefix("h:") {
                m.headers.push(key_match(header));
            } else if let Some(param) = word.strip_prefix("q:") {
                m.query.push(key_match(param));
            } else if let Some(exact) = word.strip_prefix('=') {
                m.path = Some(PathMatch::Exact(exact.into()));
            } else if let Some(regex) = word.strip_prefix('~') {
                m.path = Some(PathMatch::Regex(regex.into()));
            } else if word.starts_with('/') {
                m.path = Some(PathMatch::ElementPrefix(word.into()));
            } else {
                m.method = Some(word.into());
            }
        }
        if m != HttpMatch::default() {
            rule.matches.push(m);
        }
    }
    rule
}

fn backend(text: &str) -> Backend {
    let (name, weight) = text.split_once('=').unwrap();
    let target = match name.strip_prefix('!') {
        Some(gone) => Target::Unresolved { reference: gone.into(), why: "there is no such service".into() },
        None => Target::Service { key: format!("shop/{name}").parse().unwrap(), port: 80, subset: Labels::default() },
    };
    Backend { target, weight: weight.parse().unwrap(), filters: Vec::new() }
}

fn key_match(text: &str) -> KeyMatch {
    let at = text.find(['=', '~', '?']).unwrap();
    let (key, value) = text.split_at(at);
    let value = match value.split_at(1) {
        ("=", v) => ValueMatch::Exact(v.into()),
        ("~", v) => ValueMatch::Regex(v.into()),
        _ => ValueMatch::Present,
    };
    KeyMatch { key: key.into(), value }
}

fn table(rules: &[&str]) -> PortTable {
    let http = rules.iter().enumerate().map(|(i, r)| rule(i, r)).collect();
    PortTable::compile(&PortRoutes { http, tcp: Vec::new() }).unwrap()
}

/// `GET /path host=a.b h:name=value`.
fn ask<R>(text: &str, f: impl FnOnce(&Request<'_>) -> R) -> R {
    let mut words = text.split_whitespace();
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let (mut host, mut headers) = ("cart.shop", Vec::new());
    for word in words {
        match (word.strip_prefix("host="), word.strip_prefix("h:").and_then(|h| h.split_once('='))) {
            (Some(h), _) => host = h,
            (None, Some(pair)) => headers.push(pair),
            _ => panic!("{word}"),
        }
    }
    f(&Request { method, path, host, headers: &headers })
}

fn said(table: &PortTable, request: &str) -> String {
    ask(request, |r| match select(table, r) {
        Selected::Default => "default".into(),
        Selected::NotFound => "404".into(),
        Selected::Rule(m) => m.origin().name.to_string(),
    })
}

#[track_caller]
fn check(rules: &[&str], request: &str, want: &str) {
    assert_eq!(said(&table(rules), request), want, "{rules:?} {request}");
}

#[test]
fn trf_01_no_rules_go_to_the_service_and_rules_without_a_match_to_404() {
    check(&[], "GET /", "default");
    check(&[""], "GET /", "r0");
    check(&["/a"], "GET /b", "404");
    check(&["/a", "/b"], "GET /b", "r1");
}

#[test]
fn trf_02_the_first_rule_in_the_list_wins() {
    check(&["/", "=/a"], "GET /a", "r0");
    check(&["=/a", "/"], "GET /a", "r0");
    check(&["=/a", "/"], "GET /b", "r1");
    check(&["GET", "POST", ""], "PUT /", "r2");
}

#[test]
fn trf_01_paths() {
    let path = |pattern: &str, path: &str, holds: bool| {
        check(&[pattern], &format!("GET {path}"), if holds { "r0" } else { "404" });
    };
    path("=/a", "/a", true);
    path("=/a", "/a?x", true);
    path("=/a", "/a/", false);
    path("=/a", "/A", false);
    path("/foo", "/foo", true);
    path("/foo", "/foo/", true);
    path("/foo", "/foo/bar", true);
    path("/foo", "/foobar", false);
    path("/foo", "/foo?x", true);
    path("/foo", "/Foo", false);
    path("/foo/", "/foo", true);
    path("/foo/", "/foo/bar", true);
    path("/foo/", "/foobar", false);
    path("/", "/", true);
    path("/", "/anything", true);
    path("~/v[0-9]+", "/v12", true);
    path("~/v[0-9]+", "/v12/x", false);
    path("~/v[0-9]+", "/x/v12", false);
    path("~/a|/b", "/b", true);
    path("~/a|/b", "/bc", false);
    path("~/a.*", "/a?x=y", true);
    path("~/a", "/a?x=y", true);
}

#[test]
fn trf_01_methods_headers_and_query() {
    check(&["GET"], "get /", "404");
    check(&["h:x-v=1"], "GET / h:X-V=1", "r0");
    check(&["h:x-v=1"], "GET / h:x-v=2", "404");
    check(&["h:x-v=1"], "GET /", "404");
    check(&["h:x-v?"], "GET / h:x-v=", "r0");
    check(&["h:x-v?"], "GET /", "404");
    check(&["h:x-v~[0-9]+"], "GET / h:x-v=12", "r0");
    check(&["h:x-v~[0-9]+"], "GET / h:x-v=12a", "404");
    check(&["h:x-v=1 h:x-w=2"], "GET / h:x-v=1", "404");
    check(&["h:x-v=1 h:x-w=2"], "GET / h:x-v=1 h:x-w=2", "r0");
    check(&["h:x-v=2"], "GET / h:x-v=1 h:x-v=2", "r0");
    check(&["h:x-v=1,2"], "GET / h:x-v=1 h:x-v=2", "r0");
    check(&["q:a=1"], "GET /?a=1", "r0");
    check(&["q:a=1"], "GET /?b=2&a=1", "r0");
    check(&["q:a=1"], "GET /?a=2", "404");
    check(&["q:a=1"], "GET /?a=2&a=1", "404");
    check(&["q:a=1"], "GET /?A=1", "404");
    check(&["q:a=1"], "GET /", "404");
    check(&["q:a?"], "GET /?a", "r0");
    check(&["q:a=x/y"], "GET /?a=x%2Fy", "r0");
    check(&["q:a=%zz"], "GET /?a=%zz", "r0");
    check(&["q:a~[a-z]+"], "GET /?a=b%63", "r0");
    check(&["q:a~[a-z]+"], "GET /?a=b%31", "404");
    check(&["GET /a h:x=1 q:y=2"], "GET /a?y=2 h:x=1", "r0");
    check(&["GET /a h:x=1 | POST /b"], "POST /b/c", "r0");
    check(&["GET /a h:x=1 | POST /b"], "GET /b/c", "404");
}

#[test]
fn trf_01_hosts_ignore_case_and_port() {
    check(&["host=cart.shop"], "GET / host=CART.shop:8080", "r0");
    check(&["host=Cart.shop"], "GET / host=cart.shop.", "r0");
    check(&["host=cart.shop"], "GET / host=web.shop", "404");
    check(&["host=*.example"], "GET / host=a.b.EXAMPLE", "r0");
    check(&["host=*.example"], "GET / host=example", "404");
    check(&["host=*.example"], "GET / host=.example", "404");
    check(&["host=a.b host=c.d"], "GET / host=c.d", "r0");
    check(&["host=a.b /x"], "GET /y host=a.b", "404");
}

#[test]
fn trf_03_shares_are_weight_over_sum() {
    let count = |text: &str| {
        let table = table(&[text]);
        ask("GET /", |r| {
            let Selected::Rule(m) = select(&table, r) else { panic!() };
            let mut shares: BTreeMap<String, u32> = BTreeMap::new();
            // Every face of the dice once
            let total = m.rule.backends.iter().map(|b| b.weight).sum();
            for face in 0..total {
                let name = match m.backend(&mut |n| {
                    assert_eq!(n, total);
                    face
                }) {
                    Ok(b) => match b.destination() {
                        Ok(d) => d.service.name.to_string(),
                        Err(NoBackend::Unresolved { reference, .. }) => format!("!{reference}"),
                        Err(other) => panic!("{other}"),
                    },
                    Err(other) => panic!("{other}"),
                };
                *shares.entry(name).or_default() += 1;
            }
            shares.into_iter().map(|(name, n)| format!("{name}={n}")).collect::<Vec<_>>().join(" ")
        })
    };
    assert_eq!(count("-> a=90 b=10"), "a=90 b=10");
    assert_eq!(count("-> a=0 b=3"), "b=3");
    // an unresolved backend gets its share, and 500 for it
    assert_eq!(count("-> a=2 !gone=2"), "!gone=2 a=2");
}

#[test]
fn trf_03_nothing_to_choose_is_named() {
    let none = |text: &str| {
        let table = table(&[text]);
        ask("GET /", |r| match select(&table, r) {
            Selected::Rule(m) => m.backend(&mut |_| 0).map(|_| ()).unwrap_err(),
            other => panic!("{other:?}"),
        })
    };
    assert_eq!(none("-> a=0 b=0"), NoBackend::AllZero);
    assert_eq!(none("->"), NoBackend::None);
    let why = backend("!shop/gone=1");
    let table = PortTable::compile(&PortRoutes {
        http: vec![HttpRule { backends: vec![why], ..rule(0, "") }],
        tcp: Vec::new(),
    });
    let (table, mut zero) = (table.unwrap(), |_| 0);
    let chosen = table.http[0].backends.choose(&mut zero).unwrap();
    assert_eq!(
        chosen.destination().unwrap_err().to_string(),
        "backend `shop/gone` does not resolve: there is no such service"
    );
}

#[test]
fn trf_03_weights_beyond_the_dice_still_choose() {
    let table = table(&["-> a=4000000000 b=4000000000"]);
    let mut faces = [0, u32::MAX - 1].into_iter().cycle();
    for _ in 0..4 {
        assert!(table.http[0].backends.choose(&mut |_| faces.next().unwrap()).is_ok());
    }
}

// === edits ===

fn rewritten(pattern: &str, rewrite: PathRewrite, target: &str) -> String {
    let mut rule = rule(0, pattern);
    rule.filters = vec![HttpFilter::Rewrite { host: None, path: Some(rewrite) }];
    let table = PortTable::compile(&PortRoutes { http: vec![rule], tcp: Vec::new() }).unwrap();
    ask(&format!("GET {target}"), |r| {
        let Selected::Rule(m) = select(&table, r) else { panic!("{target} does not match {pattern}") };
        let edits = m.edits(m.backend(&mut |_| 0).unwrap(), r.path);
        edits.path.unwrap()
    })
}

#[test]
fn trf_05_prefix_rewrites_give_the_gateway_api_result() {
    let check = |pattern: &str, new: &str, target: &str, want: &str| {
        assert_eq!(rewritten(pattern, PathRewrite::Prefix(new.into()), target), want, "{pattern} → {new}: {target}");
    };
    check("/foo", "/xyz", "/foo/bar", "/xyz/bar");
    check("/foo", "/xyz/", "/foo/bar", "/xyz/bar");
    check("/foo/", "/xyz", "/foo/bar", "/xyz/bar");
    check("/foo/", "/xyz/", "/foo/bar", "/xyz/bar");
    check("/foo", "/xyz", "/foo", "/xyz");
    check("/foo", "/xyz", "/foo/", "/xyz/");
    check("/foo", "", "/foo/bar", "/bar");
    check("/foo", "", "/foo/", "/");
    check("/foo", "", "/foo", "/");
    check("/foo", "/", "/foo/", "/");
    check("/foo", "/", "/foo", "/");
    check("/foo", "/", "/foo/baz", "/baz");
    check("/", "/v1", "/a", "/v1/a");
    check("/", "/v1", "/", "/v1/");
    check("GET", "/v1", "/a", "/v1/a");
    check("/foo", "/xyz", "/foo/bar?q=/foo#f", "/xyz/bar?q=/foo#f");
    check("/foo", "/xyz", "/foo?q", "/xyz?q");
    // the alternative that matched counts
    check("/a | /b/c", "/x", "/b/c/d", "/x/d");
}

#[test]
fn trf_05_full_rewrites_keep_the_query() {
    let full = |new: &str, target: &str| rewritten("/a", PathRewrite::Full(new.into()), target);
    assert_eq!(full("/x", "/a/b?q=1"), "/x?q=1");
    assert_eq!(full("x", "/a"), "/x");
}

fn edit(text: &str) -> HeaderEdit {
    let mut edit = HeaderEdit::default();
    for word in text.split_whitespace() {
        match (word.split_once("+="), word.split_once('=')) {
            (Some((n, v)), _) => edit.add.push((n.into(), v.into())),
            (None, Some((n, v))) => edit.set.push((n.into(), v.into())),
            (None, None) => edit.remove.push(word.trim_start_matches('-').into()),
        }
    }
    edit
}

#[test]
fn trf_06_edits_of_the_rule_come_before_those_of_the_backend() {
    let mut r = rule(0, "/a");
    let rewrite = |host: &str| HttpFilter::Rewrite { host: Some(host.into()), path: None };
    r.filters = vec![
        HttpFilter::RequestHeaders(edit("x=1 y+=2 -z")),
        rewrite("rule"),
        HttpFilter::ResponseHeaders(edit("s=1")),
    ];
    r.backends[0].filters = vec![HttpFilter::RequestHeaders(edit("x=3"))];
    r.backends.push(Backend { filters: vec![rewrite("backend")], ..backend("b=1") });
    let table = PortTable::compile(&PortRoutes { http: vec![r], tcp: Vec::new() }).unwrap();
    ask("GET /a", |r| {
        let Selected::Rule(m) = select(&table, r) else { panic!() };
        let first = m.edits(m.backend(&mut |_| 0).unwrap(), r.path);
        assert_eq!(first.request().cloned().collect::<Vec<_>>(), [edit("x=1 y+=2 -z"), edit("x=3")]);
        assert_eq!(first.response().cloned().collect::<Vec<_>>(), [edit("s=1")]);
        assert_eq!((first.host, first.path.as_deref()), (Some("rule"), None));
        assert!(!first.is_empty());
        let second = m.edits(m.backend(&mut |_| 1).unwrap(), r.path);
        assert_eq!((second.host, second.request().count()), (Some("backend"), 1));
    });
    let plain = self::table(&["/a"]);
    ask("GET /a", |r| {
        let Selected::Rule(m) = select(&plain, r) else { panic!() };
        assert!(m.edits(m.backend(&mut |_| 0).unwrap(), r.path).is_empty());
    });
}

#[test]
fn what_cannot_be_honoured_is_refused_when_compiled() {
    let refused = |r: HttpRule, says: &str| {
        let why = PortTable::compile(&PortRoutes { http: vec![r], tcp: Vec::new() }).unwrap_err();
        assert!(why.starts_with("HTTPRoute/shop/r0#rule-0: ") && why.contains(says), "{why}");
    };
    refused(rule(0, "~("), "regular expression `(`");
    refused(rule(0, "~a)(b"), "regular expression `a)(b`");
    refused(rule(0, "~(a{1000}){1000}"), "regular expression");
    refused(rule(0, "h:x~["), "regular expression");
    let mut prefix = rule(0, "GET");
    prefix.matches[0].path = Some(PathMatch::ElementPrefix("foo".into()));
    refused(prefix, "does not begin with `/`");
    let rewrite = |pattern: &str| {
        let path = Some(PathRewrite::Prefix("/x".into()));
        HttpRule { filters: vec![HttpFilter::Rewrite { host: None, path }], ..rule(0, pattern) }
    };
    refused(rewrite("=/a"), "needs a match by path prefix");
    refused(rewrite("~/a"), "needs a match by path prefix");
    let edits = |text: &str| HttpRule { filters: vec![HttpFilter::RequestHeaders(edit(text))], ..rule(0, "") };
    refused(edits("X-Upper=1"), "lower case");
    refused(edits("-content-length"), "`content-length` cannot be edited");
    refused(edits("weft-to=a"), "`weft-to` cannot be edited");
    let mut control = edits("x=1");
    control.filters = vec![HttpFilter::ResponseHeaders(HeaderEdit {
        set: vec![("x".into(), "a\r\nb".into())],
        ..HeaderEdit::default()
    })];
    refused(control, "control character");
}

#[test]
fn l4t_01_connections_take_the_first_rule_by_weight() {
    let rule = |i: usize, list: &str| TcpRule {
        origin: format!("TCPRoute/shop/t{i}#rule-0").parse().unwrap(),
        backends: list.split_whitespace().map(backend).collect(),
    };
    let tcp = vec![rule(0, "a=1 b=1"), rule(1, "c=1")];
    let table = PortTable::compile(&PortRoutes { http: Vec::new(), tcp }).unwrap();
    let SelectedTcp::Rule(r) = select_tcp(&table) else { panic!() };
    assert_eq!(r.origin.name.as_str(), "t0");
    let name = |face: u32| r.backend(&mut |_| face).unwrap().destination().unwrap().service.name.to_string();
    assert_eq!((name(0), name(1)), ("a".into(), "b".into()));
    assert!(matches!(select_tcp(&PortTable::default()), SelectedTcp::Default));
}

#[test]
fn trf_02_a_large_table_asks_only_what_is_near() {
    let rules: Vec<_> = (0..1000).map(|i| format!("/s{i}")).chain(["GET".into()]).collect();
    let table = table(&rules.iter().map(String::as_str).collect::<Vec<_>>());
    let asked = |path: &str| table.index.as_ref().unwrap().candidates(path).collect::<Vec<_>>();
    assert_eq!(asked("/s7/x"), [7, 1000]);
    assert_eq!(asked("/s7x"), [1000]);
    assert_eq!(asked("*"), [1000]);
    assert_eq!((said(&table, "GET /s7/x"), said(&table, "GET /s7x")), ("r7".into(), "r1000".into()));
}

proptest! {
    /// The first rule that matches by itself is the one that is selected: nothing but the order decides.
    #[test]
    fn trf_02_selection_is_the_first_match(
        rules in prop::collection::vec(prop::sample::select(vec![
            "/", "/a", "=/a", "~/a.*", "GET", "POST /b", "host=x.y", "host=*.y /a", "h:k=1", "h:k?", "q:p=1", "/a | POST", "GET /a/b",
        ]), 0..6),
        // Many that never match in front, so that the table is indexed
        far in prop::sample::select(vec![0, 40]),
        request in prop::sample::select(vec![
            "GET /", "OPTIONS *", "GET //a", "GET /a/", "GET /ab", "GET /a", "POST /a/b", "PUT /b host=x.y", "GET /a host=z.y h:k=1", "GET /c?p=1", "POST /b h:k=2",
        ]),
    ) {
        let alone = rules.iter().position(|r| said(&table(&[r]), request) == "r0");
        let far: Vec<_> = (0..far).map(|i| format!("PATCH /far{i} | =/far/{i}")).collect();
        let all: Vec<_> = far.iter().map(String::as_str).chain(rules.iter().copied()).collect();
        let want = match alone {
            _ if all.is_empty() => "default".into(),
            Some(i) => format!("r{}", far.len() + i),
            None => "404".into(),
        };
        let table = table(&all);
        prop_assert_eq!(table.index.is_some(), all.len() > 15);
        prop_assert_eq!(said(&table, request), want);
    }
}
