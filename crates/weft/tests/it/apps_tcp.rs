//! Databases through the mesh: one whose client speaks first, one whose server does.

use std::{
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use crate::mesh::{Mesh, connect, free_port, peer, text};

fn run(program: &Path, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap()
}

#[test]
fn e2e_l4t_04_redis_whose_client_speaks_first() {
    let (Some(server), Some(cli)) = (peer("REDIS"), peer("REDIS_CLI")) else { return };
    let mesh = Mesh::start();
    // once undeclared, once declared
    for (service, protocol) in [("cache", ""), ("cache-tcp", "/tcp")] {
        let port = free_port().to_string();
        let program = [server.to_str().unwrap(), "--bind", "127.0.0.1", "--save", "", "--port", &port];
        let declared = format!("6379:{port}{protocol}");
        let mut db = mesh.run(service, Some(&declared), &[], &program);
        let web = mesh.sidecar("web", None, &[service]);
        mesh.until_passing(service, 1);
        let at = web.upstreams[0].port().to_string();
        let ask = |args: &[&str]| {
            let out = run(&cli, &[&["-p", &at][..], args].concat());
            format!("{}{}", text(&out.stdout), text(&out.stderr))
        };
        mesh.until_answers_tcp(&web, b"PING\r\n", b"+PONG\r\n");
        assert_eq!(ask(&["PING"]), "PONG\n", "{service}");
        assert_eq!(ask(&["SET", "k", "v"]), "OK\n");
        assert_eq!(ask(&["GET", "k"]), "v\n");
        // many commands in one connection, and a large value
        let large = "x".repeat(100_000);
        assert_eq!(ask(&["SET", "large", &large]), "OK\n");
        assert_eq!(ask(&["GET", "large"]), format!("{large}\n"));
        assert_eq!(ask(&["-r", "500", "INCR", "n"]).lines().last(), Some("500"));
        // who called is known by identity, not by address
        assert!(mesh.ok(&["why", "--all", "--last", "50"]).contains("web"), "{service}");
        // redis ends well when told to
        assert_eq!(db.stop(), 0, "{}", db.log());
    }
}

#[test]
fn e2e_l4t_04_mariadb_whose_server_speaks_first() {
    let (Some(server), Some(install), Some(client)) = (peer("MARIADBD"), peer("MARIADB_INSTALL"), peer("MARIADB"))
    else {
        return;
    };
    let mesh = Mesh::start();
    let data = mesh.dir.path().join("mariadb");
    let data_flag = format!("--datadir={}", data.display());
    let made = run(&install, &[&data_flag]);
    assert!(made.status.success(), "{}{}", text(&made.stdout), text(&made.stderr));
    let port = free_port();
    let socket = format!("--socket={}", mesh.dir.path().join("db.sock").display());
    let port_flag = format!("--port={port}");
    let program = [
        server.to_str().unwrap(),
        &data_flag,
        &socket,
        &port_flag,
        "--bind-address=127.0.0.1",
        "--skip-grant-tables",
        "--skip-name-resolve",
    ];
    // one service port undeclared, one declared, both of the same database
    let undeclared = format!("3306:{port}");
    let mut db = mesh.run("db", Some(&undeclared), &[], &program);
    let web = mesh.sidecar("web", None, &["db", "db/tcp"]);
    mesh.until_passing("db", 1);
    mesh.until_synced(&[&web]);

    let select = |port: u16, sql: &str| {
        let out = run(&client, &["-h", "127.0.0.1", "-P", &port.to_string(), "-u", "root", "-N", "-e", sql]);
        format!("{}{}", text(&out.stdout), text(&out.stderr))
    };
    let through = [web.upstreams[0].port(), web.upstreams[1].port()];
    for at in through {
        assert_eq!(select(at, "SELECT 6 * 7"), "42\n");
    }
    assert_eq!(select(through[0], "CREATE DATABASE t; CREATE TABLE t.a (n INT); INSERT INTO t.a VALUES (1), (2)"), "");
    assert_eq!(select(through[1], "SELECT SUM(n), COUNT(*) FROM t.a"), "3\t2\n");
    assert_eq!(select(through[0], "SELECT LENGTH(REPEAT('x', 1000000))"), "1000000\n");

    // The wait for a client that does not speak is 2 ms where the server is not known to; the bound is generous since
    // the machine is busy and this build is not optimized
    let greeting = |at: u16| {
        let mut best = Duration::MAX;
        for _ in 0..10 {
            let start = Instant::now();
            let mut io = connect(([127, 0, 0, 1], at).into()).unwrap();
            std::io::Read::read_exact(&mut io, &mut [0; 16]).unwrap();
            best = best.min(start.elapsed());
        }
        best
    };
    let direct = greeting(port);
    for at in through {
        let meshed = greeting(at);
        assert!(meshed < direct + Duration::from_millis(50), "greeting after {meshed:?}, {direct:?} without the mesh");
    }
    assert_eq!(db.stop(), 0, "{}", db.log());
}
