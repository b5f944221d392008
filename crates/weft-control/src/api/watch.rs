//! Watches over HTTP: the event log as lines of JSON, or as server-sent events.

use std::{collections::BTreeMap, convert::Infallible, future::poll_fn, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::header,
    response::Response,
};
use futures_util::stream::unfold;
use serde_json::{Value, json};
use weft_model::Revision;
use weft_resources::{Kind, Resource, ResourceKey};
use weft_store::{Change, ReadError, Watch};

use super::{
    failure::{Answer, Failure},
    present,
    resources::{Params, Target, selected},
};
use crate::{keys, server::Control, state};

/// Without news a bookmark tells the watcher that the stream lives, and from where it may go on.
const BOOKMARK_EVERY: Duration = Duration::from_secs(30);
/// A watch ends by itself, so that watchers spread over servers. Kubernetes draws from 30 to 60 minutes.
const LONGEST: Duration = Duration::from_secs(2700);

/// The stream of a list's changes. Without `resourceVersion` (or with 0) it begins with what is there.
pub fn resources(control: &Arc<Control>, target: Target, params: Params) -> Answer {
    let state = control.replica.state();
    let from = match params.resource_version.as_deref() {
        None | Some("" | "0") => None,
        Some(text) => {
            let n = text.parse().map_err(|_| Failure::bad_request(format!("`{text}` is no resourceVersion")))?;
            Some(Revision::new(state.revision.incarnation, n))
        }
    };
    let mut first = Vec::new();
    for (key, resource) in selected(&state, &target, &params) {
        if from.is_none() {
            first.push(event("ADDED", &present::object(&state, key, resource)));
        }
    }
    let initial = from.is_none() && params.send_initial_events.as_deref() == Some("true");
    if initial {
        first.push(bookmark(target.kind, state.revision.n, true));
    }
    let after = from.unwrap_or(state.revision);
    let watch = control.replica.store.watch(after).map_err(|e| expired(&e))?;
    let ends = params.timeout_seconds.map_or(LONGEST, Duration::from_secs).min(LONGEST);
    let following = Following {
        control: control.clone(),
        target,
        params,
        watch,
        pending: first.into(),
        over: false,
        ends: tokio::time::Instant::now() + ends,
        at: after.n,
    };
    let body = Body::from_stream(unfold(following, |mut f| async {
        let lines = f.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(lines)), f))
    }));
    Ok(Response::builder().header(header::CONTENT_TYPE, "application/json").body(body).unwrap_or_default())
}

struct Following {
    control: Arc<Control>,
    target: Target,
    params: Params,
    watch: Watch,
    pending: std::collections::VecDeque<String>,
    over: bool,
    ends: tokio::time::Instant,
    at: u64,
}

impl Following {
    async fn next(&mut self) -> Option<String> {
        loop {
            if !self.pending.is_empty() {
                return Some(self.pending.drain(..).collect());
            }
            if self.over {
                return None;
            }
            let mut draining = self.control.draining.clone();
            tokio::select! {
                biased; // events first; the end of the stream loses none
                entries = poll_fn(|cx| self.watch.poll_next(cx)) => match entries {
                    Ok(entries) => for entry in entries {
                        self.at = entry.revision.n;
                        // statuses are read off the state, which follows the same log
                        self.control.replica.reached(entry.revision).await?;
                        let events: Vec<_> = entry.changes.iter().filter_map(|c| self.event(c)).collect();
                        self.pending.extend(events);
                    },
                    Err(e) => {
                        self.over = true;
                        self.pending.push_back(event("ERROR", &expired(&e).to_json()));
                    }
                },
                () = draining.draining() => return None,
                () = tokio::time::sleep_until(self.ends) => return None,
                () = tokio::time::sleep(BOOKMARK_EVERY), if self.params.bookmarks() => {
                    self.pending.push_back(bookmark(self.target.kind, self.at, false));
                }
            }
        }
    }

    /// What a change means to this watcher.
    fn event(&self, change: &Change) -> Option<String> {
        if let Some(rest) = change.key.strip_prefix(keys::RESOURCES) {
            let key = keys::parse_resource(rest).filter(|k| self.target.covers(k))?;
            let read = |v: &Option<weft_store::Versioned>| -> Option<Resource> {
                state::read_resource(&change.key, v.as_ref()?).ok().filter(|r| self.params.select(&key, r))
            };
            let (before, after) = (read(&change.before), read(&change.after));
            return match (before, after) {
                (None, Some(r)) => Some(self.shown("ADDED", &key, &r)),
                (Some(_), Some(r)) => Some(self.shown("MODIFIED", &key, &r)),
                (Some(r), None) => Some(self.shown("DELETED", &key, &r)),
                (None, None) => None,
            };
        }
        let key = keys::parse_resource(change.key.strip_prefix(keys::STATUSES)?).filter(|k| self.target.covers(k))?;
        // with the document goes its status: that is told already
        change.after.as_ref()?;
        let state = self.control.replica.state();
        let doc = state.docs.get(&key).filter(|d| self.params.select(&key, &d.resource))?;
        Some(self.shown("MODIFIED", &key, &doc.resource))
    }

    fn shown(&self, what: &str, key: &ResourceKey, resource: &Resource) -> String {
        let state = self.control.replica.state();
        let status = state.statuses.get(key).map(|s| s.value.status.clone());
        event(what, &present::with(resource, self.at, status))
    }
}

fn event(what: &str, object: &Value) -> String {
    format!("{}\n", json!({ "type": what, "object": object }))
}

fn bookmark(kind: Kind, version: u64, initial: bool) -> String {
    let mut metadata = json!({ "resourceVersion": version.to_string() });
    if initial && let Some(map) = metadata.as_object_mut() {
        map.insert("annotations".into(), json!({ "k8s.io/initial-events-end": "true" }));
    }
    let object = json!({ "kind": kind.as_str(), "apiVersion": kind.api_version(), "metadata": metadata });
    event("BOOKMARK", &object)
}

fn expired(e: &ReadError) -> Failure {
    match e {
        ReadError::Compacted { .. } | ReadError::OtherIncarnation { .. } | ReadError::Ahead { .. } => {
            Failure::gone(e.to_string())
        }
        e => Failure::internal(weft_rt::log::chain(e).to_string()),
    }
}

/// How events are framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    Lines,
    ServerSent,
}

/// The stream of a view that is computed from the state: at first all of it, then what differs. `view` gives each item
/// under a key that names it.
pub fn of_view(
    control: &Arc<Control>,
    framing: Framing,
    item: &'static str,
    view: impl Fn(&state::State) -> BTreeMap<String, Value> + Send + 'static,
) -> Response {
    let differing = Differing {
        control: control.clone(),
        framing,
        item,
        view: Box::new(view),
        known: BTreeMap::new(),
        seen: control.replica.subscribe(),
        synced: false,
    };
    let body = Body::from_stream(unfold(differing, |mut d| async {
        let text = d.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(text)), d))
    }));
    let kind = match framing {
        Framing::Lines => "application/json",
        Framing::ServerSent => "text/event-stream",
    };
    let response = Response::builder().header(header::CONTENT_TYPE, kind).header(header::CACHE_CONTROL, "no-store");
    response.body(body).unwrap_or_default()
}

type View = Box<dyn Fn(&state::State) -> BTreeMap<String, Value> + Send>;

struct Differing {
    control: Arc<Control>,
    framing: Framing,
    item: &'static str,
    view: View,
    known: BTreeMap<String, Value>,
    seen: tokio::sync::watch::Receiver<Revision>,
    synced: bool,
}

impl Differing {
    async fn next(&mut self) -> Option<String> {
        loop {
            if self.synced {
                let mut draining = self.control.draining.clone();
                tokio::select! {
                    biased; // a change before the end
                    changed = self.seen.changed() => changed.ok()?,
                    () = draining.draining() => return None,
                    // proxies between us and the reader drop what is silent
                    () = tokio::time::sleep(BOOKMARK_EVERY) => return Some(self.frame("SYNCED", None)),
                }
            }
            self.seen.mark_unchanged();
            let mut out = self.differences();
            if !self.synced {
                self.synced = true;
                out.push_str(&self.frame("SYNCED", None));
            }
            if !out.is_empty() {
                return Some(out);
            }
        }
    }

    fn differences(&mut self) -> String {
        let state = self.control.replica.state();
        let now = (self.view)(&state);
        let mut out = String::new();
        for (key, value) in &now {
            match self.known.get(key) {
                None => out.push_str(&self.frame("ADDED", Some(value))),
                Some(old) if old != value => out.push_str(&self.frame("MODIFIED", Some(value))),
                Some(_) => {}
            }
        }
        for (key, old) in &self.known {
            if !now.contains_key(key) {
                out.push_str(&self.frame("DELETED", Some(old)));
            }
        }
        self.known = now;
        out
    }

    fn frame(&self, what: &str, value: Option<&Value>) -> String {
        let mut json = json!({ "type": what, "revision": self.control.replica.state().revision.to_string() });
        if let (Some(value), Some(map)) = (value, json.as_object_mut()) {
            map.insert(self.item.into(), value.clone());
        }
        match self.framing {
            Framing::Lines => format!("{json}\n"),
            Framing::ServerSent => format!("event: {}\ndata: {json}\n\n", what.to_ascii_lowercase()),
        }
    }
}
