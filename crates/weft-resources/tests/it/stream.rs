//! What comes in must come out again.

use weft_resources::{admit, document, parse};

const ROUTE: &str = "\
apiVersion: gateway.networking.k8s.io/v1beta1
kind: HTTPRoute
metadata:
  name: split
  namespace: shop
  labels: {team: a}
  annotations: {note: kept}
  uid: u-1
  resourceVersion: '12'
  generation: 3
  creationTimestamp: '2026-08-01T10:00:00.000Z'
spec:
  parentRefs: [{kind: Service, name: web}]
  rules:
  - backendRefs: [{name: web, port: 80}]
";

#[test]
fn the_spec_is_given_back_as_it_was_written() {
    let doc = parse("", ROUTE).remove(0).unwrap();
    let json = admit(&doc).unwrap().to_json();
    assert_eq!(json["apiVersion"], "gateway.networking.k8s.io/v1");
    assert_eq!(json["metadata"]["generation"], 3);
    assert_eq!(json["metadata"]["annotations"]["note"], "kept");
    // no default was written into it
    assert_eq!(
        json["spec"],
        serde_json::json!({
            "parentRefs": [{"kind": "Service", "name": "web"}],
            "rules": [{"backendRefs": [{"name": "web", "port": 80}]}],
        })
    );
    let again = admit(&document::from_json(&json).unwrap()).unwrap();
    assert_eq!(again.to_json(), json);
}

#[test]
fn ops_16_conditions_keep_their_transition_time_until_they_change() {
    use weft_model::Wall;
    use weft_resources::status::{Condition, Status};
    let status = |holds| {
        let condition =
            if holds { Condition::yes("Accepted", "Accepted", "") } else { Condition::no("Accepted", "No", "why") };
        Status::Parents(vec![(serde_json::json!({"name": "web"}), vec![condition])])
    };
    let first = status(true).to_json(1, None, Wall::secs(10));
    let same = status(true).to_json(2, Some(&first), Wall::secs(20));
    let other = status(false).to_json(2, Some(&same), Wall::secs(30));
    let of = |s: &serde_json::Value| {
        let c = &s["parents"][0]["conditions"][0];
        (c["lastTransitionTime"].as_str().unwrap().to_string(), c["observedGeneration"].as_u64().unwrap())
    };
    assert_eq!(of(&first), ("1970-01-01T00:00:10.000Z".into(), 1));
    assert_eq!(of(&same), ("1970-01-01T00:00:10.000Z".into(), 2));
    assert_eq!(of(&other), ("1970-01-01T00:00:30.000Z".into(), 2));
    assert_eq!(first["parents"][0]["controllerName"], "weft.dev/mesh-controller");
}
