//! Tasks with an owner and an end.

use std::{future::Future, time::Duration};

use tokio::task::{AbortHandle, JoinSet};

/// The tasks of one owner. Dropping it aborts them all.
#[derive(Default)]
pub struct Tasks {
    set: JoinSet<&'static str>,
    names: Vec<(tokio::task::Id, &'static str)>,
}

/// How the tasks of an owner ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ended {
    pub finished: Vec<&'static str>,
    /// Still running at the deadline.
    pub aborted: Vec<&'static str>,
    pub panicked: Vec<&'static str>,
}

/// One task of the current worker thread; dropping it aborts the task.
#[must_use = "dropping it aborts the task"]
#[derive(Debug)]
pub struct Task(Option<AbortHandle>);

// === impl Tasks ===

impl Tasks {
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts `future` on the current runtime.
    pub fn spawn(&mut self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        let h = self.set.spawn(async move {
            future.await;
            name
        });
        self.names.push((h.id(), name));
    }

    /// Starts `future` on the current `LocalSet`.
    pub fn spawn_local(&mut self, name: &'static str, future: impl Future<Output = ()> + 'static) {
        let h = self.set.spawn_local(async move {
            future.await;
            name
        });
        self.names.push((h.id(), name));
    }

    pub fn len(&self) -> usize {
        self.set.len()
    }

    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// Waits for the next task to end; `None` when there are none. A panic is told and counts as an end.
    pub async fn next_ended(&mut self) -> Option<&'static str> {
        let ended = self.set.join_next_with_id().await?;
        let mut sink = Ended::default();
        Some(self.note(ended, &mut sink))
    }

    /// Waits until every task ended, at most for `deadline`; what runs then is aborted. The owner signals its tasks first.
    pub async fn drain(mut self, deadline: Duration) -> Ended {
        let mut out = Ended::default();
        let all = async {
            while let Some(ended) = self.set.join_next_with_id().await {
                Self::note_in(&mut self.names, ended, &mut out);
            }
        };
        if tokio::time::timeout(deadline, all).await.is_err() {
            self.set.abort_all();
            while let Some(ended) = self.set.join_next_with_id().await {
                self.note(ended, &mut out);
            }
        }
        out
    }

    fn note(&mut self, ended: Joined, out: &mut Ended) -> &'static str {
        Self::note_in(&mut self.names, ended, out)
    }

    fn note_in(names: &mut Vec<(tokio::task::Id, &'static str)>, ended: Joined, out: &mut Ended) -> &'static str {
        let (id, to) = match ended {
            Ok((id, _)) => (id, &mut out.finished),
            Err(e) if e.is_panic() => (e.id(), &mut out.panicked),
            Err(e) => (e.id(), &mut out.aborted),
        };
        let at = names.iter().position(|(i, _)| *i == id);
        let name = at.map_or("unnamed", |at| names.swap_remove(at).1);
        to.push(name);
        if out.panicked.last() == Some(&name) {
            tracing::error!(task = name, "task panicked");
        }
        name
    }
}

type Joined = Result<(tokio::task::Id, &'static str), tokio::task::JoinError>;

// === impl Task ===

impl Task {
    /// Lets it run to its own end: for tasks that hold a drain token, whose end somebody therefore waits for.
    pub fn detach(mut self) {
        self.0 = None;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// Starts `future` on the current worker's `LocalSet`. It is boxed first: the runtime moves what it is given four times over a
/// task's life, which for a request's future of some KiB is most of what a task costs.
pub fn spawn_local(future: impl Future<Output = ()> + 'static) -> Task {
    Task(Some(tokio::task::spawn_local(Box::pin(future)).abort_handle()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn drain_waits_then_aborts_and_names_each() {
        let mut t = Tasks::new();
        t.spawn("quick", async {});
        t.spawn("slow", tokio::time::sleep(Duration::from_secs(5)));
        t.spawn("stuck", std::future::pending());
        let ended = t.drain(Duration::from_secs(10)).await;
        assert_eq!(ended.finished, ["quick", "slow"]);
        assert_eq!(ended.aborted, ["stuck"]);
    }

    #[tokio::test]
    async fn a_panic_is_told_by_name() {
        let mut t = Tasks::new();
        t.spawn("bad", async { panic!("on purpose") });
        assert_eq!(t.drain(Duration::from_secs(10)).await.panicked, ["bad"]);
    }

    #[tokio::test]
    async fn a_detached_task_runs_on_and_leaves_nothing_behind() {
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let held = std::rc::Rc::new(());
                let (tx, rx) = tokio::sync::oneshot::channel();
                let inside = held.clone();
                spawn_local(async move {
                    let _inside = inside;
                    let _ = tx.send(());
                })
                .detach();
                assert!(rx.await.is_ok());
                tokio::task::yield_now().await;
                assert_eq!(std::rc::Rc::strong_count(&held), 1);
            })
            .await;
    }

    #[tokio::test]
    async fn dropping_a_task_aborts_it() {
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                let (tx, rx) = tokio::sync::oneshot::channel::<()>();
                let task = spawn_local(async move {
                    let _held = tx;
                    std::future::pending::<()>().await;
                });
                tokio::task::yield_now().await;
                drop(task);
                assert!(rx.await.is_err(), "the sender went with the task");
            })
            .await;
    }
}
