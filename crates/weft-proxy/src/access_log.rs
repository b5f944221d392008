//! The access log: one line per request or connection, in Istio's default text and JSON formats (features.md OBS-05).
//!
//! Lines go through a bounded queue to a thread of their own: whoever reads them slowly, or not at all, never slows the
//! data path. What does not fit is counted and told once there is room again.

use std::{
    fmt::Write as _,
    io::Write,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, SyncSender, TrySendError},
    },
    time::Duration,
};

use weft_model::Wall;
use weft_rt::metrics::Counter;
use weft_snapshot::decision::{Direction, Policy, Route};

use crate::record::Record;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

/// Lines that wait for the writer.
const QUEUE: usize = 8192;

/// How long what is queued at the end may take to be written: a reader that stalls must not keep the process.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Dropping it writes what is queued, and waits for that, but not for ever.
pub struct AccessLog {
    format: Format,
    lines: Option<SyncSender<String>>,
    /// Since the last complaint.
    dropped: Arc<AtomicU64>,
    total: Counter,
    /// Hangs up when everything is written.
    written: Mutex<mpsc::Receiver<()>>,
}

// === impl AccessLog ===

impl AccessLog {
    /// `total` counts the lines that were dropped.
    pub fn start(format: Format, mut out: impl Write + Send + 'static, total: Counter) -> std::io::Result<Self> {
        let (lines, queue) = mpsc::sync_channel::<String>(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let lost = dropped.clone();
        let (writing, written) = mpsc::channel::<()>();
        std::thread::Builder::new().name("weft-access-log".into()).spawn(move || {
            let _writing = writing;
            while let Ok(line) = queue.recv() {
                // a closed pipe ends the log, not the proxy
                if out.write_all(line.as_bytes()).is_err() {
                    return;
                }
                let lost = lost.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    tracing::warn!(lines = lost, "access log: lines dropped, its reader is too slow");
                }
            }
        })?;
        Ok(Self { format, lines: Some(lines), dropped, total, written: Mutex::new(written) })
    }

    pub fn write(&self, at: Wall, record: &Record) {
        let line = match self.format {
            Format::Text => text(at, record),
            Format::Json => json(at, record),
        };
        let Some(lines) = &self.lines else { return };
        if let Err(TrySendError::Full(_)) = lines.try_send(line) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            self.total.add(1);
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.lines = None;
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        // nothing is ever sent: an error says that it is done, or that it took too long
        let _ = written.recv_timeout(LAST_LINES);
    }
}

// === lines ===

/// The fields of both formats, `None` where there is nothing to say.
struct Fields {
    start_time: String,
    method: Option<String>,
    path: Option<String>,
    protocol: Option<String>,
    response_code: u16,
    response_flags: Option<String>,
    response_code_details: Option<String>,
    connection_termination_details: Option<String>,
    upstream_transport_failure_reason: Option<String>,
    bytes_received: u64,
    bytes_sent: u64,
    duration: u128,
    upstream_service_time: Option<u128>,
    x_forwarded_for: Option<String>,
    user_agent: Option<String>,
    request_id: Option<String>,
    authority: Option<String>,
    upstream_host: Option<String>,
    upstream_cluster: Option<String>,
    upstream_local_address: Option<String>,
    downstream_local_address: Option<String>,
    downstream_remote_address: Option<String>,
    requested_server_name: Option<String>,
    route_name: Option<String>,
}

impl Fields {
    /// `at`: when it ended.
    fn of(at: Wall, r: &Record) -> Self {
        let http = r.http.clone().unwrap_or_default();
        let is_http = r.http.is_some();
        let header = |v: Option<http::HeaderValue>| v.map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned());
        let some = |s: String| Some(s).filter(|s| !s.is_empty());
        Self {
            start_time: at.minus(r.took).rfc3339(),
            method: http.method.map(|m| m.to_string()),
            path: some(String::from_utf8_lossy(&http.path).into_owned()),
            protocol: some(http.version.to_owned()),
            response_code: http.status,
            response_flags: r.failure.map(|k| k.flag().to_owned()),
            response_code_details: is_http.then(|| details(r)).flatten(),
            connection_termination_details: if is_http { None } else { r.failure.and_then(|_| details(r)) },
            upstream_transport_failure_reason: r.detail.as_ref().map(ToString::to_string),
            bytes_received: r.rx,
            bytes_sent: r.tx,
            duration: r.took.as_millis(),
            upstream_service_time: r.upstream_took.map(|d| d.as_millis()),
            x_forwarded_for: header(http.forwarded_for),
            user_agent: header(http.user_agent),
            request_id: is_http.then(|| r.request.to_string()),
            authority: some(http.host.to_string()),
            upstream_host: r.upstream_addr.map(|a| a.to_string()),
            upstream_cluster: r.service.as_ref().map(|(key, port)| match r.direction {
                Direction::Outbound => format!("outbound|{port}||{}", key.host()),
                Direction::Inbound => format!("inbound|{port}||"),
            }),
            upstream_local_address: r.upstream_local.map(|a| a.to_string()),
            downstream_local_address: r.downstream.local.map(|a| a.to_string()),
            downstream_remote_address: r.downstream.addr.map(|a| a.to_string()),
            requested_server_name: r.downstream.sni.as_ref().map(ToString::to_string),
            route_name: match &r.route {
                Route::Rule(rule) => Some(rule.to_string()),
                Route::Default => Some("default".into()),
                Route::NotAsked | Route::NotFound => None,
            },
        }
    }
}

/// `via_upstream`, or what this proxy decided, with the rule where one did.
fn details(r: &Record) -> Option<String> {
    let of_policy = match &r.policy {
        Policy::Denied { rule, .. } => rule.as_ref(),
        _ => None,
    };
    let rule = r.rule.as_ref().or(of_policy);
    match (r.failure, rule) {
        (Some(kind), Some(rule)) => Some(format!("{}[{rule}]", kind.label())),
        (Some(kind), None) => Some(kind.label().into()),
        (None, _) => r.http.as_ref().filter(|h| h.status > 0).map(|_| "via_upstream".into()),
    }
}

fn text(at: Wall, r: &Record) -> String {
    let f = Fields::of(at, r);
    let dash = |v: &Option<String>| v.clone().unwrap_or_else(|| "-".into());
    // a quote inside a quoted field would end it
    let quoted = |v: &Option<String>| format!("\"{}\"", dash(v).replace('"', "\\\""));
    let mut line = String::with_capacity(320);
    // writing to a String cannot fail
    let _ = writeln!(
        line,
        "[{}] \"{} {} {}\" {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {} {}",
        f.start_time,
        dash(&f.method),
        dash(&f.path),
        dash(&f.protocol),
        f.response_code,
        dash(&f.response_flags),
        dash(&f.response_code_details),
        dash(&f.connection_termination_details),
        quoted(&f.upstream_transport_failure_reason),
        f.bytes_received,
        f.bytes_sent,
        f.duration,
        f.upstream_service_time.map_or("-".into(), |ms| ms.to_string()),
        quoted(&f.x_forwarded_for),
        quoted(&f.user_agent),
        quoted(&f.request_id),
        quoted(&f.authority),
        quoted(&f.upstream_host),
        dash(&f.upstream_cluster),
        dash(&f.upstream_local_address),
        dash(&f.downstream_local_address),
        dash(&f.downstream_remote_address),
        dash(&f.requested_server_name),
        dash(&f.route_name),
    );
    line
}

fn json(at: Wall, r: &Record) -> String {
    let f = Fields::of(at, r);
    let line = serde_json::json!({
        "start_time": f.start_time,
        "route_name": f.route_name,
        "method": f.method,
        "path": f.path,
        "protocol": f.protocol,
        "response_code": f.response_code,
        "response_flags": f.response_flags.unwrap_or_else(|| "-".into()),
        "response_code_details": f.response_code_details,
        "connection_termination_details": f.connection_termination_details,
        "bytes_received": f.bytes_received,
        "bytes_sent": f.bytes_sent,
        "duration": u64::try_from(f.duration).unwrap_or(u64::MAX),
        "upstream_service_time": f.upstream_service_time.map(|ms| ms.to_string()),
        "x_forwarded_for": f.x_forwarded_for,
        "user_agent": f.user_agent,
        "request_id": f.request_id,
        "authority": f.authority,
        "upstream_host": f.upstream_host,
        "upstream_cluster": f.upstream_cluster,
        "upstream_local_address": f.upstream_local_address,
        "downstream_local_address": f.downstream_local_address,
        "downstream_remote_address": f.downstream_remote_address,
        "requested_server_name": f.requested_server_name,
        "upstream_transport_failure_reason": f.upstream_transport_failure_reason,
    });
    format!("{line}\n")
}

#[cfg(test)]
mod tests {
    use weft_model::{Mono, Revision};
    use weft_rt::metrics::{Metric, Registry};
    use weft_snapshot::{decision::Spoken, failure::FailureKind};

    use super::*;
    use crate::record::{Http, Peer};

    fn record() -> Record {
        let peer = Peer {
            addr: Some("10.0.0.9:41000".parse().unwrap()),
            local: Some("10.0.0.1:9001".parse().unwrap()),
            ..Peer::default()
        };
        let mut r = Record::new(
            "r-1".into(),
            Direction::Outbound,
            Spoken::Http,
            Arc::new(peer),
            Mono::ZERO,
            Revision::new(1, 7),
        );
        r.took = Duration::from_millis(12);
        r.service = Some(("shop/api".parse().unwrap(), 80));
        r.upstream_addr = Some("10.0.0.2:15008".parse().unwrap());
        r.upstream_took = Some(Duration::from_millis(11));
        r.route = Route::Rule(Arc::new("HTTPRoute/shop/split#rule-0".parse().unwrap()));
        (r.rx, r.tx) = (5, 17);
        r.http = Some(Http {
            method: Some(http::Method::POST),
            host: "api".into(),
            path: "/a?b=\"c".into(),
            version: "HTTP/1.1",
            status: 200,
            user_agent: Some(http::HeaderValue::from_static("curl/8 \"x\"")),
            ..Http::default()
        });
        r
    }

    #[test]
    fn obs_05_the_text_line_is_istios() {
        let want = concat!(
            "[1970-01-01T00:00:01.000Z] \"POST /a?b=\"c HTTP/1.1\" 200 - via_upstream - \"-\" 5 17 12 11 \"-\" ",
            "\"curl/8 \\\"x\\\"\" \"r-1\" \"api\" \"10.0.0.2:15008\" outbound|80||api.shop - 10.0.0.1:9001 10.0.0.9:41000 - ",
            "HTTPRoute/shop/split#rule-0\n"
        );
        assert_eq!(text(Wall::millis(1012), &record()), want);
    }

    #[test]
    fn obs_05_a_denial_names_flag_and_rule() {
        let mut r = record();
        r.failure = Some(FailureKind::Denied);
        r.rule = Some(Arc::new("AuthorizationPolicy/shop/deny#rule-1".parse().unwrap()));
        r.http.as_mut().unwrap().status = 403;
        let line: serde_json::Value = serde_json::from_str(&json(Wall::millis(1012), &r)).unwrap();
        assert_eq!(line["response_code"], 403);
        assert_eq!(line["response_flags"], "DENY");
        assert_eq!(line["response_code_details"], "denied[AuthorizationPolicy/shop/deny#rule-1]");
        assert_eq!(line["path"], "/a?b=\"c");
        assert_eq!(line["user_agent"], "curl/8 \"x\"");
        assert_eq!(line.as_object().unwrap().len(), 24);
    }

    #[test]
    fn obs_05_a_reader_that_stalls_costs_lines_not_time() {
        struct Stalled(Arc<Mutex<()>>);
        impl Write for Stalled {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                let _wait = self.0.lock().unwrap();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let gate = Arc::new(Mutex::new(()));
        let total = Registry::new().counter(Metric::AccessLogDropped, &[]);
        let closed = gate.lock().unwrap();
        let log = AccessLog::start(Format::Text, Stalled(gate.clone()), total.clone()).unwrap();
        for _ in 0..QUEUE + 100 {
            log.write(Wall::EPOCH, &record());
        }
        // one line may be with the writer
        assert!((99..=100).contains(&total.get()), "{total:?}");
        drop(closed);
        drop(log);
    }

    #[test]
    fn obs_05_what_is_queued_is_written_at_the_end() {
        #[derive(Clone, Default)]
        struct Kept(Arc<Mutex<Vec<u8>>>);
        impl Write for Kept {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let kept = Kept::default();
        let total = Registry::new().counter(Metric::AccessLogDropped, &[]);
        let log = AccessLog::start(Format::Json, kept.clone(), total).unwrap();
        for _ in 0..1000 {
            log.write(Wall::EPOCH, &record());
        }
        drop(log);
        let lines = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert_eq!(lines.lines().count(), 1000);
    }
}
