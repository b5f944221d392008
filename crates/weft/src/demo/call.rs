//! How the shop's services call each other: one kept HTTP/2 connection, or a new HTTP/1.1 connection when none is idle.

use std::{cell::RefCell, convert::Infallible, net::SocketAddr};

use anyhow::{Context as _, Result};
use http_body_util::{BodyExt as _, Empty, combinators::UnsyncBoxBody};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::{http1, http2},
    header::HeaderValue,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Runs hyper's own tasks on the thread that asked.
#[derive(Clone, Copy)]
pub struct Local;

/// A caller over HTTP/1.1 keep-alive connections.
pub struct Http1 {
    addr: SocketAddr,
    idle: RefCell<Vec<http1::SendRequest<Body>>>,
}

/// A caller over one HTTP/2 connection (prior knowledge).
pub struct Http2 {
    addr: SocketAddr,
    conn: RefCell<Option<http2::SendRequest<Body>>>,
}

impl<F: Future + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, task: F) {
        tokio::task::spawn_local(async move {
            task.await;
        });
    }
}

impl Http1 {
    pub fn new(addr: SocketAddr) -> Self {
        Self { addr, idle: RefCell::default() }
    }

    pub async fn get(&self, host: &str, path: &str, id: Option<HeaderValue>) -> Result<(StatusCode, String)> {
        let mut conn = loop {
            let Some(mut kept) = self.idle.borrow_mut().pop() else { break self.connect().await? };
            // a kept connection may have closed since
            if kept.ready().await.is_ok() {
                break kept;
            }
        };
        let reply = conn.send_request(get(path.to_owned(), Some(host), id)?).await?;
        let answer = read(reply).await?;
        self.idle.borrow_mut().push(conn);
        Ok(answer)
    }

    async fn connect(&self) -> Result<http1::SendRequest<Body>> {
        let io = TcpStream::connect(self.addr).await.with_context(|| format!("connect {}", self.addr))?;
        io.set_nodelay(true)?;
        let (conn, driver) = http1::handshake(TokioIo::new(io)).await?;
        tokio::task::spawn_local(driver);
        Ok(conn)
    }
}

impl Http2 {
    pub fn new(addr: SocketAddr) -> Self {
        Self { addr, conn: RefCell::default() }
    }

    pub async fn get(&self, host: &str, path: &str, id: Option<HeaderValue>) -> Result<(StatusCode, String)> {
        let reply = self.send(get(format!("http://{host}{path}"), None, id)?).await?;
        read(reply).await
    }

    pub async fn send(&self, req: Request<Body>) -> Result<Response<Incoming>> {
        let kept = self.conn.borrow().clone();
        let mut conn = match kept {
            Some(conn) if !conn.is_closed() => conn,
            _ => self.connect().await?,
        };
        conn.ready().await?;
        Ok(conn.send_request(req).await?)
    }

    async fn connect(&self) -> Result<http2::SendRequest<Body>> {
        let io = TcpStream::connect(self.addr).await.with_context(|| format!("connect {}", self.addr))?;
        io.set_nodelay(true)?;
        let (conn, driver) = http2::handshake(Local, TokioIo::new(io)).await?;
        tokio::task::spawn_local(driver);
        *self.conn.borrow_mut() = Some(conn.clone());
        Ok(conn)
    }
}

fn get(uri: String, host: Option<&str>, id: Option<HeaderValue>) -> Result<Request<Body>> {
    let mut req = Request::builder().uri(uri);
    if let Some(host) = host {
        req = req.header("host", host);
    }
    if let Some(id) = id {
        req = req.header("x-request-id", id);
    }
    Ok(req.body(Body::new(Empty::new()))?)
}

async fn read(reply: Response<Incoming>) -> Result<(StatusCode, String)> {
    let status = reply.status();
    let body = reply.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}
