//! What the program itself takes, before it serves anything.
#![cfg(target_os = "linux")]

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Proxy {
    fn says(&self, file: &str, key: &str) -> Option<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/{file}", self.0.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse().ok()
    }
}

/// Its heap is 2 MiB; on huge pages it once took 12. The size of the program, which a release build decides, is left out.
#[test]
fn a_fresh_proxy_takes_no_huge_pages() {
    // nobody answers there: it goes on trying
    let token = format!("id.secret.{}", "ab".repeat(32));
    let args =
        ["--service", "web", "--join", "127.0.0.1:1", "--mesh-listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-proxy"));
    command.args(args).env("WEFT_TOKEN", token).env_remove("WEFT_STATE").stderr(Stdio::piped());
    let mut proxy = Proxy(command.spawn().unwrap());
    let mut said = String::new();
    BufReader::new(proxy.0.stderr.as_mut().unwrap()).read_line(&mut said).unwrap();
    assert!(said.contains("waiting to join"), "{said}");
    // a kernel that lets everyone have them is told, a kernel that waits to be asked is not asked
    assert_eq!(proxy.says("status", "THP_enabled"), Some(0));
    assert_eq!(proxy.says("smaps_rollup", "AnonHugePages"), Some(0));
    let anonymous = proxy.says("status", "RssAnon").unwrap();
    assert!((200..6 * 1024).contains(&anonymous), "{anonymous} KiB of anonymous memory");
}
