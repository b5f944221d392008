//! Answers what the control plane asks about this proxy. We open the stream, so that nothing has to reach us.

use std::{sync::Arc, time::Duration};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use weft_wire::{
    grpc::{ObserveClient, Status},
    v1::{Answer, ProxyHello, ProxyReport, ServerAsk, proxy_report::Report, server_ask::Ask},
};

use super::connect::Dialer;

/// Knows what the proxy did: its decision ring and counters. The answer's id is filled in here.
pub type Answers = Arc<dyn Fn(&Ask) -> Answer + Send + Sync>;

/// Longest pause between attempts.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Stays reachable for questions, for ever.
pub async fn run(dialer: Dialer, uid: String, answers: Answers) {
    let mut pause = PAUSE.0;
    loop {
        let started = tokio::time::Instant::now();
        let ended = once(&dialer, &uid, &answers).await;
        tracing::debug!(ended = ended.err().map(|s| s.message().to_owned()), "question stream ended");
        pause = if started.elapsed() > PAUSE.1 { PAUSE.0 } else { (pause * 2).min(PAUSE.1) };
        tokio::time::sleep(pause).await;
    }
}

async fn once(dialer: &Dialer, uid: &str, answers: &Answers) -> Result<(), Status> {
    let (send, reports) = mpsc::channel(16);
    let say = async |report| {
        let sent = send.send(ProxyReport { report: Some(report) }).await;
        sent.map_err(|_| Status::unavailable("the stream has ended"))
    };
    say(Report::Hello(ProxyHello { uid: uid.into(), version: env!("CARGO_PKG_VERSION").into() })).await?;
    let mut asks = ObserveClient::new(dialer.channel()?).watch(ReceiverStream::new(reports)).await?.into_inner();
    while let Some(ServerAsk { ask_id, ask }) = asks.message().await? {
        let answer = match &ask {
            Some(ask) => answers(ask),
            None => Answer {
                error: "this proxy does not know the question: it is older than the server".into(),
                ..Answer::default()
            },
        };
        say(Report::Answer(Answer { ask_id, ..answer })).await?;
    }
    Ok(())
}
