//! Origins that do exactly what they are told, and clients that say exactly what they are given.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

pub const LIMIT: Duration = Duration::from_secs(20);

/// An origin whose connections each run `serve`; it ends when dropped.
pub struct Origin {
    pub addr: SocketAddr,
    /// Everything that any connection sent, if `serve` logs it.
    pub log: Arc<Mutex<Vec<u8>>>,
    accepted: watch::Receiver<usize>,
    _tasks: JoinSet<()>,
}

impl Origin {
    pub async fn new<F>(serve: impl Fn(TcpStream, Arc<Mutex<Vec<u8>>>) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let l = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = l.local_addr().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let logged = log.clone();
        let mut tasks = JoinSet::new();
        let (count, accepted) = watch::channel(0);
        tasks.spawn(async move {
            let mut conns = JoinSet::new();
            loop {
                let (s, _) = l.accept().await.unwrap();
                count.send_modify(|n| *n += 1);
                conns.spawn(serve(s, logged.clone()));
            }
        });
        Self { addr, log, accepted, _tasks: tasks }
    }

    /// Logs every byte, and answers each head (with its body by `content-length` or chunks) with `answer`.
    pub async fn answering(answer: &'static str) -> Self {
        Self::new(move |mut s, log| async move {
            let mut seen = Vec::new();
            while let Some(request) = read_request(&mut s, &mut seen).await {
                log.lock().unwrap().extend_from_slice(&request);
                if s.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        })
        .await
    }

    /// Echoes bytes, and the half-close.
    pub async fn echo() -> Self {
        Self::new(|mut s, _| async move {
            let (mut r, mut w) = s.split();
            let _ = tokio::io::copy(&mut r, &mut w).await;
            let _ = w.shutdown().await;
        })
        .await
    }

    /// Waits until so many connections came.
    pub async fn accepted(&self, n: usize) {
        let mut seen = self.accepted.clone();
        tokio::time::timeout(LIMIT, seen.wait_for(|c| *c >= n)).await.expect("timed out").unwrap();
    }

    pub fn logged(&self) -> String {
        String::from_utf8_lossy(&self.log.lock().unwrap()).into_owned()
    }
}

/// One request with its body, as bytes; `None` at the end.
pub async fn read_request(s: &mut TcpStream, seen: &mut Vec<u8>) -> Option<Vec<u8>> {
    loop {
        if let Some(n) = whole(seen) {
            return Some(seen.drain(..n).collect());
        }
        let mut b = [0; 4096];
        match s.read(&mut b).await {
            Ok(0) | Err(_) => return None,
            Ok(n) => seen.extend_from_slice(&b[..n]),
        }
    }
}

/// How long the first message in `seen` is, if it is whole.
fn whole(seen: &[u8]) -> Option<usize> {
    let text = String::from_utf8_lossy(seen).to_ascii_lowercase();
    let head = text.find("\r\n\r\n")? + 4;
    if text[..head].contains("transfer-encoding: chunked") {
        let end = text[head..].find("0\r\n")?;
        let last = text[head + end..].find("\r\n\r\n")?;
        return Some(head + end + last + 4);
    }
    let length =
        text[..head].lines().find_map(|l| l.strip_prefix("content-length: ")?.trim().parse().ok()).unwrap_or(0);
    (seen.len() >= head + length).then_some(head + length)
}

/// A client that writes bytes and reads bytes.
pub struct Raw(pub TcpStream, pub Vec<u8>);

impl Raw {
    pub async fn connect(to: SocketAddr) -> Self {
        Self(TcpStream::connect(to).await.unwrap(), Vec::new())
    }

    pub async fn send(&mut self, text: impl AsRef<[u8]>) {
        self.0.write_all(text.as_ref()).await.unwrap();
    }

    /// Reads until `text` was seen; everything up to and with it.
    pub async fn until(&mut self, text: &str) -> String {
        let read = async {
            loop {
                if let Some(at) = find(&self.1, text.as_bytes()) {
                    let end = at + text.len();
                    return String::from_utf8_lossy(&self.1.drain(..end).collect::<Vec<_>>()).into_owned();
                }
                let mut b = [0; 4096];
                let n =
                    self.0.read(&mut b).await.unwrap_or_else(|e| {
                        panic!("{e} before `{text}`, after `{}`", String::from_utf8_lossy(&self.1))
                    });
                assert!(n > 0, "end before `{text}`, after `{}`", String::from_utf8_lossy(&self.1));
                self.1.extend_from_slice(&b[..n]);
            }
        };
        tokio::time::timeout(LIMIT, read).await.expect("timed out")
    }

    /// A head and a body of known length.
    pub async fn response(&mut self) -> (String, String) {
        let head = self.until("\r\n\r\n").await;
        let lower = head.to_ascii_lowercase();
        let length: usize =
            lower.lines().find_map(|l| l.strip_prefix("content-length: ")?.trim().parse().ok()).unwrap_or(0);
        let body = self.exactly(length).await;
        (head, String::from_utf8_lossy(&body).into_owned())
    }

    pub async fn exactly(&mut self, n: usize) -> Vec<u8> {
        let read = async {
            while self.1.len() < n {
                let mut b = [0; 65536];
                let got = self.0.read(&mut b).await.unwrap();
                assert!(got > 0, "end after {} of {n} bytes", self.1.len());
                self.1.extend_from_slice(&b[..got]);
            }
            self.1.drain(..n).collect()
        };
        tokio::time::timeout(LIMIT, read).await.expect("timed out")
    }

    /// Reads to the end: `Ok` is a clean one.
    pub async fn rest(&mut self) -> std::io::Result<Vec<u8>> {
        let mut out = std::mem::take(&mut self.1);
        tokio::time::timeout(LIMIT, self.0.read_to_end(&mut out)).await.expect("timed out")?;
        Ok(out)
    }
}

fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    hay.windows(needle.len()).position(|w| w == needle)
}
