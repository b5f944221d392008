//! Asking the proxies: `weft why`, recent decisions, edge counters. They open the streams.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::stream::unfold;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use weft_model::SpiffeId;
use weft_wire::{
    grpc::{Observe, Request, Response, Status, Streaming, async_trait},
    v1::{Answer, EdgeStats, ProxyReport, ServerAsk, proxy_report::Report, server_ask::Ask},
};

use super::peer::Peer;
use crate::{server::Control, sessions::is_itself, state::State};

/// Questions that wait for a proxy that is slow to read: beyond it the proxy counts as silent.
const WAITING: usize = 16;

#[derive(Default)]
pub struct Observers {
    inner: Mutex<Inner>,
    next: AtomicU64,
}

#[derive(Default)]
struct Inner {
    streams: BTreeMap<u64, Observer>,
    pending: BTreeMap<u64, mpsc::UnboundedSender<(u64, Answer)>>,
}

struct Observer {
    uid: String,
    principal: SpiffeId,
    asks: mpsc::Sender<ServerAsk>,
    stats: Option<EdgeStats>,
}

/// What came back of a question.
#[derive(Debug, Default)]
pub struct Answers {
    pub asked: usize,
    /// By the proxy's uid.
    pub answers: Vec<(String, Answer)>,
    pub silent: Vec<String>,
}

impl Observers {
    /// Asks every proxy that is connected and is who it says, and waits for all, at most so long.
    pub async fn ask(&self, state: &State, ask: Ask, timeout: Duration) -> Answers {
        let ask_id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let (tell, mut told) = mpsc::unbounded_channel();
        let mut waiting = BTreeMap::new();
        {
            let mut inner = self.lock();
            for (id, observer) in &inner.streams {
                if !observer.is_itself(state) {
                    continue;
                }
                let _ = observer.asks.try_send(ServerAsk { ask_id, ask: Some(ask.clone()) });
                waiting.insert(*id, observer.uid.clone());
            }
            inner.pending.insert(ask_id, tell);
        }
        let mut out = Answers { asked: waiting.len(), ..Answers::default() };
        let _ = tokio::time::timeout(timeout, async {
            while !waiting.is_empty() {
                let Some((from, answer)) = told.recv().await else { return };
                if let Some(uid) = waiting.remove(&from) {
                    out.answers.push((uid, answer));
                }
            }
        })
        .await;
        self.lock().pending.remove(&ask_id);
        out.answers.sort_by(|a, b| a.0.cmp(&b.0));
        out.silent = waiting.into_values().collect();
        out.silent.sort();
        out
    }

    /// The counters that proxies sent unasked.
    pub fn stats(&self, state: &State) -> Vec<(String, EdgeStats)> {
        let inner = self.lock();
        let known = inner.streams.values().filter(|o| o.is_itself(state));
        known.filter_map(|o| Some((o.uid.clone(), o.stats.clone()?))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer {
    fn is_itself(&self, state: &State) -> bool {
        is_itself(&state.world, &self.uid, &self.principal)
    }
}

pub struct Observation(pub Arc<Control>);

struct Watching {
    control: Arc<Control>,
    principal: SpiffeId,
    reports: Streaming<ProxyReport>,
    asks: mpsc::Receiver<ServerAsk>,
    /// Until the hello.
    sender: Option<mpsc::Sender<ServerAsk>>,
    id: u64,
}

#[async_trait]
impl Observe for Observation {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<ServerAsk, Status>> + Send + 'static>>;

    async fn watch(&self, request: Request<Streaming<ProxyReport>>) -> Result<Response<Self::WatchStream>, Status> {
        let principal = Peer::of(&request)?.identity(self.0.replica.clock.wall())?;
        let (sender, asks) = mpsc::channel(WAITING);
        let id = self.0.observers.next.fetch_add(1, Ordering::Relaxed);
        let control = self.0.clone();
        let watching = Watching { control, principal, reports: request.into_inner(), asks, sender: Some(sender), id };
        Ok(Response::new(Box::pin(unfold(watching, |mut w| async {
            let next = w.next().await?;
            Some((Ok(next), w))
        }))))
    }
}

impl Watching {
    async fn next(&mut self) -> Option<ServerAsk> {
        loop {
            let mut draining = self.control.draining.clone();
            tokio::select! {
                biased; // answers before new questions
                report = self.reports.message() => self.take(report.ok()??.report?),
                Some(ask) = self.asks.recv() => return Some(ask),
                () = draining.draining() => return None,
            }
        }
    }

    fn take(&mut self, report: Report) {
        let mut inner = self.control.observers.lock();
        match report {
            Report::Hello(hello) => {
                if let Some(asks) = self.sender.take() {
                    let principal = self.principal.clone();
                    inner.streams.insert(self.id, Observer { uid: hello.uid, principal, asks, stats: None });
                }
            }
            Report::Answer(answer) => {
                if let Some(tell) = inner.pending.get(&answer.ask_id) {
                    // whoever asked may have stopped waiting
                    let _ = tell.send((self.id, answer));
                }
            }
            Report::Stats(stats) => {
                if let Some(observer) = inner.streams.get_mut(&self.id) {
                    observer.stats = Some(stats);
                }
            }
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.control.observers.lock().streams.remove(&self.id);
    }
}
