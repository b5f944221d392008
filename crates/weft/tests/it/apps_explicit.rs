//! Ways in without privileges: `HTTP_PROXY`, CONNECT, SOCKS5 with curl, and a Unix socket.

use std::{os::unix::fs::PermissionsExt as _, process::Command};

use crate::mesh::{Mesh, eventually, free_addr, serve, text};

/// Status and body, as curl saw them.
fn curl(args: &[&str]) -> (String, String) {
    let out = Command::new("curl")
        .args(["-sS", "--max-time", "20", "-w", "\n%{http_code}"])
        .args(args)
        .env_remove("no_proxy")
        .env_remove("NO_PROXY")
        .output()
        .unwrap();
    let said = text(&out.stdout);
    let (body, status) = said.rsplit_once('\n').unwrap_or(("", &said));
    (status.to_owned(), format!("{body}{}", text(&out.stderr)))
}

#[test]
fn e2e_cap_08_curl_through_http_proxy_connect_and_socks5() {
    let mesh = Mesh::start();
    let origin = serve(|head, body| (200, format!("{head} {}", body.len())));
    let _api = mesh.sidecar("api", Some(&format!("http=80:{}", origin.port())), &[]);
    let at = free_addr();
    // a service that the proxy port leads to is known to the sidecar by being declared
    let web = mesh.workload("sidecar", "web", None, &["api"], &["--proxy-listen", &at.to_string()], &[]);
    mesh.until_passing("api", 1);
    mesh.until_answers(&web, 200);
    let (http, socks) = (format!("http://{at}"), format!("socks5h://{at}"));
    let ways: [&[&str]; 3] = [&["-x", &http], &["-p", "-x", &http], &["-x", &socks]];
    for way in ways {
        for host in ["api", "api.default", "api.default.svc.cluster.local"] {
            let (status, body) = curl(&[way, &[&format!("http://{host}/a")]].concat());
            assert_eq!((&*status, &*body), ("200", "GET /a 0"), "{way:?} {host}; {}", web.log());
        }
        let (status, body) = curl(&[way, &["--data-binary", "abc", "http://api/b"]].concat());
        assert_eq!((&*status, &*body), ("200", "POST /b 3"), "{way:?}");
        // two requests on one connection
        let (_, body) = curl(&[way, &["http://api/1", "http://api/2"]].concat());
        assert_eq!(body, "GET /1 0\n200GET /2 0", "{way:?}");
        // it is no open proxy
        let outside = format!("http://{origin}/c");
        let (status, body) = curl(&[way, &[&outside]].concat());
        assert_ne!(status, "200", "{way:?}: {body}");
        let (status, body) = curl(&[way, &["http://nothing.invalid/"]].concat());
        assert_ne!(status, "200", "{way:?}: {body}");
    }
    let (status, body) = curl(&["-x", &http, "http://nothing.invalid/"]);
    assert_eq!(status, "503", "{body}");
    assert!(body.contains("weft: unknown_service"), "{body}");
}

#[test]
fn e2e_cap_08_a_unix_socket_is_an_upstream_for_its_user_alone() {
    let mesh = Mesh::start();
    let origin = serve(|head, _| (200, format!("hello {head}")));
    let _api = mesh.sidecar("api", Some(&format!("http=80:{}", origin.port())), &[]);
    let socket = mesh.dir.path().join("api.sock");
    let upstream = format!("api={}", socket.display());
    let mut web = mesh.workload("sidecar", "web", None, &[], &["--upstream", &upstream], &[]);
    mesh.until_passing("api", 1);
    eventually("the socket answers", || {
        let (status, body) = curl(&["--unix-socket", socket.to_str().unwrap(), "http://api/x"]);
        if status == "200" && body == "hello GET /x" { Ok(()) } else { Err((status, body, web.log())) }
    });
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(web.stop(), 0);
    assert!(!socket.exists(), "it goes with its sidecar");
}
