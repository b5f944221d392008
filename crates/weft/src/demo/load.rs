//! The shop's customers: a loop that asks for books at a steady rate and counts what came back.

use std::{cell::Cell, net::SocketAddr, rc::Rc, time::Duration};

use anyhow::{Context as _, Result};
use hyper::{StatusCode, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::{
    call::Http1,
    shop::{BOOKS, text},
};

/// What the customers saw. `sent` counts requests whose answer, or failure, is known.
#[derive(Default)]
pub struct Counts {
    sent: Cell<u64>,
    ok: Cell<u64>,
    failed: Cell<u64>,
}

impl Counts {
    fn json(&self) -> String {
        format!(r#"{{"sent":{},"ok":{},"failed":{}}}"#, self.sent.get(), self.ok.get(), self.failed.get()) + "\n"
    }
}

/// Asks `web` `per_second` times a second, for ever, and answers `GET /counts` on `listen`.
pub async fn run(web: SocketAddr, listen: SocketAddr, per_second: u32) -> Result<()> {
    let counts = Rc::new(Counts::default());
    let listener = TcpListener::bind(listen).await.with_context(|| format!("load loop cannot listen on {listen}"))?;
    tokio::task::spawn_local(tell(listener, counts.clone()));
    let shop = Rc::new(Http1::new(web));
    let mut due = tokio::time::interval(Duration::from_secs(1) / per_second.max(1));
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for (isbn, _) in BOOKS.iter().cycle() {
        due.tick().await;
        let (shop, counts) = (shop.clone(), counts.clone());
        tokio::task::spawn_local(async move {
            let answer = shop.get("web", &format!("/book/{isbn}"), None).await;
            let good = matches!(answer, Ok((StatusCode::OK, _)));
            let one = if good { &counts.ok } else { &counts.failed };
            one.set(one.get() + 1);
            counts.sent.set(counts.sent.get() + 1);
        });
    }
    Ok(())
}

async fn tell(listener: TcpListener, counts: Rc<Counts>) {
    while let Ok((io, _)) = listener.accept().await {
        let counts = counts.clone();
        tokio::task::spawn_local(async move {
            let service = service_fn(move |_: hyper::Request<Incoming>| {
                let reply = text(StatusCode::OK, counts.json());
                async move { Ok::<_, std::convert::Infallible>(reply) }
            });
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(io), service).await;
        });
    }
}
