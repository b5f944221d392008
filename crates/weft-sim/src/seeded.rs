//! The seeded loop: a [`World`] of state machines is driven by weighted, adversarial actions in virtual time, its
//! invariants checked after every step; then the faults end, it must heal, and the same seed must leave the same trace.
//!
//! ```ignore
//! run_all::<MyWorld>(&Seeds::from_env(), 400);
//! replays_alike::<MyWorld>(7, 400);
//! ```
//!
//! `WEFT_SIM_SEEDS` chooses the seeds of every simulation: `200` the first 200, `8..200` those, `=15` the one that a
//! failure named. Simulations that are no `World` ask [`Seeds::each`]. `cargo xtask sim` sets it.

use std::{
    collections::VecDeque,
    fmt::{self, Debug, Write as _},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::Duration,
};

use weft_model::Mono;

/// How many seeds an ordinary test run takes.
const DEFAULT_SEEDS: u64 = 64;
/// How many of the last actions a failure tells.
const TOLD: usize = 24;
/// A world that has not come to rest after so many steps of healing never will.
const HEALING: usize = 20_000;

/// What is simulated.
pub trait World: Sized {
    type Action: Clone + Debug;

    fn new(sim: &mut Sim) -> Self;

    /// What may happen next and how often relative to the rest; 0 never. Not empty.
    fn actions(&self) -> Vec<(u32, Self::Action)>;

    fn act(&mut self, action: Self::Action, sim: &mut Sim);

    /// After every step. The text names what is broken.
    fn check_invariants(&self) -> Result<(), String>;

    /// One step without faults towards rest; `false` when there is nothing left to do. [`Sim::buggify`] is `false` now.
    fn heal(&mut self, sim: &mut Sim) -> bool;

    /// What must hold at rest.
    fn check_healed(&mut self, sim: &mut Sim) -> Result<(), String>;
}

/// Chance, time and the trace of one run.
pub struct Sim {
    dice: Dice,
    now: Mono,
    faults: bool,
    trace: Fingerprint,
}

/// SplitMix64: the same seed, the same throws, everywhere.
#[derive(Debug, Clone)]
pub struct Dice(u64);

/// FNV-1a over everything noted: equal runs have equal fingerprints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(u64);

/// Which seeds to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seeds {
    first: u64,
    count: u64,
}

/// A run that broke.
#[derive(Debug, Clone)]
pub struct Failure {
    pub seed: u64,
    pub step: usize,
    pub why: String,
    /// The last actions, oldest first.
    pub last: Vec<String>,
}

/// One run: `steps` adversarial steps, then healing. The fingerprint covers every action and everything noted.
pub fn run<W: World>(seed: u64, steps: usize) -> Result<Fingerprint, Failure> {
    let mut last = VecDeque::new();
    let mut step = 0;
    // an assertion inside the world must also be told with its seed
    match catch_unwind(AssertUnwindSafe(|| drive::<W>(seed, steps, &mut step, &mut last))) {
        Ok(Ok(fingerprint)) => Ok(fingerprint),
        Ok(Err(why)) => Err(Failure { seed, step, why, last: last.into() }),
        Err(payload) => {
            let text = payload.downcast_ref::<String>().cloned();
            let text = text.or_else(|| payload.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            let why = text.unwrap_or_else(|| "it panicked".to_owned());
            Err(Failure { seed, step, why, last: last.into() })
        }
    }
}

/// Every seed; the first failure panics with all that is needed to see it again.
#[expect(clippy::panic, reason = "a test fails by panicking")]
pub fn run_all<W: World>(seeds: &Seeds, steps: usize) {
    for seed in seeds.iter() {
        if let Err(failure) = run::<W>(seed, steps) {
            panic!("{failure}");
        }
    }
}

/// The same seed leaves the same trace, and another seed another one (or the fingerprint sees nothing).
#[expect(clippy::panic, reason = "a test fails by panicking")]
pub fn replays_alike<W: World>(seed: u64, steps: usize) {
    let once = |seed| run::<W>(seed, steps).unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!(
        once(seed),
        once(seed),
        "seed {seed} ran differently the second time: something reads a clock or a hash"
    );
    assert_ne!(once(seed), once(seed.wrapping_add(1)), "another seed left the same trace");
}

fn drive<W: World>(
    seed: u64,
    steps: usize,
    step: &mut usize,
    last: &mut VecDeque<String>,
) -> Result<Fingerprint, String> {
    let mut sim = Sim::new(seed);
    let mut world = W::new(&mut sim);
    world.check_invariants()?;
    while *step < steps {
        *step += 1;
        let action = sim.weighted(&world.actions()).ok_or("no action is possible")?;
        let text = format!("{:?}: {action:?}", sim.now);
        sim.note(&text);
        last.push_back(text);
        if last.len() > TOLD {
            last.pop_front();
        }
        world.act(action, &mut sim);
        world.check_invariants()?;
    }
    sim.faults = false;
    last.push_back(format!("{:?}: heal", sim.now));
    for _ in 0..HEALING {
        *step += 1;
        let more = world.heal(&mut sim);
        world.check_invariants()?;
        if !more {
            world.check_healed(&mut sim)?;
            return Ok(sim.trace);
        }
    }
    Err(format!("it did not come to rest within {HEALING} steps"))
}

// === impl Sim ===

impl Sim {
    pub fn new(seed: u64) -> Self {
        Self { dice: Dice(seed), now: Mono::ZERO, faults: true, trace: Fingerprint::EMPTY }
    }

    pub fn now(&self) -> Mono {
        self.now
    }

    pub fn dice(&mut self) -> &mut Dice {
        &mut self.dice
    }

    /// Time passes, up to `most`.
    pub fn elapse(&mut self, most: Duration) {
        let nanos = u64::try_from(most.as_nanos()).unwrap_or(u64::MAX);
        self.now = self.now.plus(Duration::from_nanos(self.dice.below(nanos.saturating_add(1))));
    }

    /// Time passes to `at`, when that is ahead.
    pub fn advance_to(&mut self, at: Mono) {
        self.now = self.now.max(at);
    }

    /// Shall something go wrong here? Never while healing.
    pub fn buggify(&mut self, per_mille: u32) -> bool {
        self.faults && self.dice.chance(per_mille)
    }

    pub fn is_healing(&self) -> bool {
        !self.faults
    }

    /// One of them, by weight.
    pub fn weighted<A: Clone>(&mut self, choices: &[(u32, A)]) -> Option<A> {
        let total: u64 = choices.iter().map(|(w, _)| u64::from(*w)).sum();
        let mut at = self.dice.below(total);
        for (weight, choice) in choices {
            match at.checked_sub(u64::from(*weight)) {
                None => return Some(choice.clone()),
                Some(rest) => at = rest,
            }
        }
        None
    }

    /// Into the fingerprint: whatever must be the same when the seed is.
    pub fn note(&mut self, what: &impl Debug) {
        let _ = write!(self.trace, "{what:?};");
    }
}

// === impl Dice ===

impl Dice {
    pub fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in `0..n`; 0 for `n == 0`.
    pub fn below(&mut self, n: u64) -> u64 {
        let wide = u128::from(self.next_u64()) * u128::from(n);
        u64::try_from(wide >> 64).unwrap_or(0)
    }

    pub fn chance(&mut self, per_mille: u32) -> bool {
        self.below(1000) < u64::from(per_mille)
    }

    /// One of them; `None` when there is none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        let n = u64::try_from(items.len()).unwrap_or(u64::MAX);
        items.get(usize::try_from(self.below(n)).unwrap_or(0))
    }

    /// In another order (Fisher–Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = self.below(u64::try_from(i).unwrap_or(0).saturating_add(1));
            items.swap(i, usize::try_from(j).unwrap_or(0));
        }
    }
}

// === impl Fingerprint ===

impl Fingerprint {
    const EMPTY: Self = Self(0xcbf2_9ce4_8422_2325);
}

impl fmt::Write for Fingerprint {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for b in s.bytes() {
            self.0 = (self.0 ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }
}

// === impl Seeds ===

impl Seeds {
    /// As `WEFT_SIM_SEEDS` says, see [`Seeds::parse`]; 64 without it.
    pub fn from_env() -> Self {
        Self::from_env_or(DEFAULT_SEEDS)
    }

    /// The same for a simulation whose runs are long: `few` unless the variable says otherwise.
    #[expect(clippy::disallowed_methods, reason = "the one knob of every simulation, read in test binaries only")]
    #[expect(clippy::panic, reason = "a test fails by panicking, and other seeds than those asked for prove nothing")]
    pub fn from_env_or(few: u64) -> Self {
        let Ok(text) = std::env::var("WEFT_SIM_SEEDS") else { return Self::first(few) };
        Self::parse(&text).unwrap_or_else(|| panic!("WEFT_SIM_SEEDS is {text:?}; write `200`, `8..200` or `=15`"))
    }

    pub fn first(count: u64) -> Self {
        Self { first: 0, count }
    }

    /// `"2000"`: so many. `"8..200"`: from 8 to 199. `"=7"`: seed 7 alone, as a failure prints it.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(one) = text.strip_prefix('=') {
            return Some(Self { first: one.parse().ok()?, count: 1 });
        }
        if let Some((first, end)) = text.split_once("..") {
            let (first, end): (u64, u64) = (first.parse().ok()?, end.parse().ok()?);
            return Some(Self { first, count: end.checked_sub(first)? });
        }
        text.parse().ok().map(Self::first)
    }

    /// For what is no [`World`] but has seeds: the one that panics is told.
    pub fn each(&self, mut run: impl FnMut(u64)) {
        for seed in self.iter() {
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| run(seed))) {
                eprintln!("seed {seed} broke; run it again with WEFT_SIM_SEEDS=={seed}");
                resume_unwind(payload);
            }
        }
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn iter(&self) -> impl Iterator<Item = u64> + use<> {
        let first = self.first;
        (0..self.count).map(move |i| first.wrapping_add(i))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, step, why, last } = self;
        writeln!(f, "seed {seed} broke at step {step}: {why}")?;
        writeln!(f, "run it again with WEFT_SIM_SEEDS=={seed}; what happened before, oldest first:")?;
        last.iter().try_for_each(|action| writeln!(f, "  {action}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A counter that must stay below 100; `BUG` forgets to wrap once in a while.
    struct Counter<const BUG: bool> {
        n: u32,
    }

    #[derive(Clone, Debug)]
    enum Action {
        Add(u32),
        Wait,
    }

    impl<const BUG: bool> World for Counter<BUG> {
        type Action = Action;

        fn new(_: &mut Sim) -> Self {
            Self { n: 0 }
        }

        fn actions(&self) -> Vec<(u32, Action)> {
            vec![(3, Action::Add(7)), (1, Action::Wait), (0, Action::Add(1000))]
        }

        fn act(&mut self, action: Action, sim: &mut Sim) {
            match action {
                Action::Add(k) => {
                    self.n += k;
                    if !(BUG && sim.buggify(100)) {
                        self.n %= 100;
                    }
                }
                Action::Wait => sim.elapse(Duration::from_secs(1)),
            }
            sim.note(&self.n);
        }

        fn check_invariants(&self) -> Result<(), String> {
            if self.n < 100 { Ok(()) } else { Err(format!("the counter is {}", self.n)) }
        }

        fn heal(&mut self, _: &mut Sim) -> bool {
            self.n = self.n.saturating_sub(1);
            self.n > 0
        }

        fn check_healed(&mut self, sim: &mut Sim) -> Result<(), String> {
            assert!(!sim.buggify(1000), "no faults while healing");
            Ok(())
        }
    }

    #[test]
    fn a_sound_world_passes_and_replays() {
        run_all::<Counter<false>>(&Seeds::from_env(), 200);
        replays_alike::<Counter<false>>(7, 200);
    }

    #[test]
    fn a_bug_is_found_and_told_with_its_seed() {
        let failure = Seeds::first(64).iter().find_map(|seed| run::<Counter<true>>(seed, 400).err()).unwrap();
        assert!(failure.why.starts_with("the counter is 10"), "{failure}");
        assert!(failure.to_string().contains(&format!("WEFT_SIM_SEEDS=={}", failure.seed)));
        let again = run::<Counter<true>>(failure.seed, 400).unwrap_err();
        assert_eq!((again.step, again.last), (failure.step, failure.last));
    }

    #[test]
    fn seeds_are_read() {
        let all = |text| Seeds::parse(text).map(|s| s.iter().collect::<Vec<_>>());
        assert_eq!(all("3"), Some(vec![0, 1, 2]));
        assert_eq!(all("=9"), Some(vec![9]));
        assert_eq!(all("8..11"), Some(vec![8, 9, 10]));
        for wrong in ["nonsense", "", "=", "=x", "8..", "..8", "9..8", "-1"] {
            assert_eq!(all(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn each_seed_is_run_until_one_breaks() {
        let mut seen = Vec::new();
        let run = AssertUnwindSafe(|| {
            Seeds::first(5).each(|seed| {
                seen.push(seed);
                assert!(seed < 2, "it broke");
            });
        });
        let payload = catch_unwind(run).unwrap_err();
        assert_eq!(payload.downcast_ref::<&str>(), Some(&"it broke"));
        assert_eq!(seen, [0, 1, 2]);
    }

    #[test]
    fn dice_reach_everything() {
        let mut dice = Dice::seeded(1);
        let mut seen = [false; 5];
        for _ in 0..100 {
            seen[usize::try_from(dice.below(5)).unwrap()] = true;
        }
        assert_eq!(seen, [true; 5]);
        let mut items = [1, 2, 3, 4, 5, 6, 7, 8];
        dice.shuffle(&mut items);
        assert_ne!(items, [1, 2, 3, 4, 5, 6, 7, 8]);
        items.sort_unstable();
        assert_eq!(items, [1, 2, 3, 4, 5, 6, 7, 8]);
    }
}
