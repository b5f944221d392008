//! Two-phase drain: everybody is told, everybody says when it is done, and past a deadline it ends by force.
//!
//! Each connection holds a [`Watch`]; dropping it means "done". The owner calls [`Trigger::drain`], which returns when every
//! watch is gone or the deadline has passed; in the latter case the watches see [`Phase::Forced`].

use std::time::Duration;

use tokio::sync::{mpsc, watch};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Running,
    /// Finish what is in flight, take nothing new.
    Draining,
    /// Out of time: close now.
    Forced,
}

/// Starts the drain. Dropping it forces.
#[derive(Debug)]
pub struct Trigger {
    phase: watch::Sender<Phase>,
    done: mpsc::Receiver<()>,
    /// Kept only to hand out watches.
    seed: Option<mpsc::Sender<()>>,
}

/// Held by whoever has to be waited for.
#[derive(Debug, Clone)]
pub struct Watch {
    phase: watch::Receiver<Phase>,
    _held: mpsc::Sender<()>,
}

/// Sees the phases without being waited for.
#[derive(Debug, Clone)]
pub struct Observer(watch::Receiver<Phase>);

/// A handle that only moves the phase on: what a second signal needs while [`Trigger::drain`] is waiting.
#[derive(Debug, Clone)]
pub struct Hasten(watch::Sender<Phase>);

pub fn new() -> (Trigger, Watch) {
    let (phase, seen) = watch::channel(Phase::Running);
    let (held, done) = mpsc::channel(1);
    (Trigger { phase, done, seed: Some(held.clone()) }, Watch { phase: seen, _held: held })
}

// === impl Trigger ===

impl Trigger {
    pub fn watch(&self) -> Option<Watch> {
        let held = self.seed.clone()?;
        Some(Watch { phase: self.phase.subscribe(), _held: held })
    }

    pub fn observer(&self) -> Observer {
        Observer(self.phase.subscribe())
    }

    pub fn hasten(&self) -> Hasten {
        Hasten(self.phase.clone())
    }

    /// True when everybody ended in time.
    pub async fn drain(mut self, deadline: Duration) -> bool {
        self.seed = None;
        self.phase.send_if_modified(|p| raise(p, Phase::Draining));
        let mut seen = self.phase.subscribe();
        let in_time = tokio::select! {
            biased; // being done beats being out of time
            _ = self.done.recv() => true,
            () = tokio::time::sleep(deadline) => false,
            _ = seen.wait_for(|p| *p == Phase::Forced) => false,
        };
        if !in_time {
            self.phase.send_if_modified(|p| raise(p, Phase::Forced));
            // Closing sockets takes no time; whoever does not look at the phase is aborted by its owner.
            let _ = tokio::time::timeout(FORCED_GRACE, self.done.recv()).await;
        }
        in_time
    }
}

/// What those who were forced get to close their sockets.
const FORCED_GRACE: Duration = Duration::from_millis(250);

impl Drop for Trigger {
    fn drop(&mut self) {
        self.phase.send_if_modified(|p| raise(p, Phase::Forced));
    }
}

fn raise(p: &mut Phase, to: Phase) -> bool {
    let up = *p < to;
    if up {
        *p = to;
    }
    up
}

// === impl Watch ===

impl Watch {
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub fn is_draining(&self) -> bool {
        self.phase() >= Phase::Draining
    }

    /// Resolves when the drain begins (at once if it has).
    pub async fn draining(&mut self) {
        // an error means that the trigger is gone: nothing to serve for
        let _ = self.phase.wait_for(|p| *p >= Phase::Draining).await;
    }

    /// Resolves when time is up.
    pub async fn forced(&mut self) {
        let _ = self.phase.wait_for(|p| *p >= Phase::Forced).await;
    }
}

impl Observer {
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    pub async fn draining(&mut self) {
        let _ = self.0.wait_for(|p| *p >= Phase::Draining).await;
    }

    pub async fn forced(&mut self) {
        let _ = self.0.wait_for(|p| *p >= Phase::Forced).await;
    }
}

impl Hasten {
    pub fn force(&self) {
        self.0.send_if_modified(|p| raise(p, Phase::Forced));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_for_every_watch() {
        let (trigger, watch) = new();
        let mut other = watch.clone();
        let mut tasks = crate::Tasks::new();
        tasks.spawn("conn", async move {
            other.draining().await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        });
        drop(watch);
        assert!(trigger.drain(Duration::from_secs(5)).await);
    }

    #[tokio::test(start_paused = true)]
    async fn forces_after_the_deadline() {
        let (trigger, mut watch) = new();
        let mut tasks = crate::Tasks::new();
        tasks.spawn("conn", async move {
            watch.draining().await;
            assert_eq!(watch.phase(), Phase::Draining);
            watch.forced().await;
        });
        assert!(!trigger.drain(Duration::from_secs(5)).await);
        assert_eq!(tasks.drain(Duration::from_secs(1)).await.finished, ["conn"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_shortens_the_wait() {
        let (trigger, _watch) = new();
        let hasten = trigger.hasten();
        let mut tasks = crate::Tasks::new();
        tasks.spawn("signal", async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            hasten.force();
        });
        let begin = tokio::time::Instant::now();
        assert!(!trigger.drain(Duration::from_secs(500)).await);
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
}
