//! The registration of our workload: a stream that is its lease.

use std::{collections::BTreeMap, time::Duration};

use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use weft_wire::{
    grpc::{Status, Streaming, WorkloadApiClient},
    v1::{
        AttachReply, AttachRequest, CheckResult, Deregister, Drain, Drained, Register, RenewLease,
        attach_reply::Message as Reply, attach_request::Message,
    },
};

use super::connect::Dialer;

/// A registration that has not been answered within this is made anew.
const ANSWER: Duration = Duration::from_secs(10);

/// What may be asked of a running registration.
pub enum Command {
    /// Nothing new for us, please; answered when the callers know, or at the server's bound.
    Drain(oneshot::Sender<Drained>),
    /// The application turned out to be reachable around its sidecar: register anew, saying so.
    Bypassable,
    /// We are gone. Answered when the server has written it.
    Deregister(oneshot::Sender<()>),
}

/// Where the registration stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Standing {
    #[default]
    Unregistered,
    Registered {
        uid: String,
    },
    /// The server will not have us; trying again changes nothing.
    Refused {
        why: String,
    },
    /// Trying; what is running goes on.
    Away {
        why: String,
    },
}

/// One workload's registration.
pub struct Attachment {
    pub register: Register,
    pub results: mpsc::Receiver<CheckResult>,
    pub commands: mpsc::Receiver<Command>,
    pub standing: watch::Sender<Standing>,
}

/// Shortest and longest pause between attempts.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// What a lease is renewed at, when the server names none.
const DEFAULT_LEASE: Duration = Duration::from_secs(10);

impl Attachment {
    /// Registers, and registers anew after every loss, until deregistered or refused.
    pub async fn run(mut self, dialer: Dialer) {
        let mut latest = BTreeMap::new();
        let mut pause = PAUSE.0;
        loop {
            match self.once(&dialer, &mut latest).await {
                Ok(End::Deregistered) => return,
                Ok(End::Refused(why)) => {
                    tracing::error!(why, "registration refused");
                    self.standing.send_replace(Standing::Refused { why });
                    return;
                }
                Ok(End::Again) => continue,
                Ok(End::Lost(why)) => {
                    tracing::warn!(why, "registration lost: registering anew");
                    self.standing.send_replace(Standing::Away { why });
                    pause = PAUSE.0;
                }
                Err(status) => {
                    let why = status.message().to_owned();
                    if !matches!(&*self.standing.borrow(), Standing::Away { .. }) {
                        tracing::warn!(why, "registration: the control plane does not answer");
                    }
                    self.standing.send_replace(Standing::Away { why });
                }
            }
            if self.pause(pause, &mut latest).await.is_none() {
                return;
            }
            pause = (pause * 2).min(PAUSE.1);
        }
    }

    /// One stream, from registration to its end.
    async fn once(&mut self, dialer: &Dialer, latest: &mut BTreeMap<String, CheckResult>) -> Result<End, Status> {
        let (send, requests) = mpsc::channel(64);
        let mut stream = Sender { seq: 0, send };
        stream.say(Message::Register(self.register.clone())).await?;
        let mut client = WorkloadApiClient::new(dialer.channel()?);
        let opened = tokio::time::timeout(ANSWER, async {
            let mut replies: Streaming<AttachReply> = client.attach(ReceiverStream::new(requests)).await?.into_inner();
            let first = replies.message().await?;
            Ok::<_, Status>((replies, first))
        });
        let opened = opened.await.unwrap_or_else(|_| Err(Status::deadline_exceeded("the control plane took too long")));
        let (mut replies, first) = opened?;
        let lease = match first.and_then(|r| r.message) {
            Some(Reply::Registered(r)) => {
                tracing::info!(uid = r.uid, identity = r.identity, "registered");
                self.standing.send_replace(Standing::Registered { uid: r.uid });
                Some(r.lease_ms).filter(|ms| *ms > 0).map_or(DEFAULT_LEASE, Duration::from_millis)
            }
            Some(Reply::Refused(r)) => return Ok(End::Refused(r.reason)),
            Some(Reply::Lost(l)) => return Ok(End::Lost(l.reason)),
            _ => return Ok(End::Lost("the server closed the stream".into())),
        };
        for result in latest.values() {
            stream.say(Message::Check(result.clone())).await?;
        }
        self.hold(lease, &mut stream, &mut replies, latest).await
    }

    /// Keeps the lease while telling the server what happens.
    async fn hold(
        &mut self,
        lease: Duration,
        stream: &mut Sender,
        replies: &mut Streaming<AttachReply>,
        latest: &mut BTreeMap<String, CheckResult>,
    ) -> Result<End, Status> {
        let mut renew = tokio::time::interval(lease / 3);
        renew.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut draining = None;
        let mut leaving: Option<(u64, oneshot::Sender<()>)> = None;
        loop {
            tokio::select! {
                biased; // what the server says may make the rest moot; commands before routine
                reply = replies.message() => match reply?.and_then(|r| r.message) {
                    Some(Reply::Drained(d)) => {
                        if let Some(asked) = draining.take() {
                            let _ = oneshot::Sender::send(asked, d);
                        }
                    }
                    Some(Reply::Ack(ack)) => if let Some((seq, done)) = leaving.take() {
                        if ack.seq >= seq {
                            let _ = done.send(());
                            return Ok(End::Deregistered);
                        }
                        leaving = Some((seq, done));
                    },
                    Some(Reply::Lost(l)) => return Ok(End::Lost(l.reason)),
                    Some(Reply::Refused(r)) => tracing::warn!(why = r.reason, "refused by the control plane"),
                    Some(Reply::Registered(_)) => {}
                    None if leaving.is_some() => return Ok(End::Deregistered),
                    None => return Ok(End::Lost("the server closed the stream".into())),
                },
                command = self.commands.recv() => match command {
                    Some(Command::Drain(asked)) => {
                        draining = Some(asked);
                        stream.say(Message::Drain(Drain {})).await?;
                    }
                    Some(Command::Bypassable) => {
                        self.register.bypassable = true;
                        return Ok(End::Again);
                    }
                    Some(Command::Deregister(done)) => {
                        leaving = Some((stream.say(Message::Deregister(Deregister {})).await?, done));
                    }
                    // nobody commands any more: the process is ending
                    None => return Ok(End::Deregistered),
                },
                Some(result) = self.results.recv() => {
                    let before = latest.insert(result.check_id.clone(), result.clone());
                    // should the stream have ended, the next one begins with it
                    if before.is_none_or(|r| r.status != result.status || r.output != result.output) {
                        stream.say(Message::Check(result)).await?;
                    }
                }
                _ = renew.tick() => {
                    stream.say(Message::Renew(RenewLease {})).await?;
                }
            }
        }
    }

    /// Waits, still answering commands: a drain without a server is done at once. `None`: it is over.
    async fn pause(&mut self, pause: Duration, latest: &mut BTreeMap<String, CheckResult>) -> Option<()> {
        let over = tokio::time::sleep(pause);
        tokio::pin!(over);
        loop {
            tokio::select! {
                biased; // commands first: somebody waits for the answer
                command = self.commands.recv() => match command? {
                    Command::Drain(asked) => drop(asked.send(Drained::default())),
                    Command::Bypassable => self.register.bypassable = true,
                    Command::Deregister(done) => {
                        let _ = done.send(());
                        return None;
                    }
                },
                Some(result) = self.results.recv() => drop(latest.insert(result.check_id.clone(), result)),
                () = &mut over => return Some(()),
            }
        }
    }
}

enum End {
    Deregistered,
    Refused(String),
    Lost(String),
    /// What we register has changed.
    Again,
}

/// Numbers what we say.
struct Sender {
    seq: u64,
    send: mpsc::Sender<AttachRequest>,
}

impl Sender {
    async fn say(&mut self, message: Message) -> Result<u64, Status> {
        self.seq += 1;
        let request = AttachRequest { seq: self.seq, message: Some(message) };
        self.send.send(request).await.map_err(|_| Status::unavailable("the stream has ended"))?;
        Ok(self.seq)
    }
}
