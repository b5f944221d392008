//! The decisions of one request, in the order in which the stories take them: nothing is allocated while the answer is
//! yes.

use allocation_counter::measure;
use weft_model::{Mono, Uid};

use crate::{
    authz::{Attributes, L4Verdict, evaluate, evaluate_l4, normalize},
    balance::{Ask, LoadView, pick},
    detect::{Detect, detect},
    fragment::{Action, HttpMatch, HttpRule, PathMatch, Policy, PortRoutes, RetryPolicy, Routes, Target, Timeouts},
    request::Request,
    resolve::resolve_claim,
    route::{Selected, select},
    samples::{self, Set, endpoint, inbound, key, name, service, uid, workload},
    snapshot::Snapshot,
};

fn mesh(cart: &Uid) -> Snapshot {
    let rule = |i: u32, path: &str| HttpRule {
        origin: format!("HTTPRoute/shop/cart#rule-{i}").parse().unwrap(),
        hosts: vec!["cart.shop".into()],
        matches: vec![HttpMatch { path: Some(PathMatch::ElementPrefix(path.into())), ..HttpMatch::default() }],
        filters: Vec::new(),
        backends: vec![crate::fragment::Backend {
            target: Target::Service { key: key("shop/cart"), port: 80, subset: Default::default() },
            weight: 1,
            filters: Vec::new(),
        }],
        timeouts: Timeouts::default(),
        retry: RetryPolicy::default(),
    };
    let http = (0..50).map(|i| rule(i, &format!("/other-{i}"))).chain([rule(50, "/items")]).collect();
    let ports = [(80, PortRoutes { http, tcp: Vec::new() })].into();
    let mut policies = inbound(cart);
    let allow = crate::authz::tests::inbound(
        "DENY from namespaces=evil to paths=/admin*; AUDIT to methods=PUT; \
         ALLOW from principals=td/ns/shop/sa/job | from principals=td/ns/shop/sa/web to methods=GET,POST paths=/items* \
         when request.headers[x-tenant]=*",
    );
    policies.policies = allow.policies;
    assert!(policies.policies.iter().any(|p: &Policy| p.action == Action::Allow));
    Set::new()
        .service(service("shop/cart", &[(80, "http")]))
        .endpoint("shop/cart", endpoint("shop/cart", "cart-1"))
        .endpoint("shop/cart", endpoint("shop/cart", "cart-2"))
        .endpoint("shop/cart", endpoint("shop/cart", "cart-3"))
        .routes(Routes { service: key("shop/cart"), consumer: name("shop"), ports })
        .workload(workload("shop/cart", "cart-1"))
        .inbound(policies)
        .build()
}

#[test]
fn nothing_is_allocated_while_the_answer_is_yes() {
    let cart = uid("shop/cart", "cart-1");
    let snapshot = mesh(&cart);
    let web = samples::workload("shop/web", "web-1").identity;
    let (consumer, shop_cart) = (name("shop"), key("shop/cart"));
    let headers = vec![("x-tenant", "7"), ("accept", "*/*")];
    let load = LoadView::new(3);
    let bytes = b"POST /items/7?full=1 HTTP/1.1\r\nHost: cart.shop\r\n\r\n";
    let mut dice = |n: u32| n / 2;

    let said = measure(|| {
        assert_eq!(detect(bytes, false), Detect::Http1);

        // The caller's proxy
        let path = normalize("/items/7?full=1").unwrap();
        let request = Request { method: "POST", path: &path, host: "cart.shop:80", headers: &headers };
        let service = snapshot.service(&shop_cart).unwrap();
        let Selected::Rule(matched) = select(service.routes(&consumer, 80).unwrap(), &request) else { panic!() };
        let backend = matched.backend(&mut dice).unwrap();
        let to = backend.destination().unwrap();
        let ask = Ask { now: Mono::secs(1), avoid: &[], own: &[], from: None };
        let pool = service.pool(to.port, to.subset).unwrap();
        pick(pool, &load, &ask, &mut dice).unwrap();
        assert!(matched.edits(backend, &path).is_empty());

        // The workload's proxy
        let view = snapshot.workload(&cart).unwrap();
        let listen = resolve_claim(view, "shop/cart:80").unwrap();
        let mut attributes = Attributes {
            principal: Some(&web),
            source_ip: [10, 0, 0, 9].into(),
            dest_ip: listen.app.ip(),
            dest_port: listen.app.port(),
            sni: None,
            http: None,
        };
        assert_eq!(evaluate_l4(&view.inbound, &attributes), L4Verdict::NeedsHttp);
        attributes.http = Some(request);
        assert!(evaluate(&view.inbound, &attributes).is_allow());
    });
    assert_eq!(said.count_total, 0, "{said:?}");
}
