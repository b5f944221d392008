//! A mesh of real processes for one test: a server with its own data directory, workloads, and the command line.
//! Everything listens on loopback, on ports nobody else has; everything ends with the test.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

/// The bound of every wait: generous, since it only says that something is broken.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub struct Mesh {
    pub dir: tempfile::TempDir,
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    server: Option<Child>,
    extra: Vec<String>,
    /// A command that the server is run by, and where the root directory that it then has can be seen.
    under: Vec<String>,
    root: PathBuf,
}

/// A `weft run` or `weft sidecar`.
pub struct Workload {
    pub child: Child,
    pub id: String,
    /// Local port of each upstream, in the order in which they were asked for.
    pub upstreams: Vec<SocketAddr>,
    pub stderr: PathBuf,
}

pub fn weft() -> Command {
    let mut weft = Command::new(env!("CARGO_BIN_EXE_weft"));
    // nothing of the machine's own mesh leaks into a test
    for name in [
        "WEFT_SERVER",
        "WEFT_TOKEN",
        "WEFT_TOKEN_FILE",
        "WEFT_CA_FILE",
        "WEFT_JOIN",
        "WEFT_DATA",
        "WEFT_STATE",
        "RUST_LOG",
    ] {
        weft.env_remove(name);
    }
    // where the user's own `weft dev` would be found
    weft.env("XDG_RUNTIME_DIR", env!("CARGO_TARGET_TMPDIR"));
    weft
}

/// A port for a program that this test starts; nobody else is given it while the test runs.
pub fn free_port() -> u16 {
    let held = weft_rt::listen::hold(std::net::Ipv4Addr::LOCALHOST.into()).unwrap();
    let port = held.addr().port();
    std::mem::forget(held);
    port
}

pub fn free_addr() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

/// Waits for a level, not for an edge; panics with what it last saw.
pub fn eventually<T, E: std::fmt::Debug>(what: &str, mut check: impl FnMut() -> Result<T, E>) -> T {
    let start = Instant::now();
    loop {
        match check() {
            Ok(found) => return found,
            Err(last) if start.elapsed() > PATIENCE => panic!("{what}: not within {PATIENCE:?}; last seen: {last:?}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// A real program that the mesh is tested with: `WEFT_PEER_<name>`, which `cargo xtask test` sets. Without it the test
/// is skipped, visibly; in CI it fails.
pub fn peer(name: &str) -> Option<PathBuf> {
    let variable = format!("WEFT_PEER_{name}");
    let found = std::env::var_os(&variable).map(PathBuf::from);
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "{variable} is not set: run the tests with `cargo xtask test`");
        eprintln!(
            "SKIPPED {}: {variable} is not set; `cargo xtask test` sets it",
            std::thread::current().name().unwrap_or("?")
        );
    }
    found
}

impl Mesh {
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// With further flags for `weft server`.
    pub fn with(flags: &[&str]) -> Self {
        let mut mesh = Self::around(tempfile::tempdir().unwrap(), free_addr(), free_addr());
        mesh.extra = flags.iter().map(ToString::to_string).collect();
        mesh.start_server();
        mesh
    }

    /// With the server run by a command, which may give it another root directory: where that is seen from here.
    pub fn under(dir: tempfile::TempDir, command: &[&str], root: &Path) -> Self {
        let mut mesh = Self::around(dir, free_addr(), free_addr());
        mesh.under = command.iter().map(ToString::to_string).collect();
        mesh.root = root.to_owned();
        mesh.start_server();
        mesh
    }

    /// Around a server that the test has itself.
    pub fn around(dir: tempfile::TempDir, http: SocketAddr, grpc: SocketAddr) -> Self {
        Self { dir, http, grpc, server: None, extra: Vec::new(), under: Vec::new(), root: "/".into() }
    }

    pub fn data(&self) -> PathBuf {
        let data = self.dir.path().join("data");
        data.strip_prefix("/").map_or_else(|_| data.clone(), |below| self.root.join(below))
    }

    pub fn server_id(&self) -> u32 {
        self.server.as_ref().unwrap().id()
    }

    /// Also after [`Mesh::kill_server`]: same data, same addresses.
    pub fn start_server(&mut self) {
        let log = std::fs::File::options().create(true).append(true).open(self.dir.path().join("server.log")).unwrap();
        let mut server = weft();
        if let [first, rest @ ..] = &self.under[..] {
            let mut under = Command::new(first);
            under.args(rest).arg(server.get_program());
            for (name, value) in server.get_envs() {
                match value {
                    Some(value) => under.env(name, value),
                    None => under.env_remove(name),
                };
            }
            server = under;
        }
        server.arg("server").arg("--data").arg(self.dir.path().join("data")).args([
            "--http",
            &self.http.to_string(),
            "--mesh",
            &self.grpc.to_string(),
        ]);
        server.args(&self.extra).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.server = Some(server.spawn().unwrap());
        eventually("the server is ready", || match self.server.as_mut().unwrap().try_wait().unwrap() {
            Some(status) => panic!("the server ended with {status}: {}", self.server_log()),
            None => match get(self.http, "/healthz/ready", &[]) {
                Ok(reply) if reply.status == 200 => Ok(()),
                other => Err(format!("{other:?}")),
            },
        });
    }

    pub fn server_log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("server.log")).unwrap_or_default()
    }

    /// `kill -9`.
    pub fn kill_server(&mut self) {
        let mut server = self.server.take().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }

    /// The command line, as an operator of this mesh.
    pub fn weft(&self, args: &[&str]) -> Output {
        self.weft_with(args, "")
    }

    pub fn weft_with(&self, args: &[&str], stdin: &str) -> Output {
        let mut child = weft()
            .args(args)
            .env("WEFT_SERVER", format!("http://{}", self.http))
            .env("WEFT_TOKEN_FILE", self.data().join("admin.token"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// Output of a verb that must succeed.
    pub fn ok(&self, args: &[&str]) -> String {
        let out = self.weft(args);
        assert!(out.status.success(), "weft {args:?}: {}\n{}{}", out.status, text(&out.stdout), text(&out.stderr));
        text(&out.stdout)
    }

    /// Applies documents and waits until every proxy concerned has them.
    pub fn apply(&self, yaml: &str) -> String {
        let out = self.weft_with(&["apply", "--wait", "-f", "-"], yaml);
        assert!(out.status.success(), "apply: {}\n{}{}", out.status, text(&out.stdout), text(&out.stderr));
        text(&out.stdout)
    }

    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(&[args, &["-o", "json"]].concat())).unwrap()
    }

    pub fn token(&self, service: &str) -> String {
        self.ok(&["token", "create", "--service", service]).trim().to_owned()
    }

    /// A sidecar for something that the test itself serves on `port` (`None`: it only calls).
    pub fn sidecar(&self, service: &str, port: Option<&str>, upstreams: &[&str]) -> Workload {
        self.workload("sidecar", service, port, upstreams, &[], &[])
    }

    pub fn run(&self, service: &str, port: Option<&str>, upstreams: &[&str], program: &[&str]) -> Workload {
        self.workload("run", service, port, upstreams, &[], program)
    }

    pub fn workload(
        &self,
        role: &str,
        service: &str,
        port: Option<&str>,
        upstreams: &[&str],
        flags: &[&str],
        program: &[&str],
    ) -> Workload {
        self.workload_with(role, service, &self.token(service), port, upstreams, flags, program)
    }

    /// With a token that was made before.
    #[expect(clippy::too_many_arguments, reason = "it is the command line")]
    pub fn workload_with(
        &self,
        role: &str,
        service: &str,
        token: &str,
        port: Option<&str>,
        upstreams: &[&str],
        flags: &[&str],
        program: &[&str],
    ) -> Workload {
        self.workload_logging(role, service, token, port, upstreams, flags, program, "warn")
    }

    /// With a log filter.
    #[expect(clippy::too_many_arguments, reason = "it is the command line")]
    pub fn workload_logging(
        &self,
        role: &str,
        service: &str,
        token: &str,
        port: Option<&str>,
        upstreams: &[&str],
        flags: &[&str],
        program: &[&str],
        filter: &str,
    ) -> Workload {
        let given = flags.iter().position(|f| *f == "--id").map(|at| flags[at + 1].to_owned());
        let id = given.clone().unwrap_or_else(|| format!("{service}-{}", free_port()));
        let stderr = self.dir.path().join(format!("{id}.log"));
        let log = std::fs::File::create(&stderr).unwrap();
        let mut command = weft();
        command
            .args([role, "--service", service, "--node", "test"])
            .args(["--mesh-listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"])
            .args(given.is_none().then_some(["--id", &id]).iter().flatten())
            .env("WEFT_JOIN", self.grpc.to_string())
            .env("WEFT_TOKEN", token)
            .env("RUST_LOG", filter)
            .args(port.map(|p| ["--port", p]).iter().flatten())
            .args(flags);
        let mut addrs = Vec::new();
        for upstream in upstreams {
            let addr = free_addr();
            let (name, protocol) =
                upstream.split_once('/').map_or((*upstream, String::new()), |(n, p)| (n, format!("/{p}")));
            command.args(["--upstream", &format!("{name}={addr}{protocol}")]);
            addrs.push(addr);
        }
        if !program.is_empty() {
            command.arg("--").args(program);
        }
        let child = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        Workload { child, id, upstreams: addrs, stderr }
    }

    /// A service `api` of one raw origin, declared as `protocol`, and its caller.
    pub fn pair(&self, protocol: &str, origin: SocketAddr) -> (Workload, Workload) {
        let api = self.sidecar("api", Some(&format!("{protocol}=80:{}", origin.port())), &[]);
        let web = self.sidecar("web", None, &["api"]);
        self.until_passing("api", 1);
        self.until_synced(&[&api, &web]);
        (api, web)
    }

    /// Until so many endpoints of the service take traffic.
    pub fn until_passing(&self, service: &str, wanted: usize) {
        eventually(&format!("{wanted} passing endpoints of {service}"), || {
            let json = self.json(&["endpoints", service]);
            let endpoints = json["endpoints"].as_array().cloned().unwrap_or_default();
            let passing = endpoints.iter().filter(|e| e["health"] == "passing").count();
            if passing == wanted { Ok(()) } else { Err(json) }
        });
    }

    /// Until these proxies have everything that is committed by now.
    pub fn until_synced(&self, workloads: &[&Workload]) {
        eventually("the proxies are in sync", || {
            let json: serde_json::Value = serde_json::from_slice(&self.weft(&["status", "-o", "json"]).stdout).unwrap();
            let proxies = json["proxies"].as_array().cloned().unwrap_or_default();
            let synced = |w: &&Workload| {
                let of =
                    |p: &&serde_json::Value| p["uid"].as_str().is_some_and(|uid| uid.ends_with(&format!("/{}", w.id)));
                proxies.iter().find(of).is_some_and(|p| p["state"] == "synced")
            };
            if workloads.iter().all(synced) { Ok(()) } else { Err(json) }
        });
    }

    /// Until a GET through a workload's first upstream answers with `status`.
    pub fn until_answers(&self, caller: &Workload, status: u16) -> Reply {
        eventually(&format!("{} gets {status}", caller.id), || match get(caller.upstreams[0], "/", &[]) {
            Ok(reply) if reply.status == status => Ok(reply),
            other => Err(format!("{other:?}; log: {}", caller.log())),
        })
    }

    /// Credentials as a workload of `service` gets them, for a peer that is no proxy of ours.
    pub fn credentials(&self, service: &str) -> std::sync::Arc<weft_proxy::tls::Credentials> {
        use weft_proxy::control::{Claim, Config, Proof, join};
        let name = |n: &str| n.parse::<weft_model::Name>().unwrap();
        let key = weft_model::ServiceKey::new(name("default"), name(service));
        let claim = Claim {
            namespace: "default".into(),
            service_account: service.into(),
            service: service.into(),
            node: "test".into(),
        };
        let config = Config {
            server: self.grpc,
            proof: Proof::Token { server: self.grpc, token: self.token(service).parse().unwrap() },
            claim,
            uid: weft_model::Uid::of(&key, &name("test"), &name("peer")),
            upstreams: std::collections::BTreeSet::new(),
            state: None,
        };
        let (clock, dice) = (weft_rt::Clock::real(), weft_rt::Dice::from_os());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let joined = runtime.block_on(join(config, clock, dice, |e| panic!("{e}"))).unwrap();
        joined.credentials.borrow().clone().unwrap()
    }

    /// Addresses of a service's one endpoint: for mesh peers, and of its first port.
    pub fn addresses(&self, service: &str) -> (SocketAddr, SocketAddr) {
        let json = self.json(&["endpoints", service]);
        let endpoint = &json["endpoints"][0];
        let address =
            |v: &serde_json::Value| v.as_str().and_then(|a| a.parse().ok()).unwrap_or_else(|| panic!("{json}"));
        (address(&endpoint["mesh"]), address(&endpoint["ports"][0]["app"]))
    }

    /// The same for a byte stream: what is said, and the first bytes of the answer.
    pub fn until_answers_tcp(&self, caller: &Workload, said: &[u8], wanted: &[u8]) {
        let ask = || -> std::io::Result<Vec<u8>> {
            let mut io = connect(caller.upstreams[0])?;
            io.write_all(said)?;
            let mut got = vec![0; wanted.len()];
            io.read_exact(&mut got)?;
            Ok(got)
        };
        eventually(&format!("{} is answered", caller.id), || match ask() {
            Ok(got) if got == wanted => Ok(()),
            other => Err(format!("{other:?}; log: {}", caller.log())),
        });
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

impl Workload {
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([&format!("-{signal}"), &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for its end, which must come; its exit code.
    pub fn ended(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt as _;
        let status = eventually(&format!("{} ends", self.id), || self.child.try_wait().unwrap().ok_or("still running"));
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap())
    }

    /// Drains it.
    pub fn stop(&mut self) -> i32 {
        self.signal("TERM");
        self.ended()
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// === a plain HTTP/1.1 client and servers, which know nothing of what they test ===

#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| &**v)
    }

    pub fn text(&self) -> String {
        text(&self.body)
    }
}

pub fn get(addr: SocketAddr, path: &str, headers: &[(&str, &str)]) -> std::io::Result<Reply> {
    request(addr, "GET", path, headers, b"")
}

/// One request on a connection of its own.
pub fn request(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Reply> {
    let mut io = connect(addr)?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    io.write_all(head.as_bytes())?;
    io.write_all(body)?;
    read_reply(&mut BufReader::new(io))
}

pub fn connect(addr: SocketAddr) -> std::io::Result<TcpStream> {
    let io = TcpStream::connect_timeout(&addr, Duration::from_secs(5))?;
    io.set_read_timeout(Some(PATIENCE))?;
    io.set_nodelay(true)?;
    Ok(io)
}

/// Reads one reply: by content-length, chunks, or the connection's end.
pub fn read_reply(io: &mut BufReader<TcpStream>) -> std::io::Result<Reply> {
    let bad = |why: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, why.to_owned());
    let mut line = String::new();
    if io.read_line(&mut line)? == 0 {
        return Err(bad("closed without an answer"));
    }
    let status = line.split_whitespace().nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| bad(&line))?;
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        if io.read_line(&mut line)? == 0 {
            return Err(bad("closed within the head"));
        }
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.trim().to_owned())),
            None => break,
        }
    }
    let mut reply = Reply { status, headers, body: Vec::new() };
    match (reply.header("content-length").map(str::parse::<usize>), reply.header("transfer-encoding")) {
        (Some(length), _) => {
            reply.body.resize(length.map_err(|_| bad("content-length"))?, 0);
            io.read_exact(&mut reply.body)?;
        }
        (None, Some("chunked")) => loop {
            let mut line = String::new();
            io.read_line(&mut line)?;
            let size = usize::from_str_radix(line.trim(), 16).map_err(|_| bad("chunk size"))?;
            let mut chunk = vec![0; size + 2];
            io.read_exact(&mut chunk)?;
            if size == 0 {
                break;
            }
            reply.body.extend_from_slice(&chunk[..size]);
        },
        _ if matches!(status, 204 | 304) => {}
        _ => drop(io.read_to_end(&mut reply.body)?),
    }
    Ok(reply)
}

/// An HTTP/1.1 server that answers every request with `answer(method and path, body)`, keep-alive. It lives as long as
/// the test's process.
pub fn serve(answer: impl Fn(&str, &[u8]) -> (u16, String) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let answer = std::sync::Arc::new(answer);
    std::thread::spawn(move || {
        for io in listener.incoming().flatten() {
            let answer = answer.clone();
            std::thread::spawn(move || {
                let _ = io.set_nodelay(true);
                let mut write = io.try_clone().unwrap();
                let mut read = BufReader::new(io);
                while let Some((head, body)) = read_request(&mut read) {
                    let (status, text) = answer(&head, &body);
                    let reply = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{text}", text.len());
                    if write.write_all(reply.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    addr
}

fn read_request(io: &mut BufReader<TcpStream>) -> Option<(String, Vec<u8>)> {
    let mut first = String::new();
    if io.read_line(&mut first).ok()? == 0 {
        return None;
    }
    let mut length = 0;
    let mut chunked = false;
    loop {
        let mut line = String::new();
        io.read_line(&mut line).ok()?;
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(n) = line.strip_prefix("content-length:") {
            length = n.trim().parse().ok()?;
        }
        chunked |= line == "transfer-encoding: chunked";
    }
    let mut body = vec![0; length];
    io.read_exact(&mut body).ok()?;
    while chunked {
        let mut line = String::new();
        io.read_line(&mut line).ok()?;
        let size = usize::from_str_radix(line.trim(), 16).ok()?;
        let mut chunk = vec![0; size + 2];
        io.read_exact(&mut chunk).ok()?;
        body.extend_from_slice(&chunk[..size]);
        chunked = size > 0;
    }
    let head = first.rsplit_once(' ').map_or(first.as_str(), |(head, _)| head).to_owned();
    Some((head, body))
}

/// A TCP server that runs `serve` for each connection on a thread of its own.
pub fn serve_tcp(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let serve = std::sync::Arc::new(serve);
    std::thread::spawn(move || {
        for io in listener.incoming().flatten() {
            let serve = serve.clone();
            std::thread::spawn(move || serve(io));
        }
    });
    addr
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}
