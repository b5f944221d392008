//! Between the results of checks and the catalog: only transitions are committed (features.md REG-05, REG-06).
//!
//! Counters and deadlines live in memory at the server that gets the results. After a start or a stall they begin
//! anew, so a check is never called late too early.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use weft_model::Mono;

use crate::object::{Check, CheckId, Status, Thresholds};

/// The longest stored output of a check.
pub const OUTPUT_MAX: usize = 4096;
/// New output without a transition is committed at most so often.
pub const OUTPUT_EVERY: Duration = Duration::from_secs(300);
/// The least `deregister_after`.
pub const MIN_DEREGISTER_AFTER: Duration = Duration::from_secs(60);

/// What to commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Set { check: CheckId, status: Status, output: Arc<str> },
    Reap { check: CheckId },
}

/// The checks whose results come to this server.
#[derive(Debug, Clone, Default)]
pub struct Board {
    checks: BTreeMap<CheckId, Row>,
}

#[derive(Debug, Clone)]
struct Row {
    def: Arc<Check>,
    damper: Damper,
    /// When results came last (TTL).
    refreshed: Mono,
    output_committed: Mono,
    critical_since: Option<Mono>,
}

/// How many results in a row differed from the status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Damper {
    successes: u32,
    failures: u32,
}

// === impl Damper ===

impl Damper {
    /// The status after one more result.
    pub fn observe(&mut self, thresholds: &Thresholds, status: Status, result: Status) -> Status {
        match result {
            Status::Passing => {
                self.failures = 0;
                self.successes = self.successes.saturating_add(1);
                if self.successes >= thresholds.success_before_passing.max(1) { Status::Passing } else { status }
            }
            Status::Warning => {
                // neither a success nor a failure: it answers
                *self = Self::default();
                Status::Warning
            }
            Status::Critical => {
                self.successes = 0;
                self.failures = self.failures.saturating_add(1);
                let critical = thresholds.failures_before_critical.max(1);
                // 0: as many as before critical, so that nothing is in between
                let warning = match thresholds.failures_before_warning {
                    0 => critical,
                    n => n,
                };
                if self.failures >= critical {
                    Status::Critical
                } else if self.failures >= warning {
                    status.max(Status::Warning)
                } else {
                    status
                }
            }
        }
    }
}

// === impl Board ===

impl Board {
    /// A check was registered, or changed, or came with a restart: deadlines begin now.
    pub fn put(&mut self, now: Mono, def: Arc<Check>) {
        let critical_since = (def.status == Status::Critical).then_some(now);
        match self.checks.get_mut(&def.key()) {
            Some(row) => {
                row.critical_since = row.critical_since.filter(|_| critical_since.is_some()).or(critical_since);
                row.def = def;
            }
            None => {
                let row = Row { damper: Damper::default(), refreshed: now, output_committed: now, critical_since, def };
                self.checks.insert(row.def.key(), row);
            }
        }
    }

    pub fn forget(&mut self, check: &CheckId) {
        self.checks.remove(check);
    }

    pub fn knows(&self, check: &CheckId) -> bool {
        self.checks.contains_key(check)
    }

    /// Everything begins anew at full length: after a stall of our own.
    pub fn restart(&mut self, now: Mono) {
        for row in self.checks.values_mut() {
            row.refreshed = now;
            row.critical_since = row.critical_since.map(|_| now);
        }
    }

    /// One result. `None`: nothing to commit.
    pub fn report(&mut self, now: Mono, check: &CheckId, result: Status, output: &str) -> Option<Change> {
        let row = self.checks.get_mut(check)?;
        row.refreshed = now;
        let status = row.damper.observe(&row.def.thresholds, row.def.status, result);
        let output = cut_output(output);
        let due = *row.def.output != *output && now.since(row.output_committed) >= OUTPUT_EVERY;
        (status != row.def.status || due).then(|| row.change(now, status, output))
    }

    /// Checks that were not refreshed in time, and instances that were critical for too long.
    pub fn tick(&mut self, now: Mono) -> Vec<Change> {
        let mut changes = Vec::new();
        for row in self.checks.values_mut() {
            let late = row.def.ttl.is_some_and(|ttl| now.since(row.refreshed) >= ttl);
            if late && row.def.status != Status::Critical {
                row.damper = Damper::default();
                changes.push(row.change(now, Status::Critical, "not refreshed within its TTL"));
            }
            if let (Some(after), Some(since)) = (row.def.deregister_after, row.critical_since)
                && now.since(since) >= after
            {
                changes.push(Change::Reap { check: row.def.key() });
            }
        }
        changes
    }
}

impl Row {
    /// Takes the change as made: should its commit fail, whoever committed puts back what is stored.
    fn change(&mut self, now: Mono, status: Status, output: &str) -> Change {
        let output: Arc<str> = output.into();
        self.output_committed = now;
        if status == Status::Critical {
            self.critical_since.get_or_insert(now);
        } else {
            self.critical_since = None;
        }
        self.def = Arc::new(Check { status, output: output.clone(), ..Check::clone(&self.def) });
        Change::Set { check: self.def.key(), status, output }
    }
}

/// At most [`OUTPUT_MAX`] bytes, cut between characters.
pub fn cut_output(output: &str) -> &str {
    let mut end = output.len().min(OUTPUT_MAX);
    while !output.is_char_boundary(end) {
        end -= 1;
    }
    output.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{InstanceId, Owner, Unknown};
    use weft_model::Name;

    fn check(thresholds: Thresholds, ttl: Option<u64>, deregister_after: Option<u64>) -> Arc<Check> {
        let n = |s: &str| Name::parse(s).unwrap();
        Arc::new(Check {
            id: n("c"),
            node: n("n"),
            instance: Some(InstanceId { node: n("n"), namespace: n("default"), id: n("web-1") }),
            owner: Owner::Api,
            status: Status::Critical,
            output: "".into(),
            thresholds,
            ttl: ttl.map(Duration::from_secs),
            deregister_after: deregister_after.map(Duration::from_secs),
            unknown: Unknown::new(),
        })
    }

    /// Results as letters: what is the status after each?
    fn damped(thresholds: Thresholds, from: Status, results: &str) -> String {
        let (mut damper, mut status) = (Damper::default(), from);
        let letter = |s| match s {
            Status::Passing => 'p',
            Status::Warning => 'w',
            Status::Critical => 'c',
        };
        results
            .chars()
            .map(|c| {
                let result = [Status::Passing, Status::Warning, Status::Critical].into_iter().find(|s| letter(*s) == c);
                status = damper.observe(&thresholds, status, result.unwrap());
                letter(status)
            })
            .collect()
    }

    #[test]
    fn reg_06_results_in_a_row_change_the_status() {
        let plain = Thresholds::default();
        assert_eq!(damped(plain, Status::Critical, "ppcpw"), "ppcpw");
        let t = Thresholds { success_before_passing: 3, failures_before_critical: 2, ..plain };
        assert_eq!(damped(t, Status::Critical, "ppppcpcc"), "ccpppppc");
        assert_eq!(damped(t, Status::Critical, "ppcppp"), "cccccp", "a failure in between begins anew");
        assert_eq!(damped(t, Status::Passing, "cpcpcpcp"), "pppppppp", "flapping changes nothing");
        let t = Thresholds { failures_before_warning: 2, failures_before_critical: 3, ..plain };
        assert_eq!(damped(t, Status::Passing, "cccp"), "pwcp");
    }

    #[test]
    fn reg_05_a_ttl_check_goes_critical_when_not_refreshed() {
        let mut board = Board::default();
        let def = check(Thresholds::default(), Some(10), None);
        let id = def.key();
        board.put(Mono::secs(0), def);
        let set = |status, output: &str| Change::Set { check: id.clone(), status, output: output.into() };
        assert_eq!(board.report(Mono::secs(1), &id, Status::Passing, "ok"), Some(set(Status::Passing, "ok")));
        assert_eq!(board.report(Mono::secs(8), &id, Status::Passing, "ok"), None);
        assert_eq!(board.tick(Mono::secs(17)), []);
        assert_eq!(board.tick(Mono::secs(18)), [set(Status::Critical, "not refreshed within its TTL")]);
        assert_eq!(board.tick(Mono::secs(19)), [], "said once");
        board.restart(Mono::secs(100));
        assert_eq!(board.report(Mono::secs(101), &id, Status::Passing, "ok"), Some(set(Status::Passing, "ok")));
        board.restart(Mono::secs(200));
        assert_eq!(board.tick(Mono::secs(209)), [], "a stall of ours is not the check's");
    }

    #[test]
    fn output_alone_is_committed_every_five_minutes() {
        let mut board = Board::default();
        let def = check(Thresholds::default(), None, None);
        let id = def.key();
        board.put(Mono::ZERO, def);
        assert!(board.report(Mono::secs(0), &id, Status::Passing, "a").is_some());
        assert!(board.report(Mono::secs(299), &id, Status::Passing, "b").is_none());
        assert!(board.report(Mono::secs(300), &id, Status::Passing, "c").is_some());
        assert!(board.report(Mono::secs(301), &id, Status::Critical, "d").is_some());
        let long = "é".repeat(OUTPUT_MAX);
        assert_eq!(cut_output(&long).len(), OUTPUT_MAX);
        assert_eq!(cut_output(&format!("x{long}")).len(), OUTPUT_MAX - 1);
    }

    #[test]
    fn reg_06_critical_for_too_long_is_reaped() {
        let mut board = Board::default();
        let def = check(Thresholds::default(), None, Some(60));
        let id = def.key();
        board.put(Mono::ZERO, def);
        assert_eq!(board.tick(Mono::secs(59)), []);
        assert!(board.report(Mono::secs(59), &id, Status::Passing, "").is_some());
        assert_eq!(board.tick(Mono::secs(60)), []);
        assert!(board.report(Mono::secs(70), &id, Status::Critical, "").is_some());
        assert_eq!(board.tick(Mono::secs(129)), []);
        assert_eq!(board.tick(Mono::secs(130)), [Change::Reap { check: id }]);
    }
}
