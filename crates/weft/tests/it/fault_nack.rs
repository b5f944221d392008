//! A proxy is told something that it cannot apply, as by a control plane of a newer version, while traffic flows: of
//! authorization it applies nothing and denies, of anything else it keeps the last good version, and in both cases the
//! operator reads which proxy, which fragment and why.
//!
//! The control plane is the real one, in this process: what it compiles from is changed behind its admission, which
//! lets nothing through that a proxy of the same version cannot apply.

use std::{
    io::{BufReader, Read as _, Write as _},
    sync::Arc,
    time::{Duration, Instant},
};

use weft_control::{Config, Server, sessions::Touched};
use weft_resources::{Resource, Spec, World};
use weft_rt::{listen::Bind, net::Addr};
use weft_snapshot::fragment::{PathMatch, StringMatch};

use crate::{
    apps_http::head,
    fault_load::Load,
    fault_policy::dripping,
    mesh::{Mesh, Reply, eventually, get, serve, serve_tcp, text},
};

struct Control {
    mesh: Mesh,
    server: Server,
    _runtime: tokio::runtime::Runtime,
}

impl Control {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let any = || Bind::exact(Addr::Tcp(([127, 0, 0, 1], 0).into()));
        let config = Config { data: dir.path().join("data"), http: any(), mesh: any(), ..Config::default() };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let server = runtime.block_on(Server::start(config)).unwrap();
        let (http, mesh) = (server.addresses().http, server.addresses().mesh);
        Self { mesh: Mesh::around(dir, http, mesh), server, _runtime: runtime }
    }

    /// Has everything compiled with a resource changed. It lasts until something that concerns the same fragments is
    /// committed.
    fn publish_with(&self, name: &str, change: impl FnOnce(&mut Spec)) {
        let control = self.server.control();
        let state = control.replica.state();
        let mut world = World::clone(&state.world);
        let found = world.resources.iter().find(|r| r.key.name.as_str() == name).unwrap();
        let mut resource = Resource::clone(found);
        change(&mut resource.spec);
        world.resources.insert(resource);
        control.sessions.publish(state.revision, Arc::new(world), &Touched::Everything);
    }

    /// The row of `weft status` about a proxy, once it is in this state.
    fn status(&self, id: &str, state: &str) -> String {
        eventually(&format!("{id} is {state}"), || {
            let out = text(&self.mesh.weft(&["status"]).stdout);
            let row = out.lines().find(|l| l.split_whitespace().next().is_some_and(|uid| uid.ends_with(id)));
            match row {
                Some(row) if row.split_whitespace().nth(1) == Some(state) => Ok(row.to_owned()),
                _ => Err(out),
            }
        })
    }
}

fn allow(name: &str, app: &str, from: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\nspec:\n  selector:\n    \
         matchLabels: {{app: {app}}}\n  action: ALLOW\n  rules:\n    - from:\n        - source:\n            principals: [\"*{from}\"]\n"
    )
}

#[test]
fn e2e_ops_05_a_rejected_authorization_denies_and_is_told_with_proxy_fragment_and_reason() {
    let control = Control::start();
    let mesh = &control.mesh;
    let api = serve_tcp(|io| {
        let mut io = BufReader::new(io);
        loop {
            let asked = head(&mut io);
            let answer: &[u8] = match asked.split(' ').nth(1) {
                Some("/drip") => break,
                Some(_) => b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nhere",
                None => return,
            };
            io.get_mut().write_all(answer).unwrap();
        }
        let mut next = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        while io.get_mut().write_all(&next).is_ok() {
            next = b"4\r\ndrip\r\n".to_vec();
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let plain = serve(|_, _| (200, "here".into()));
    let api = mesh.sidecar("api", Some(&format!("http=80:{}", api.port())), &[]);
    let plain = mesh.sidecar("plain", Some(&format!("http=80:{}", plain.port())), &[]);
    let web = mesh.sidecar("web", None, &["api", "plain"]);
    mesh.until_passing("api", 1);
    mesh.until_passing("plain", 1);
    mesh.until_answers(&web, 200);
    mesh.apply(&allow("only-web", "api", "/sa/web"));
    mesh.until_synced(&[&api, &plain, &web]);
    let mut long = dripping(web.upstreams[0]);
    let (denied, unconcerned) = (
        Load::start(web.upstreams[0], 2, Duration::from_millis(5)),
        Load::start(web.upstreams[1], 2, Duration::from_millis(5)),
    );
    eventually("the load flows", || if denied.asked() > 100 { Ok(()) } else { Err(denied.asked()) });

    // it says "whoever", in a word that this version does not know in this place
    let changed = Instant::now();
    control.publish_with("only-web", |spec| {
        let Spec::AuthorizationPolicy(policy) = spec else { panic!("{spec:?}") };
        policy.rules[0].from[0].principals.any = vec![StringMatch::Template("/{**}".into())];
    });
    let why =
        "AuthorizationPolicy/default/only-web#rule-0: template `/{**}` is allowed in paths only, not in principals";
    let row = control.status(&api.id, "rejected");
    let fragment = format!("inbound/default/api/test/{}", api.id);
    assert!(row.ends_with(&format!("{fragment}: {why}")), "{row}");

    // everybody is denied, by a rule that says what stands in for which fragment
    let is_denied = |reply: &Reply| reply.status == 403 && reply.header("weft-failure") == Some("denied;not-sent");
    let reply = eventually("requests are denied", || match get(web.upstreams[0], "/", &[]) {
        Ok(reply) if is_denied(&reply) => Ok(reply),
        other => Err(format!("{other:?}")),
    });
    assert!(reply.header("weft-rule").is_some_and(|rule| rule.starts_with("Inbound/default/")), "{reply:?}");
    assert!(reply.text().contains(why), "{}", reply.text());
    let mut rest = Vec::new();
    long.get_ref().set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    let end = long.read_to_end(&mut rest);
    assert!(changed.elapsed() < Duration::from_secs(5), "what was open is ended: {end:?}");
    assert!(!rest.ends_with(b"0\r\n\r\n"), "and does not look complete");
    let asked = denied.asked();
    eventually("the load goes on", || if denied.asked() > asked + 100 { Ok(()) } else { Err(denied.asked()) });
    let seen = denied.stop();
    let first = seen.bad.iter().map(|b| b.number).min().unwrap();
    // what was on its way at that moment is reset: at most one request on each connection
    let (told, reset): (Vec<_>, Vec<_>) =
        seen.bad.iter().partition(|b| b.why.starts_with("403 Some(\"denied;not-sent\")"));
    let cut = |why: &str| why.starts_with("503 Some(\"upstream_reset;sent\")") || why.contains("policy_changed");
    assert!(reset.len() <= 2 && reset.iter().all(|b| cut(&b.why)), "{reset:?}");
    // callers that asked at the same time may overtake each other
    assert!(told.len() as u64 + 4 >= seen.asked - first, "once denied, always denied: {} from {first}", seen.asked);

    // whoever applies something waits in vain, and not long, and reads why
    let begun = Instant::now();
    let out = mesh.weft_with(&["apply", "--wait", "-f", "-"], &allow("for-plain", "plain", "/sa/web"));
    let (stdout, stderr) = (text(&out.stdout), text(&out.stderr));
    assert_eq!(out.status.code(), Some(2), "{stdout}{stderr}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    assert!(stdout.contains(&format!("  default/api/test/{} rejected\n", api.id)), "{stdout}");
    assert!(stdout.ends_with(": applied by 2 of 3 proxies\n"), "{stdout}");
    assert_eq!(stderr, format!("    rejected {fragment}: {why}\n"));

    // a version that the proxy can apply ends it
    mesh.apply(&allow("only-web", "api", "web"));
    control.status(&api.id, "synced");
    mesh.until_answers(&web, 200);
    eventually("the other load flows", || if unconcerned.asked() > 200 { Ok(()) } else { Err(unconcerned.asked()) });
    let seen = unconcerned.stop();
    assert_eq!(seen.bad.first(), None, "whom it did not concern");
}

#[test]
fn e2e_ops_05_a_rejected_route_leaves_the_last_good_one_in_use() {
    let control = Control::start();
    let mesh = &control.mesh;
    let origin = serve(|head, _| (200, head.to_owned()));
    let _api = mesh.sidecar("api", Some(&format!("http=80:{}", origin.port())), &[]);
    let web = mesh.sidecar("web", None, &["api"]);
    mesh.until_passing("api", 1);
    mesh.until_answers(&web, 200);
    let route = |to: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: rewrite\nspec:\n  parentRefs:\n    \
             - {{group: \"\", kind: Service, name: api}}\n  rules:\n    - matches:\n        - path: {{type: PathPrefix, value: /}}\n      \
             filters:\n        - type: URLRewrite\n          urlRewrite:\n            path: {{type: ReplaceFullPath, replaceFullPath: \
             /{to}}}\n      backendRefs:\n        - {{name: api, port: 80}}\n"
        )
    };
    mesh.apply(&route("good"));
    let load = Load::start(web.upstreams[0], 2, Duration::from_millis(5));
    control.publish_with("rewrite", |spec| {
        let Spec::HttpRoute(route) = spec else { panic!("{spec:?}") };
        route.rules[0].matches[0].path = Some(PathMatch::Regex("/x(".into()));
    });
    let row = control.status(&web.id, "rejected");
    assert!(row.contains("routes/default/api/default: HTTPRoute/default/rewrite#rule-0: "), "{row}");
    for _ in 0..50 {
        assert_eq!(get(web.upstreams[0], "/x", &[]).unwrap().text(), "GET /good");
    }
    mesh.apply(&route("better"));
    control.status(&web.id, "synced");
    assert_eq!(get(web.upstreams[0], "/x", &[]).unwrap().text(), "GET /better");
    let seen = load.stop();
    assert_eq!(seen.bad.first(), None, "of {}", seen.asked);
}
