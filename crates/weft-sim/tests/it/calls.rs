//! The applications: what they serve, and how they call each other through their proxies.

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use weft_rt::{
    Tasks,
    net::{Addr, Net as _, Stream},
};
use weft_sim::pipe_net::{Host, Listener};

use crate::oracle::Ask;

/// No caller waits longer.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// What a caller saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The status, and which instance answered.
    Http(u16, String),
    /// The bytes came back from that instance.
    Echo(String),
    /// The connection ended without an answer.
    Broken,
    Timeout,
}

/// Which instances took which requests, by the caller's own number.
pub type Taken = Arc<Mutex<Vec<(String, u64)>>>;

/// Answers HTTP requests with the instance's name.
pub async fn http_app(listener: Listener, name: &'static str, taken: Taken) {
    serve(listener, move |stream| answer(stream, name, taken.clone())).await;
}

/// Says the instance's name, then all that it hears.
pub async fn echo_app(listener: Listener, name: &'static str, _: Taken) {
    serve(listener, move |stream| echo(stream, name)).await;
}

async fn serve<F: Future<Output = Option<()>> + Send + 'static>(mut listener: Listener, each: impl Fn(Stream) -> F) {
    let mut tasks = Tasks::new();
    loop {
        tokio::select! {
            biased; // what ended is forgotten first
            Some(_) = tasks.next_ended(), if !tasks.is_empty() => {}
            accepted = listener.accept() => {
                let Some((stream, _)) = accepted else { return };
                let serving = each(stream);
                tasks.spawn("connection", async move { serving.await; });
            }
        }
    }
}

async fn answer(mut stream: Stream, name: &'static str, taken: Taken) -> Option<()> {
    let mut read = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = read.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut read).await.ok()? == 0 {
                return None;
            }
        };
        let head = String::from_utf8(read.drain(..end).collect()).ok()?.to_ascii_lowercase();
        let header = |name: &str| head.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
        let length: usize = header("content-length:").and_then(|v| v.parse().ok()).unwrap_or(0);
        assert!(header("transfer-encoding:").is_none(), "{head}");
        while read.len() < length {
            if stream.read_buf(&mut read).await.ok()? == 0 {
                return None;
            }
        }
        read.drain(..length);
        let number = header("x-number:").and_then(|v| v.parse().ok()).unwrap_or(0);
        taken.lock().unwrap().push((name.into(), number));
        let response = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
        stream.write_all(response.as_bytes()).await.ok()?;
    }
}

async fn echo(mut stream: Stream, name: &'static str) -> Option<()> {
    let mut buffer = [0; 256];
    let mut first = true;
    loop {
        let n = stream.read(&mut buffer).await.ok()?;
        if n == 0 {
            stream.shutdown().await.ok()?;
            return None;
        }
        if std::mem::take(&mut first) {
            stream.write_all(format!("{name} ").as_bytes()).await.ok()?;
        }
        stream.write_all(&buffer[..n]).await.ok()?;
    }
}

/// One request, or one short connection.
pub async fn call(host: Host, port: u16, ask: Ask, number: u64) -> Outcome {
    let calling = async {
        if ask.to == "db" {
            let (mut stream, name) = open(&host, port).await?;
            stream.shutdown().await.ok()?;
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.ok()?;
            return Some(Outcome::Echo(name));
        }
        http(&host, port, ask, number).await
    };
    match tokio::time::timeout(PATIENCE, calling).await {
        Ok(Some(outcome)) => outcome,
        Ok(None) => Outcome::Broken,
        Err(_) => Outcome::Timeout,
    }
}

/// A connection to the echoing application that has proved to be open, and whose it is.
pub async fn open(host: &Host, port: u16) -> Option<(Stream, String)> {
    let mut stream = host.connect(Addr::Tcp((host.ip(), port).into())).await.ok()?;
    stream.write_all(b"ping\n").await.ok()?;
    let mut read = Vec::new();
    while !read.ends_with(b" ping\n") {
        if stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    }
    let name = String::from_utf8(read).ok()?;
    Some((stream, name.trim_end_matches(" ping\n").into()))
}

async fn http(host: &Host, port: u16, ask: Ask, number: u64) -> Option<Outcome> {
    let mut stream = host.connect(Addr::Tcp((host.ip(), port).into())).await.ok()?;
    let Ask { method, path, .. } = ask;
    let canary = if ask.canary { "x-canary: yes\r\n" } else { "" };
    let body = if method == "POST" { "content-length: 5\r\n\r\nhello" } else { "\r\n" };
    let request =
        format!("{method} {path} HTTP/1.1\r\nhost: api\r\nx-number: {number}\r\nconnection: close\r\n{canary}{body}");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut read = Vec::new();
    stream.read_to_end(&mut read).await.ok()?;
    let text = String::from_utf8_lossy(&read).into_owned();
    let status = text.get(9..12)?.parse().ok()?;
    let body = text.split_once("\r\n\r\n")?.1;
    // what the proxy itself answers has a reason in its body
    Some(Outcome::Http(status, if status == 200 { body.to_owned() } else { String::new() }))
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(status, by) => write!(f, "{status} {by}"),
            Self::Echo(by) => write!(f, "echo {by}"),
            Self::Broken => f.write_str("broken"),
            Self::Timeout => f.write_str("timeout"),
        }
    }
}
