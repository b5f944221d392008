use super::*;
use crate::{samples, snapshot::Snapshot};

fn view() -> std::sync::Arc<WorkloadView> {
    let mut w = samples::workload("shop/cart", "cart-1");
    w.listens = vec![
        samples::listen(80, "http", "10.0.0.1:8080"),
        samples::listen(90, "", "[fd00::1]:9090"),
        samples::listen(8080, "80", "10.0.0.1:81"),
    ];
    let uid = w.uid.clone();
    let snapshot: Snapshot = samples::Set::new().workload(w).build();
    snapshot.workload(&uid).unwrap().clone()
}

#[test]
fn connect_names_an_address_of_the_workload() {
    let view = view();
    let check = |authority: &str, want: Result<u16, Unresolvable>| {
        assert_eq!(resolve_connect(&view, authority).map(|l| l.service_port), want, "{authority}");
    };
    check("10.0.0.1:8080", Ok(80));
    check("[fd00::1]:9090", Ok(90));
    check("[::ffff:10.0.0.1]:8080", Ok(80));
    check("10.0.0.1:8082", Err(Unresolvable::Address("10.0.0.1:8082".into())));
    check("10.0.0.2:8080", Err(Unresolvable::Address("10.0.0.2:8080".into())));
    for bad in ["cart.shop:80", "10.0.0.1", "", ":80", "10.0.0.1:99999"] {
        check(bad, Err(Unresolvable::Authority(bad.into())));
    }
}

#[test]
fn a_claim_names_a_port_by_number_or_name() {
    let view = view();
    let check = |claim: &str, want: Result<u16, Unresolvable>| {
        assert_eq!(resolve_claim(&view, claim).map(|l| l.service_port), want, "{claim}");
    };
    check("shop/cart:80", Ok(8080)); // a name wins, were it a number
    check("shop/cart:http", Ok(80));
    check("shop/cart:90", Ok(90));
    check("shop/c%61rt:90", Ok(90));
    check("shop/cart:", Err(Unresolvable::Port(String::new())));
    check("shop/cart:91", Err(Unresolvable::Port("91".into())));
    check("shop/cart", Err(Unresolvable::Claim("shop/cart".into())));
    check("cart:80", Err(Unresolvable::Claim("cart:80".into())));
    check("a/b/c:80", Err(Unresolvable::Claim("a/b/c:80".into())));
    let (claimed, is) = ("ops/cart".parse().unwrap(), "shop/cart".parse().unwrap());
    check("ops/cart:80", Err(Unresolvable::Service { claimed, is }));
}
