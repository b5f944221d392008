//! The clock that shells hold; pure code takes the readings as arguments.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use weft_model::{Mono, Wall};

use crate::sys;

/// Cheap to clone. In life: CLOCK_BOOTTIME and the OS's wall time. In tests: tokio's pausable clock, and a wall that is an
/// independent variable, so that steps and suspends can happen.
#[derive(Clone, Debug, Default)]
pub struct Clock(Kind);

#[derive(Clone, Debug, Default)]
enum Kind {
    #[default]
    Real,
    Tokio {
        start: tokio::time::Instant,
        /// Wall time at `start`, in milliseconds.
        wall_at_start: Arc<AtomicI64>,
    },
}

// === impl Clock ===

impl Clock {
    pub fn real() -> Self {
        Self(Kind::Real)
    }

    /// Follows `tokio::time` (which a test may pause and advance) from `Mono::ZERO` and the given wall time on.
    pub fn tokio(wall: Wall) -> Self {
        let start = tokio::time::Instant::now();
        Self(Kind::Tokio { start, wall_at_start: Arc::new(AtomicI64::new(wall.as_millis())) })
    }

    pub fn mono(&self) -> Mono {
        match &self.0 {
            Kind::Real => Mono::ZERO.plus(sys::boot_time()),
            Kind::Tokio { start, .. } => Mono::ZERO.plus(start.elapsed()),
        }
    }

    pub fn wall(&self) -> Wall {
        match &self.0 {
            Kind::Real => os_wall(),
            Kind::Tokio { start, wall_at_start } => {
                Wall::millis(wall_at_start.load(Ordering::Relaxed)).plus(start.elapsed())
            }
        }
    }

    /// A test's clock steps its wall time by `by_millis`; the real one cannot.
    pub fn step_wall(&self, by_millis: i64) {
        if let Kind::Tokio { wall_at_start, .. } = &self.0 {
            wall_at_start.fetch_add(by_millis, Ordering::Relaxed);
        }
    }

    /// Sleeps until `at`, by readings of this clock: a suspend counts.
    pub async fn sleep_until(&self, at: Mono) {
        // tokio's timer stands still through a suspend, so no single sleep is trusted for longer than this.
        const RECHECK: Duration = Duration::from_secs(10);
        loop {
            let left = at.since(self.mono());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(RECHECK)).await;
        }
    }
}

impl Clock {
    /// Sleeps until the wall clock reads `at`, wherever it is stepped meanwhile.
    pub async fn sleep_until_wall(&self, at: Wall) {
        const RECHECK: Duration = Duration::from_secs(10);
        loop {
            let left = at.since(self.wall());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(RECHECK)).await;
        }
    }
}

#[expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "this is where wall time comes from")]
fn os_wall() -> Wall {
    use std::time::SystemTime;
    match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
        Ok(d) => Wall::EPOCH.plus(d),
        Err(before) => Wall::EPOCH.minus(before.duration()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn follows_paused_time_and_steps() {
        let c = Clock::tokio(Wall::secs(1_000));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!((c.mono(), c.wall()), (Mono::secs(5), Wall::secs(1_005)));
        c.step_wall(-3_000);
        assert_eq!((c.mono(), c.wall()), (Mono::secs(5), Wall::secs(1_002)));
        c.sleep_until(Mono::secs(60)).await;
        assert!(c.mono() >= Mono::secs(60));
    }

    #[test]
    fn real_time_is_plausible() {
        assert!(Clock::real().wall() > Wall::secs(1_700_000_000));
    }
}
