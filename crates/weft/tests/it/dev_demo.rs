//! `weft dev`, alone and with its bookshop: what it prints, that the printed commands work, and that nothing is left.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use crate::mesh::{eventually, get, text, weft};

/// On two busy cores, without optimization; with it the shop opens in about a second.
const OPENS_WITHIN: Duration = Duration::from_secs(20);

/// A running `weft dev` that is this test's alone.
struct Dev {
    /// Holds what `weft dev` makes for its user; empty before and after.
    runtime: Option<tempfile::TempDir>,
    /// Where commands are pasted: not where `weft dev` was started.
    elsewhere: tempfile::TempDir,
    output: PathBuf,
    child: Child,
}

impl Dev {
    fn start(flags: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), flags)
    }

    fn start_in(runtime: tempfile::TempDir, flags: &[&str]) -> Self {
        let elsewhere = tempfile::tempdir().unwrap();
        let output = elsewhere.path().join("output");
        let log = std::fs::File::create(&output).unwrap();
        let child = weft()
            .args(["dev", "--http", "127.0.0.1:0", "--mesh", "127.0.0.1:0"])
            .args(flags)
            .env("XDG_RUNTIME_DIR", runtime.path())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { runtime: Some(runtime), elsewhere, output, child }
    }

    fn runtime(&self) -> &Path {
        self.runtime.as_ref().unwrap().path()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn printed(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap()
    }

    /// Runs a line as a user would paste it into a shell somewhere else.
    fn paste(&self, line: &str) -> Output {
        let mut shell = Command::new("sh");
        shell.args(["-c", line]).env("XDG_RUNTIME_DIR", self.runtime()).current_dir(self.elsewhere.path());
        for name in ["WEFT_SERVER", "WEFT_TOKEN", "WEFT_TOKEN_FILE", "WEFT_JOIN", "WEFT_DATA"] {
            shell.env_remove(name);
        }
        shell.output().unwrap()
    }

    fn works(&self, line: &str) -> String {
        let out = self.paste(line);
        assert!(out.status.success(), "{line}: {}\n{}{}", out.status, text(&out.stdout), text(&out.stderr));
        text(&out.stdout)
    }

    /// The command printed beside `what`.
    fn told(&self, what: &str) -> String {
        eventually(&format!("a command for `{what}` is printed"), || {
            let printed = self.printed();
            let line = printed.lines().rev().find_map(|l| l.strip_prefix("  ")?.strip_prefix(what).map(str::trim));
            line.map(str::to_owned).ok_or_else(|| printed.clone())
        })
    }

    /// Processes that belong to it: its own and all below, found by the runtime directory in their environment.
    fn processes(&self) -> Vec<(u32, String)> {
        let mark = format!("XDG_RUNTIME_DIR={}\0", self.runtime().display());
        let all = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let environment = std::fs::read(entry.path().join("environ")).ok()?;
            let command = std::fs::read(entry.path().join("cmdline")).ok()?;
            // a zombie has no command line
            (!command.is_empty() && text(&environment).contains(&mark))
                .then(|| (pid, text(&command).replace('\0', " ")))
        });
        all.collect()
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    fn until_nothing_is_left(&mut self) {
        eventually("no process is left", || {
            let _ = self.child.try_wait();
            let left = self.processes();
            if left.is_empty() { Ok(()) } else { Err(left) }
        });
        let left: Vec<_> = std::fs::read_dir(self.runtime()).unwrap().flatten().map(|e| e.path()).collect();
        assert!(left.is_empty(), "files are left: {left:?}");
    }

    fn until_open(&self) {
        eventually("the shop is open", || {
            let printed = self.printed();
            // it says so with the last of what it prints before the table
            if printed.contains("\n  what customers saw") { Ok(()) } else { Err(printed) }
        });
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // gone with the runtime directory that another took over
        if self.runtime.is_none() {
            return;
        }
        for (pid, _) in self.processes() {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).stderr(Stdio::null()).status();
        }
    }
}

fn address(command: &str) -> SocketAddr {
    let at = command.find("http://").unwrap() + "http://".len();
    command[at..].split('/').next().unwrap().parse().unwrap()
}

/// What the shop's customers counted: asked, ok, failed.
fn counts(addr: SocketAddr) -> [u64; 3] {
    let json: serde_json::Value = serde_json::from_slice(&get(addr, "/counts", &[]).unwrap().body).unwrap();
    ["sent", "ok", "failed"].map(|k| json[k].as_u64().unwrap())
}

fn weft_binary() -> &'static str {
    env!("CARGO_BIN_EXE_weft")
}

#[test]
fn e2e_the_shop_opens_and_every_printed_command_works() {
    let started = Instant::now();
    let mut dev = Dev::start(&["--demo"]);
    dev.until_open();
    let opened = started.elapsed();
    assert!(opened < OPENS_WITHIN, "open after {opened:?}");
    println!("open after {opened:?}");
    let printed = dev.printed();
    assert!(printed.starts_with("control plane: HTTP API http://127.0.0.1:"), "{printed}");
    assert!(!printed.contains('\x1b'), "no terminal, no terminal's codes: {printed:?}");

    for part in ["\n  web         process ", " http ", " grpc ", " tcp ", ".weft/ns/default/sa/stock\n"] {
        assert!(printed.contains(part), "it says what runs, where and as whom: {part}: {printed}");
    }

    let asked = dev.told("what customers saw");
    let customers = address(&asked);
    eventually("customers come", || match counts(customers) {
        [sent, ..] if sent >= 100 => Ok(()),
        few => Err(few),
    });
    let [sent, ok, failed] = counts(customers);
    assert_eq!((failed, sent), (0, ok), "nobody saw a closed shop");
    assert!(dev.works(&asked).contains("\"failed\":0"));

    let page = dev.works(&dev.told("read a book"));
    assert!(
        page.starts_with("HTTP/1.1 200 OK") && page.contains("The Rust Programming Language: 14 in stock"),
        "{page}"
    );

    // deny an edge: the page goes on without reviews, and the reason names the rule
    let denied = dev.works(&dev.told("deny an edge"));
    assert!(denied.contains("AuthorizationPolicy/default/no-reviews created"), "{denied}");
    let page = dev.works(&dev.told("read a book"));
    assert!(page.starts_with("HTTP/1.1 200 OK") && !page.contains("could not put it down"), "{page}");
    let ask = dev.told("ask why");
    let why = eventually("why names the rule", || {
        let out = dev.paste(&ask);
        let said = text(&out.stdout);
        if said.contains("AuthorizationPolicy/default/no-reviews#rule-0") {
            Ok(said)
        } else {
            Err(said + &text(&out.stderr))
        }
    });
    assert!(why.contains("sa/web → default/reviews") && why.contains("verdict   deny"), "{why}");
    let allowed = dev.works(&dev.told("allow it again"));
    assert!(allowed.contains("applied by"), "{allowed}");
    let page = dev.works(&dev.told("read a book"));
    assert!(page.contains("reviews v"), "{page}");

    // split 90/10
    dev.works(&dev.told("split reviews 90/10"));
    let web = address(&dev.told("read a book"));
    let mut v1 = 0;
    for _ in 0..400 {
        let page = get(web, "/book/9781593278281", &[]).unwrap();
        assert_eq!(page.status, 200);
        v1 += usize::from(page.text().contains("reviews v1"));
    }
    // 360 ± 6 standard deviations
    assert!((324..=396).contains(&v1), "{v1} of 400 readers saw v1");

    // look, kill an instance, look again
    let look = dev.works(&dev.told("look at the mesh"));
    for part in ["catalog", "stock", "2/2 passing", "synced", "AuthorizationPolicy/default/reviews"] {
        assert!(look.contains(part), "{part}: {look}");
    }
    dev.works(&dev.told("kill an instance"));
    eventually("the mesh knows of the killed instance", || {
        let out = text(&dev.paste(&format!("{} endpoints reviews", weft_binary())).stdout);
        if out.matches("passing").count() == 1 { Ok(()) } else { Err(out) }
    });
    let page = eventually("v1 serves those of v2 or the page goes on", || {
        let page = get(web, "/book/9781593278281", &[]).unwrap();
        if page.status == 200 { Ok(page.text()) } else { Err(page) }
    });
    assert!(page.contains("14 in stock"), "{page}");

    // Ctrl-C drains
    dev.signal("-INT");
    let status = eventually("it ends", || dev.child.try_wait().unwrap().ok_or("running"));
    assert_eq!(status.code(), Some(0), "{}", dev.printed());
    assert!(dev.printed().contains("draining"), "{}", dev.printed());
    dev.until_nothing_is_left();
}

#[test]
fn e2e_obs_01_the_table_of_edges_agrees_with_the_customers() {
    let dev = Dev::start(&["--demo"]);
    dev.until_open();
    let customers = address(&dev.told("what customers saw"));
    let read = || -> (u64, u64) {
        let json: serde_json::Value = {
            let out = dev.works(&format!("cat {}/weft/dev.json", dev.runtime().display()));
            let file: serde_json::Value = serde_json::from_str(&out).unwrap();
            let token = std::fs::read_to_string(file["admin_token"].as_str().unwrap()).unwrap();
            let addr = file["http"].as_str().unwrap().parse().unwrap();
            let reply = get(addr, "/weft/v1/edges", &[("authorization", &format!("Bearer {}", token.trim()))]).unwrap();
            serde_json::from_slice(&reply.body).unwrap()
        };
        let edges = json["proxies"].as_array().unwrap().iter().flat_map(|p| p["edges"].as_array().unwrap().clone());
        let from_load =
            edges.filter(|e| e["direction"] == "outbound" && e["source"].as_str().unwrap().contains("load"));
        from_load.fold((0, 0), |(n, bad), e| (n + e["requests"].as_u64().unwrap(), bad + e["failed"].as_u64().unwrap()))
    };
    eventually("customers came", || match counts(customers) {
        [sent, ..] if sent >= 500 => Ok(()),
        few => Err(few),
    });
    // both grow: the table was right if its number lies between the customers' before and after, give or take 1 %
    eventually("the table agrees", || {
        let before = counts(customers);
        let (requests, failed) = read();
        let after = counts(customers);
        let low = before[0] - before[0] / 100;
        let high = after[0] + after[0] / 100;
        let bad = failed.abs_diff(after[2]);
        if (low..=high).contains(&requests) && bad <= after[0] / 100 {
            Ok(())
        } else {
            Err(format!("customers {before:?} … {after:?}, table {requests}, {failed} failed"))
        }
    });
    let table = eventually("the printed table names the edges", || {
        let printed = dev.printed();
        let all =
            [("load", "web"), ("web", "catalog"), ("web", "reviews"), ("reviews", "ratings"), ("catalog", "stock")];
        let has = |from: &str, to: &str| {
            printed.lines().any(|l| l.starts_with(&format!("{from} ")) && l.split_whitespace().nth(1) == Some(to))
        };
        if all.iter().all(|(from, to)| has(from, to)) { Ok(printed) } else { Err(printed) }
    });
    // who → whom, version, protocol, requests/s, success, p50, p99, denied, total, key exchange, identities
    let heads = [
        "FROM",
        "TO",
        "VER",
        "PROTO",
        "REQ/S",
        "SUCCESS",
        "P50",
        "MS",
        "P99",
        "MS",
        "DENIED",
        "TOTAL",
        "KEY",
        "EXCHANGE",
        "IDENTITIES",
    ];
    let head = table.lines().find(|l| l.starts_with("FROM ")).unwrap();
    assert_eq!(head.split_whitespace().collect::<Vec<_>>(), heads);
    let row = table.lines().rev().find(|l| l.starts_with("load ")).unwrap();
    for part in ["http", "100.0%", "X25519MLKEM768", "/ns/default/sa/load → /ns/default/sa/web"] {
        assert!(row.contains(part), "{part}: {row}");
    }
    let columns: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(columns[2..4], ["v1", "http"], "{row}");
    let number = |at: usize| columns[at].parse::<f64>().unwrap_or_else(|e| panic!("column {at}: {e}: {row}"));
    assert!(number(4) > 10.0 && number(6) > 0.0 && number(6) <= number(7) && number(8) == 0.0, "{row}");
    // the slower version of reviews is not starved by the faster one
    eventually("both versions of reviews have their share", || {
        let printed = dev.printed();
        let latest = |version: &str| {
            let mut rows = printed.lines().rev().map(|l| l.split_whitespace().collect::<Vec<_>>());
            let row = rows.find(|c| c.len() > 9 && c[..3] == ["web", "reviews", version])?;
            row[9].parse::<f64>().ok()
        };
        match (latest("v1"), latest("v2")) {
            (Some(one), Some(two)) if one + two > 400.0 && two / (one + two) > 0.04 && one / (one + two) > 0.04 => {
                Ok(())
            }
            other => Err(format!("{other:?}: {printed}")),
        }
    });
}

#[test]
fn e2e_nothing_is_left_after_kill_9() {
    let mut dev = Dev::start(&["--demo"]);
    dev.until_open();
    assert!(dev.processes().len() > 10, "the shop is there: {:?}", dev.processes());
    dev.kill();
    dev.until_nothing_is_left();
}

#[test]
fn e2e_nothing_is_left_after_kill_9_at_any_moment_of_the_start() {
    for millis in [0, 2, 5, 10, 20, 40, 80, 150, 300, 500, 700, 900, 1200] {
        let mut dev = Dev::start(&["--demo"]);
        std::thread::sleep(Duration::from_millis(millis));
        dev.kill();
        println!("killed after {millis} ms: {} processes", dev.processes().len());
        dev.until_nothing_is_left();
    }
}

#[test]
fn e2e_who_starts_again_after_kill_9_is_not_cleaned_up_with_the_dead() {
    let mut dev = Dev::start(&["--demo"]);
    dev.until_open();
    let (janitor, _) = dev.processes().into_iter().find(|(_, command)| command.ends_with(" janitor ")).unwrap();
    dev.kill();
    // the dead one's services are still ending, and its janitor waits for them
    let mut again = Dev::start_in(dev.runtime.take().unwrap(), &[]);
    eventually("the next is there", || {
        let printed = again.printed();
        if printed.contains("run a program in the mesh") { Ok(()) } else { Err(printed) }
    });
    eventually("the first one's janitor has ended", || {
        let left = again.processes().into_iter().filter(|(pid, _)| *pid == janitor).collect::<Vec<_>>();
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    again.works(&format!("{} services", weft_binary()));
    again.signal("-INT");
    let status = eventually("it ends", || again.child.try_wait().unwrap().ok_or("running"));
    assert_eq!(status.code(), Some(0), "{}", again.printed());
    let left: Vec<_> = std::fs::read_dir(again.runtime()).unwrap().flatten().map(|e| e.path()).collect();
    assert!(left.is_empty(), "nothing is left when the command has ended, not a moment later: {left:?}");
}

#[test]
fn a_directory_that_is_somebody_elses_is_left_alone() {
    let runtime = tempfile::tempdir().unwrap();
    let theirs = runtime.path().join("weft");
    std::fs::create_dir(&theirs).unwrap();
    std::fs::write(theirs.join("letter"), "dear").unwrap();
    let mut dev = Dev::start_in(runtime, &[]);
    let status = eventually("it ends", || dev.child.try_wait().unwrap().ok_or("running"));
    assert_eq!(status.code(), Some(1));
    let want = format!("weft: {} exists and is not ours: it holds other things; move it away\n", theirs.display());
    assert_eq!(dev.printed(), want);
    assert!(theirs.join("letter").exists());
}

#[test]
fn e2e_a_member_that_ends_is_told_of_with_what_it_said_last() {
    let dev = Dev::start(&["--demo"]);
    dev.until_open();
    // a program that loses its port says so
    let runs = |name: &str, column: usize| {
        let printed = dev.printed();
        let line = printed.lines().find(|l| l.starts_with(&format!("  {name} "))).unwrap().to_owned();
        line.split_whitespace().nth(column).unwrap().to_owned()
    };
    let stock: u32 = runs("stock", 2).parse().unwrap();
    let log = dev.runtime().join("weft/log/stock.log");
    let mut said = std::fs::File::options().append(true).open(&log).unwrap();
    std::io::Write::write_all(&mut said, b"the shelf\nfell down\n").unwrap();
    assert!(Command::new("kill").args(["-9", &stock.to_string()]).status().unwrap().success());
    let told = format!(
        "stock (process {stock}) ended: signal: 9 (SIGKILL); its log is {}\n    the shelf\n    fell down\n",
        log.display()
    );
    eventually("its end is told", || {
        let printed = dev.printed();
        if printed.contains(&told) { Ok(()) } else { Err(printed) }
    });
    assert_eq!(dev.printed().matches("(process ").count(), 1, "once, and of nobody else: {}", dev.printed());
}

#[test]
fn a_second_weft_dev_says_that_there_is_one() {
    let mut dev = Dev::start(&[]);
    eventually("it is there", || {
        let printed = dev.printed();
        if printed.contains("run a program in the mesh") { Ok(()) } else { Err(printed) }
    });
    let out = dev.paste(&format!("{} dev --http 127.0.0.1:0 --mesh 127.0.0.1:0", weft_binary()));
    assert_eq!(out.status.code(), Some(1));
    let said = text(&out.stderr);
    let want = format!("weft: `weft dev` is running already (process {}, HTTP API 127.0.0.1:", dev.child.id());
    assert!(said.starts_with(&want) && said.ends_with("); stop it first\n"), "{said}");
    // the first is unharmed, and ends well
    assert!(Path::new(&dev.runtime().join("weft/dev.json")).exists());
    dev.works(&format!("{} services", weft_binary()));
    dev.signal("-INT");
    let status = eventually("it ends", || dev.child.try_wait().unwrap().ok_or("running"));
    assert_eq!(status.code(), Some(0), "{}", dev.printed());
    dev.until_nothing_is_left();
}

#[test]
fn e2e_the_program_that_weft_dev_suggests_joins() {
    let dev = Dev::start(&[]);
    let line = eventually("it suggests a program", || {
        let printed = dev.printed();
        printed.lines().find_map(|l| l.strip_prefix("  ")).map(str::to_owned).ok_or(printed)
    });
    // its ports may be taken on this machine: others here
    let port = crate::mesh::free_port();
    let line = line.replace("8000", &port.to_string());
    let mut run = Command::new("sh")
        .args(["-c", &format!("exec {line}")])
        .env("XDG_RUNTIME_DIR", dev.runtime())
        .current_dir(dev.elsewhere.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("hello passes", || {
        let out = text(&dev.paste(&format!("{} services", weft_binary())).stdout);
        if out.contains("hello") && out.contains("1/1 passing") { Ok(()) } else { Err(out) }
    });
    let ended = Command::new("kill").args(["-TERM", &run.id().to_string()]).status().unwrap();
    assert!(ended.success());
    eventually("it ends", || run.try_wait().unwrap().ok_or("running"));
}
