//! Two services, the command line, and the end of things.

use crate::mesh::{Mesh, eventually, get, serve, text, weft};

const DENY_ALL: &str =
    "apiVersion: weft.dev/v1\nkind: MeshDefaults\nmetadata:\n  name: default\nspec:\n  authorization: deny\n";

const ALLOW_WEB: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: api
  namespace: default
spec:
  selector:
    matchLabels:
      app: api
  action: ALLOW
  rules:
    - from:
        - source:
            serviceAccounts: ["web"]
"#;

#[test]
fn cap_08_two_services_find_each_other_and_policy_decides() {
    let mesh = Mesh::start();
    let origin = serve(|head, _| (200, format!("hello {head}")));
    let mut api = mesh.sidecar("api", Some(&format!("http=80:{}", origin.port())), &[]);
    let mut web = mesh.sidecar("web", None, &["api"]);
    mesh.until_passing("api", 1);
    let reply = mesh.until_answers(&web, 200);
    assert_eq!(reply.text(), "hello GET /");

    mesh.apply(DENY_ALL);
    let denied = get(web.upstreams[0], "/x", &[("x-request-id", "req-1")]).unwrap();
    assert_eq!(denied.status, 403);
    // the answer is out before the record of it is made
    eventually("why tells", || {
        let why = text(&mesh.weft(&["why", "req-1"]).stdout);
        if why.contains("deny") && why.contains("default/api") { Ok(()) } else { Err(why) }
    });

    mesh.apply(ALLOW_WEB);
    assert_eq!(get(web.upstreams[0], "/", &[]).unwrap().status, 200);

    let services = mesh.ok(&["services"]);
    assert!(services.contains("api") && services.contains("1/1 passing"), "{services}");
    mesh.until_synced(&[&web, &api]);
    let status = mesh.ok(&["status"]);
    assert_eq!(status.matches("synced").count(), 2, "{status}");

    assert_eq!(web.stop(), 0);
    assert_eq!(api.stop(), 0);
    mesh.until_passing("api", 0);
}

#[test]
fn no_server_is_exit_code_3_and_says_how_to_start_one() {
    let dir = tempfile::tempdir().unwrap();
    let out = weft().args(["services", "--server", "http://127.0.0.1:1"]).current_dir(dir.path()).output().unwrap();
    assert_eq!(out.status.code(), Some(3));
    let said = text(&out.stderr);
    assert!(said.contains("cannot reach a weft server at http://127.0.0.1:1"), "{said}");
    assert!(said.contains("`weft dev` starts one"), "{said}");
}
