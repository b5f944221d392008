//! A service under a seeded storm: endpoints slow down, fail, recover, come and go, while balancer, ejector and retry
//! budget decide. What must hold is checked after every step, and the same seed gives the same story.

use std::{hash::Hasher as _, time::Duration};

use weft_sim::seeded::Seeds;

use super::*;
use crate::{
    eject::{Ejector, Feed, Settings},
    fragment::{RetryPolicy, Timeouts},
    retry::{Body, Budget, NeverSent, Next, Outcome, Plan},
};

/// What an endpoint does to whoever comes.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Mood {
    Well { took: u64 },
    RefusesConnections,
    Answers503,
}

struct World {
    now: Mono,
    list: Vec<Endpoint>,
    moods: Vec<Mood>,
    pool: Pool,
    load: LoadView,
    ejector: Ejector,
    budget: Budget,
    /// In flight: when it ends, where.
    flying: Vec<(Mono, usize, u64)>,
    tally: Tally,
}

#[derive(Default, Debug, Clone, PartialEq)]
struct Tally {
    served: u64,
    failed: u64,
    retries: u64,
    answers_retried: u64,
    ejections: u64,
    per_endpoint: Vec<u64>,
}

const ENDPOINTS: usize = 10;

impl World {
    fn new(balance: Balance) -> Self {
        let list = endpoints(&"p".repeat(ENDPOINTS));
        Self {
            now: NOW,
            pool: pool_of(&list, balance),
            list,
            moods: vec![Mood::Well { took: 5 }; ENDPOINTS],
            load: loads(&".".repeat(ENDPOINTS)),
            ejector: Ejector::new(Settings::default(), ENDPOINTS),
            budget: Budget::default(),
            flying: Vec::new(),
            tally: Tally { per_endpoint: vec![0; ENDPOINTS], ..Tally::default() },
        }
    }

    /// Lets time pass and what is due end.
    fn pass(&mut self, millis: u64) {
        self.now = self.now.plus(Duration::from_millis(millis));
        let now = self.now;
        self.flying.sort();
        for (end, at, took) in self.flying.extract_if(.., |(end, ..)| *end <= now) {
            self.load.loads[at].in_flight -= 1;
            self.load.loads[at].ewma.observe(Duration::from_millis(took), end);
        }
    }

    fn feed(&mut self, ix: EndpointIx, feed: Feed) {
        if self.ejector.feed(ix, feed, self.now).is_some() {
            self.tally.ejections += 1;
        }
        self.ejector.check_invariants(self.now);
        for (i, load) in (0..).zip(&mut self.load.loads) {
            load.ejected_until = self.ejector.ejected_until(EndpointIx(i));
        }
    }

    fn request(&mut self, dice: &mut dyn FnMut(u32) -> u32) {
        self.budget.deposit();
        let policy = RetryPolicy { attempts: 2, statuses: vec![503], ..RetryPolicy::default() };
        let mut plan = Plan::new(&policy, Timeouts::default(), self.now);
        let mut tried = Vec::new();
        loop {
            let ask = Ask { now: self.now, avoid: &tried, own: &[], from: None };
            let Ok(picked) = pick(&self.pool, &self.load, &ask, dice) else {
                self.tally.failed += 1;
                return;
            };
            let at = picked.ix.0 as usize;
            assert!(self.list[at].health.is_pickable(), "picked a forbidden endpoint");
            assert!(!tried.contains(&picked.ix) || tried.len() >= self.pool.members().count(), "tried one twice");
            tried.push(picked.ix);
            self.tally.per_endpoint[at] += 1;
            let outcome = match self.moods[at] {
                Mood::Well { took } => {
                    self.feed(picked.ix, Feed::Success);
                    self.load.loads[at].in_flight += 1;
                    self.flying.push((self.now.plus(Duration::from_millis(took)), at, took));
                    Outcome::Answered { status: 200 }
                }
                Mood::RefusesConnections => {
                    self.load.loads[at].connect_failed(self.now);
                    self.feed(picked.ix, Feed::GatewayFailure);
                    Outcome::NeverSent(NeverSent::NoByteWritten)
                }
                Mood::Answers503 => {
                    self.feed(picked.ix, Feed::GatewayFailure);
                    Outcome::Answered { status: 503 }
                }
            };
            match plan.next(outcome, Body::Kept, self.now, &self.budget, dice) {
                Next::Retry { after } => {
                    self.tally.retries += 1;
                    self.tally.answers_retried += u64::from(matches!(outcome, Outcome::Answered { .. }));
                    assert!(plan.tries() <= 3);
                    self.pass(u64::try_from(after.as_millis()).unwrap());
                }
                Next::GiveUp { .. } if outcome == (Outcome::Answered { status: 200 }) => {
                    self.tally.served += 1;
                    return;
                }
                Next::GiveUp { .. } => {
                    self.tally.failed += 1;
                    return;
                }
            }
        }
    }

    fn rebuild(&mut self) {
        self.pool = pool_of(&self.list, self.pool.balance);
    }
}

/// Weighted adversarial steps.
fn storm(balance: Balance, seed: u64, steps: u32) -> (World, u64) {
    let mut world = World::new(balance);
    let mut dice = dice(seed);
    let mut fingerprint = std::hash::DefaultHasher::new();
    let mut requests = 0_u64;
    for step in 0..steps {
        let at = dice(u32::try_from(ENDPOINTS).unwrap()) as usize;
        match dice(100) {
            0 => world.moods[at] = Mood::RefusesConnections,
            1 => world.moods[at] = Mood::Answers503,
            2..=5 => world.moods[at] = Mood::Well { took: u64::from(1 + dice(200)) },
            6 => {
                world.list[at].health =
                    [Health::Passing, Health::Warning, Health::Unknown, Health::Critical, Health::Draining]
                        [dice(5) as usize];
                world.rebuild();
            }
            7..=20 => world.pass(u64::from(dice(50))),
            21 => world.pass(u64::from(dice(20_000))),
            _ => {
                requests += 1;
                world.request(&mut dice);
            }
        }
        // What was answered and tried again stays within what the budget gives: a second's worth at the start, ten a
        // second, and one for five requests
        let seconds = world.now.since(NOW).as_secs_f64();
        let allowed = 10.0 + seconds * 10.0 + requests as f64 / 5.0 + 1.0;
        assert!(world.tally.answers_retried as f64 <= allowed, "seed {seed} step {step}: budget exceeded");
        let in_flight: u32 = world.load.loads.iter().map(|l| l.in_flight).sum();
        assert_eq!(in_flight as usize, world.flying.len(), "seed {seed} step {step}: lost count");
        fingerprint.write_u64(world.tally.served ^ world.tally.failed << 20 ^ world.tally.retries << 40);
    }
    (world, fingerprint.finish())
}

#[test]
fn trf_14_a_storm_never_breaks_what_must_hold() {
    for balance in [Balance::PeakEwma, Balance::LeastRequest, Balance::RoundRobin, Balance::Random] {
        Seeds::from_env_or(8).each(|seed| {
            let (world, _) = storm(balance, seed, 2_000);
            assert!(world.tally.served > 0 && world.tally.ejections > 0, "{balance:?} {seed}: {:?}", world.tally);
        });
    }
}

#[test]
fn trf_14_after_the_storm_all_are_used_again() {
    for balance in [Balance::PeakEwma, Balance::LeastRequest, Balance::RoundRobin, Balance::Random] {
        Seeds::from_env_or(8).each(|seed| {
            let (mut world, _) = storm(balance, seed, 1_000);
            for e in &mut world.list {
                e.health = Health::Passing;
            }
            world.rebuild();
            world.moods.fill(Mood::Well { took: 5 });
            world.pass(600_000);
            world.tally = Tally { per_endpoint: vec![0; ENDPOINTS], ..Tally::default() };
            let mut dice = dice(seed);
            for _ in 0..2_000 {
                world.request(&mut dice);
                world.pass(1);
            }
            let tally = &world.tally;
            assert_eq!((tally.served, tally.failed, tally.ejections), (2_000, 0, 0), "{balance:?} {seed}");
            assert!(tally.per_endpoint.iter().all(|n| *n > 20), "{balance:?} {seed}: {tally:?}");
        });
    }
}

#[test]
fn trf_14_a_slow_endpoint_gets_less_and_a_dead_one_next_to_nothing() {
    let mut world = World::new(Balance::PeakEwma);
    world.moods[0] = Mood::Well { took: 400 };
    world.moods[1] = Mood::RefusesConnections;
    let mut dice = dice(11);
    for _ in 0..5_000 {
        world.request(&mut dice);
        world.pass(1);
    }
    let per = &world.tally.per_endpoint;
    let fair = per[2..].iter().sum::<u64>() / 8;
    assert!(per[0] < fair / 4, "{per:?}");
    assert!(per[1] <= 10, "{per:?}");
    assert_eq!(world.tally.failed, 0, "what was never sent is tried elsewhere");
}

#[test]
fn same_seed_same_story() {
    let tale = |seed| storm(Balance::PeakEwma, seed, 1_500).1;
    assert_eq!(tale(5), tale(5));
    assert_ne!(tale(5), tale(6));
}
