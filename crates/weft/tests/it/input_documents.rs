//! Wrong documents, and right ones that name what is not there: what the command line says of each, word for word.

use crate::mesh::{Mesh, eventually, get, serve, text};

/// What `weft apply -f -` says: standard output, standard error, exit code.
fn apply(mesh: &Mesh, yaml: &str) -> (String, String, Option<i32>) {
    let out = mesh.weft_with(&["apply", "-f", "-"], yaml);
    (text(&out.stdout), text(&out.stderr), out.status.code())
}

/// A condition of an object, once it is `status`; its reason and message.
fn condition(mesh: &Mesh, kind: &str, name: &str, condition: &str, status: &str) -> (String, String) {
    eventually(&format!("{kind}/{name} is {condition}={status}"), || {
        let json = mesh.json(&["get", kind, name]);
        let of_parents = json["status"]["parents"].as_array().cloned().unwrap_or_default();
        let of_parents = of_parents.iter().flat_map(|p| p["conditions"].as_array().cloned().unwrap_or_default());
        let all = json["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = all.into_iter().chain(of_parents).find(|c| c["type"] == condition && c["status"] == status);
        match found {
            Some(c) => {
                Ok((c["reason"].as_str().unwrap().to_owned(), c["message"].as_str().unwrap_or_default().to_owned()))
            }
            None => Err(json),
        }
    })
}

fn route(name: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: {name}\nspec:\n  parentRefs:\n    \
         - {{group: \"\", kind: Service, name: api}}\n  rules:\n{rules}"
    )
}

#[test]
fn wrong_documents_are_refused_with_their_place_and_change_nothing() {
    let mesh = Mesh::start();
    let before = mesh.json(&["status"])["revision"].clone();
    let malformed = "apiVersion: v1\nkind: Service\nmetadata:\n  name: [x\n";
    assert_eq!(
        apply(&mesh, malformed),
        ("document invalid\n".into(), "  standard input:4:9: malformed YAML: unclosed bracket '['\n".into(), Some(2))
    );
    let kind = "apiVersion: weft.dev/v1\nkind: Servce\nmetadata:\n  name: x\n";
    assert_eq!(
        apply(&mesh, kind),
        (
            "document invalid\n".into(),
            "  standard input:2:7: kind: unknown kind `Servce`; did you mean `Service`?\n".into(),
            Some(2)
        )
    );
    let field =
        "apiVersion: weft.dev/v1\nkind: MeshDefaults\nmetadata:\n  name: default\nspec:\n  authorisation: deny\n";
    assert_eq!(
        apply(&mesh, field),
        (
            "MeshDefaults/-/default invalid\n".into(),
            "  standard input:6:3: spec.authorisation: unknown field; did you mean `authorization`?\n".into(),
            Some(2)
        )
    );
    // `lint` says the same without a server
    let file = crate::mesh::write(mesh.dir.path(), "field.yaml", field);
    let lint = mesh.weft(&["lint", file.to_str().unwrap()]);
    let want = format!("{}:6:3: spec.authorisation: unknown field; did you mean `authorization`?\n", file.display());
    assert_eq!((text(&lint.stderr), lint.status.code()), (want, Some(2)));
    assert_eq!(mesh.json(&["status"])["revision"], before, "nothing was committed");
}

#[test]
fn of_a_file_with_one_wrong_document_nothing_is_applied() {
    let mesh = Mesh::start();
    let defaults =
        "apiVersion: weft.dev/v1\nkind: MeshDefaults\nmetadata:\n  name: default\nspec:\n  authorization: deny\n";
    let (out, err, code) =
        apply(&mesh, &format!("{defaults}---\napiVersion: v1\nkind: Nonsense\nmetadata:\n  name: x\n"));
    assert_eq!(out, "MeshDefaults/-/default valid\ndocument invalid\n", "{err}");
    assert_eq!(code, Some(2));
    assert_eq!(mesh.json(&["get", "meshdefaults"])["items"].as_array().map(Vec::len), Some(0));
}

#[test]
fn ops_16_trf_35_a_missing_backend_is_accepted_told_and_answered_with_500_for_its_share() {
    let mesh = Mesh::start();
    let origin = serve(|_, _| (200, "here".into()));
    let _api = mesh.sidecar("api", Some(&format!("http=80:{}", origin.port())), &[]);
    let web = mesh.sidecar("web", None, &["api"]);
    mesh.until_passing("api", 1);
    mesh.until_answers(&web, 200);
    mesh.apply(&route(
        "half",
        "    - backendRefs:\n        - {name: api, port: 80, weight: 1}\n        - {name: gone, port: 80, weight: 1}\n",
    ));
    let (reason, message) = condition(&mesh, "httproute", "half", "ResolvedRefs", "False");
    assert_eq!(reason, "BackendNotFound");
    assert_eq!(
        message,
        "spec.rules[0].backendRefs[1]: Service/default/gone does not exist; create it, or start an instance of it; its share is answered with 500"
    );
    condition(&mesh, "httproute", "half", "Accepted", "True");
    let listed = mesh.ok(&["get", "httproute"]);
    assert!(
        listed.contains("ResolvedRefs=False: spec.rules[0].backendRefs[1]: Service/default/gone does not exist"),
        "{listed}"
    );

    let mut good = 0;
    for _ in 0..200 {
        let reply = get(web.upstreams[0], "/", &[]).unwrap();
        match reply.status {
            200 => good += 1,
            500 => {
                assert_eq!(reply.header("weft-failure"), Some("backend_unresolved;not-sent"));
                assert_eq!(reply.header("weft-rule"), Some("HTTPRoute/default/half#rule-0"), "{reply:?}");
                assert!(
                    reply.text().starts_with("weft: backend_unresolved: the route's backend does not exist"),
                    "{reply:?}"
                );
            }
            other => panic!("{other}: {}", reply.text()),
        }
    }
    // 100 ± 6 standard deviations
    assert!((58..=142).contains(&good), "{good} of 200 went to the backend that exists");
}

#[test]
fn ops_16_sec_18_an_authorization_that_names_nobody_denies_and_says_so() {
    let mesh = Mesh::start();
    let origin = serve(|_, _| (200, "here".into()));
    let _api = mesh.sidecar("api", Some(&format!("http=80:{}", origin.port())), &[]);
    let web = mesh.sidecar("web", None, &["api"]);
    mesh.until_passing("api", 1);
    mesh.until_answers(&web, 200);
    mesh.apply(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: api\nspec:\n  selector:\n    \
         matchLabels: {app: api}\n  action: ALLOW\n  rules:\n    - from:\n        - source:\n            serviceAccounts: [\"ghost\"]\n",
    );
    let (_, message) = condition(&mesh, "authorizationpolicy", "api", "ResolvedRefs", "False");
    assert_eq!(
        message,
        "spec.rules[0].from[0].source.serviceAccounts[0]: nothing runs as service account default/ghost, so this matches nobody"
    );
    let reply = get(web.upstreams[0], "/", &[]).unwrap();
    assert_eq!((reply.status, reply.header("weft-failure")), (403, Some("denied;not-sent")), "{reply:?}");
}

#[test]
fn ops_16_trf_02_of_two_routes_for_the_same_requests_the_older_wins_and_the_loser_says_so() {
    let mesh = Mesh::start();
    let origin = serve(|head, _| (200, head.to_owned()));
    let _api = mesh.sidecar("api", Some(&format!("http=80:{}", origin.port())), &[]);
    let web = mesh.sidecar("web", None, &["api"]);
    mesh.until_passing("api", 1);
    mesh.until_answers(&web, 200);
    let rewrite = |to: &str| {
        format!(
            "    - matches:\n        - path: {{type: PathPrefix, value: /x}}\n      filters:\n        - type: URLRewrite\n          \
             urlRewrite:\n            path: {{type: ReplaceFullPath, replaceFullPath: /{to}}}\n      backendRefs:\n        \
             - {{name: api, port: 80}}\n"
        )
    };
    mesh.apply(&route("older", &rewrite("older")));
    // its name comes first in the alphabet: age decides before it
    mesh.apply(&route("a-newer", &rewrite("newer")));
    assert_eq!(get(web.upstreams[0], "/x", &[]).unwrap().text(), "GET /older");
    let (reason, message) = condition(&mesh, "httproute", "a-newer", "Conflicted", "True");
    assert_eq!(reason, "RuleShadowed");
    assert_eq!(message, "port 80: the requests of rule-0 go by HTTPRoute/default/older#rule-0, which is older");
    let listed = mesh.ok(&["get", "httproute"]);
    let row = listed.lines().find(|l| l.contains("a-newer")).unwrap();
    assert!(
        row.contains("Conflicted=True: port 80: the requests of rule-0 go by HTTPRoute/default/older#rule-0"),
        "{listed}"
    );
    // without the older one, the newer one applies and has no conflict any more
    mesh.ok(&["delete", "--wait", "httproute", "older"]);
    assert_eq!(get(web.upstreams[0], "/x", &[]).unwrap().text(), "GET /newer");
    eventually("the conflict is over", || {
        let listed = mesh.ok(&["get", "httproute"]);
        if listed.contains("Conflicted=True") { Err(listed) } else { Ok(()) }
    });
}
