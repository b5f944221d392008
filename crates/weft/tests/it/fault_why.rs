//! `weft why`: what happened to a request, by its id, hop by hop.

use crate::mesh::{Mesh, Workload, eventually, get, serve};

/// A service that passes every request on to its own upstream, as applications do: with the request's id.
fn relay(to: impl Fn() -> std::net::SocketAddr + Send + Sync + 'static) -> std::net::SocketAddr {
    serve(move |head, _| {
        let id = head.rsplit('/').next().unwrap_or_default();
        match get(to(), &format!("/{id}"), &[("x-request-id", id)]) {
            Ok(reply) => (reply.status, reply.text()),
            Err(e) => (599, e.to_string()),
        }
    })
}

fn why(mesh: &Mesh, id: &str, wanted: &[&str]) -> String {
    eventually(&format!("why {id} names {wanted:?}"), || {
        let out = mesh.weft(&["why", id]);
        let said = crate::mesh::text(&out.stdout);
        if wanted.iter().all(|w| said.contains(w)) {
            Ok(said)
        } else {
            Err(format!("{said}{}", crate::mesh::text(&out.stderr)))
        }
    })
}

fn api(mesh: &Mesh, service: &str, port: u16) -> Workload {
    let workload = mesh.sidecar(service, Some(&format!("http=80:{port}")), &[]);
    mesh.until_passing(service, 1);
    workload
}

#[test]
fn nov_01_a_denial_three_hops_away_names_its_rule() {
    let mesh = Mesh::start();
    let last = serve(|_, _| (200, "end".into()));
    let third = api(&mesh, "third", last.port());
    let second = mesh.sidecar("caller-of-third", None, &["third"]);
    let to_third = second.upstreams[0];
    let relay_second = relay(move || to_third);
    let _second = api(&mesh, "second", relay_second.port());
    let first = mesh.sidecar("caller-of-second", None, &["second"]);
    let to_second = first.upstreams[0];
    let relay_first = relay(move || to_second);
    let _first = api(&mesh, "first", relay_first.port());
    let web = mesh.sidecar("web", None, &["first"]);
    let reply = eventually("the chain answers", || match get(web.upstreams[0], "/warm", &[("x-request-id", "warm")]) {
        Ok(reply) if reply.status == 200 => Ok(reply),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(reply.text(), "end");

    mesh.apply(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: closed\nspec:\n  selector:\n    \
         matchLabels: {app: third}\n  action: DENY\n  rules:\n    - from:\n        - source:\n            serviceAccounts: [\"caller-of-third\"]\n",
    );
    assert_eq!(get(web.upstreams[0], "/deny3", &[("x-request-id", "deny3")]).unwrap().status, 403);
    let uid = format!("default/third/test/{}", third.id);
    why(
        &mesh,
        "deny3",
        &[
            "AuthorizationPolicy/default/closed#rule-0",
            &uid,
            "sa/caller-of-third",
            "verdict   deny",
            "default/first",
            "default/second",
        ],
    );
}

#[test]
fn nov_01_success_and_no_healthy_endpoint() {
    let mesh = Mesh::start();
    let origin = serve(|_, _| (200, "here".into()));
    let mut only = api(&mesh, "api", origin.port());
    let web = mesh.sidecar("web", None, &["api"]);
    mesh.until_answers(&web, 200);
    mesh.apply(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: plain\nspec:\n  parentRefs:\n    \
         - {group: \"\", kind: Service, name: api}\n  rules:\n    - backendRefs:\n        - {name: api, port: 80}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata:\n  name: api\nspec:\n  selector: {app: api}\n  ports:\n    \
         - {name: http, port: 80}\n",
    );
    assert_eq!(get(web.upstreams[0], "/", &[("x-request-id", "good")]).unwrap().status, 200);
    let uid = format!("default/api/test/{}", only.id);
    why(&mesh, "good", &["HTTPRoute/default/plain#rule-0", &uid, "status 200", "verdict   allow", "sa/web"]);

    assert_eq!(only.stop(), 0);
    mesh.until_passing("api", 0);
    let reply = mesh.until_answers(&web, 503);
    assert_eq!(reply.header("weft-failure"), Some("no_healthy_endpoint;not-sent"), "{reply:?}");
    assert_eq!(get(web.upstreams[0], "/", &[("x-request-id", "nobody")]).unwrap().status, 503);
    why(&mesh, "nobody", &["HTTPRoute/default/plain#rule-0", "UH no_healthy_endpoint", "default/api", "503"]);
}

#[test]
fn nov_01_an_exhausted_retry_names_the_endpoint_and_how_often_it_was_tried() {
    let mesh = Mesh::start();
    let origin = serve(|_, _| (200, "ok".into()));
    let port = format!("http=80:{}", origin.port());
    let one = mesh.sidecar("api", Some(&port), &[]);
    let two = mesh.sidecar("api", Some(&port), &[]);
    let web = mesh.sidecar("web", None, &["api"]);
    mesh.until_passing("api", 2);
    mesh.until_answers(&web, 200);
    // killed: nobody listens any more, and their leases have not ended yet
    drop((one, two));
    let id = "tried";
    let reply = get(web.upstreams[0], "/", &[("x-request-id", id)]).unwrap();
    assert_eq!(reply.status, 503, "{reply:?}");
    why(
        &mesh,
        id,
        &[
            "default/api GET /: 503",
            "endpoint  default/api/test/api-",
            "It was tried 3 times.",
            "all 3 tries that its route allows were used",
            "URX retries_exhausted",
            "connect_failed",
        ],
    );
}
