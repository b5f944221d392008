use std::collections::BTreeMap;

use weft_model::Name;

use super::*;

fn holder(i: u64) -> Holder {
    let name = Name::parse(&format!("n{i}")).unwrap();
    if i.is_multiple_of(2) { Holder::Agent(name) } else { Holder::Run(name) }
}

/// Adopted at 0, ticked every second; `renews` says who still speaks.
fn run(
    leases: &mut Leases,
    from: u64,
    to: u64,
    renews: impl Fn(&Holder, u64) -> bool,
) -> Vec<(u64, Holder, LeaseState)> {
    let mut log = Vec::new();
    for t in from..=to {
        let now = Mono::secs(t);
        let all: Vec<_> = leases.holders().cloned().collect();
        for h in all.iter().filter(|h| renews(h, t)) {
            if leases.renew(now, h) {
                leases.committed(h, LeaseState::Alive);
                log.push((t, h.clone(), LeaseState::Alive));
            }
        }
        for lapse in leases.tick(now) {
            for h in lapse.holders {
                leases.committed(&h, lapse.to);
                log.push((t, h, lapse.to));
            }
        }
    }
    log
}

fn adopted(n: u64) -> Leases {
    let mut leases = Leases::default();
    (0..n).for_each(|i| leases.adopt(Mono::ZERO, holder(i), LeaseState::Alive));
    leases
}

#[test]
fn unknown_after_ten_seconds_dead_after_sixty_alive_when_it_speaks() {
    let mut leases = adopted(4);
    let silent = holder(0);
    let log = run(&mut leases, 1, 100, |h, t| *h != silent || t >= 90);
    assert_eq!(
        log,
        [
            (10, silent.clone(), LeaseState::Unknown),
            (60, silent.clone(), LeaseState::Dead),
            (90, silent, LeaseState::Alive)
        ]
    );
}

#[test]
fn reg_01_twenty_of_a_hundred_become_unknown_together_and_die_together() {
    let silent = |h: &Holder| (0..20).any(|i| holder(i) == *h);
    let log = run(&mut adopted(100), 1, 200, |h, _| !silent(h));
    let at = |t, state| log.iter().filter(|(when, h, s)| *when == t && *s == state && silent(h)).count();
    assert_eq!((at(10, LeaseState::Unknown), at(60, LeaseState::Dead)), (20, 20));
    assert_eq!(log.len(), 40, "nobody else, and nobody twice: {log:?}");
}

#[test]
fn more_than_a_third_together_never_die() {
    let mut leases = adopted(6);
    let silent = |h: &Holder| [holder(0), holder(1), holder(2)].contains(h);
    let log = run(&mut leases, 1, 500, |h, _| !silent(h));
    assert_eq!(log.len(), 3);
    assert!(log.iter().all(|(t, _, s)| *t == 10 && *s == LeaseState::Unknown));
    // two come back: the third has a full length from now
    let log = run(&mut leases, 501, 700, |h, _| *h != holder(0));
    let dead: Vec<_> = log.into_iter().filter(|(_, _, s)| *s == LeaseState::Dead).collect();
    assert_eq!(dead, [(560, holder(0), LeaseState::Dead)]);
}

#[test]
fn a_stall_or_restart_of_ours_is_not_theirs() {
    let mut leases = adopted(9);
    assert_eq!(run(&mut leases, 1, 9, |_, _| false), []);
    // we stand still for a minute: nobody could renew
    assert_eq!(leases.tick(Mono::secs(70)), []);
    let log = run(&mut leases, 71, 79, |_, _| false);
    assert_eq!(log, []);
    leases.restart(Mono::secs(79));
    assert_eq!(run(&mut leases, 80, 88, |_, _| false), []);
    assert_eq!(run(&mut leases, 89, 89, |_, _| false).len(), 9);
}

#[test]
fn a_refused_or_lost_commit_is_offered_again() {
    let mut leases = adopted(1);
    for t in 1..10 {
        assert_eq!(leases.tick(Mono::secs(t)), []);
    }
    let due = [Lapse { holders: vec![holder(0)], to: LeaseState::Unknown }];
    assert_eq!(leases.tick(Mono::secs(10)), due);
    assert_eq!(leases.tick(Mono::secs(11)), due);
    leases.committed(&holder(0), LeaseState::Unknown);
    for t in 12..60 {
        assert_eq!(leases.tick(Mono::secs(t)), []);
    }
    let due = [Lapse { holders: vec![holder(0)], to: LeaseState::Dead }];
    assert_eq!(leases.tick(Mono::secs(60)), due);
    leases.spared(Mono::secs(60), &[holder(0)]);
    assert_eq!(leases.tick(Mono::secs(61)), []);
}

// === simulation ===

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }
}

/// Adversarial steps in virtual time; returns the trace.
fn simulate(seed: u64) -> Vec<String> {
    let mut dice = Dice(seed);
    let mut leases = Leases::default();
    let mut now = Mono::secs(1000);
    // what an outside observer knows: since when could the holder have been heard, and what is committed
    let mut heard: BTreeMap<Holder, (Mono, LeaseState)> = BTreeMap::new();
    let mut ticked = None::<Mono>;
    // silent for a while, then another one is
    let mut quiet = holder(0);
    let mut trace = Vec::new();
    for step in 0..3000 {
        let someone = holder(dice.next(12));
        if step % 1000 == 0 {
            quiet = someone.clone();
        }
        match dice.next(1000) {
            0..10 if someone != quiet => {
                leases.adopt(now, someone.clone(), LeaseState::Alive);
                heard.insert(someone, (now, LeaseState::Alive));
            }
            20..22 => {
                leases.forget(&someone);
                heard.remove(&someone);
            }
            25..27 => {
                leases.restart(now);
                ticked = Some(now);
                heard.values_mut().for_each(|(t, _)| *t = now);
            }
            27..29 if step % 5 == 0 => now = now.plus(Duration::from_secs(dice.next(40))),
            29..500 if someone != quiet => {
                let back = leases.renew(now, &someone);
                if let Some((t, state)) = heard.get_mut(&someone) {
                    *t = now;
                    assert_eq!(back, *state != LeaseState::Alive, "seed {seed} step {step}: {someone}");
                    // the commit of a return may fail, too: then the next renewal says it again
                    if back && dice.next(4) > 0 {
                        *state = LeaseState::Alive;
                        leases.committed(&someone, LeaseState::Alive);
                        trace.push(format!("{now:?} {someone} alive"));
                    }
                }
            }
            _ => now = now.plus(Duration::from_millis(dice.next(500))),
        }
        let stalled = ticked.is_some_and(|t| now.since(t) >= STALL);
        let lapses = leases.tick(now);
        ticked = Some(now);
        if stalled {
            assert_eq!(lapses, [], "seed {seed} step {step}: judged after a stall");
            heard.values_mut().for_each(|(t, _)| *t = now);
        }
        let living = heard.values().filter(|(_, s)| *s != LeaseState::Dead).count();
        for lapse in lapses {
            let least = if lapse.to == LeaseState::Dead { DEAD_AFTER } else { UNKNOWN_AFTER };
            for h in &lapse.holders {
                let (since, state) = heard[h];
                assert!(now.since(since) >= least, "seed {seed} step {step}: {h} is {:?} too early", lapse.to);
                assert!(state < lapse.to, "seed {seed} step {step}: {h} went back to {:?}", lapse.to);
            }
            let mass = lapse.holders.len() > 1 && lapse.holders.len() * 3 > living;
            assert!(!(mass && lapse.to == LeaseState::Dead), "seed {seed} step {step}: a third died together");
            if dice.next(5) > 0 {
                for h in lapse.holders {
                    leases.committed(&h, lapse.to);
                    trace.push(format!("{now:?} {h} {:?}", lapse.to));
                    heard.get_mut(&h).unwrap().1 = lapse.to;
                }
            }
        }
    }
    // then no more faults: whoever is silent alone dies, whoever speaks lives
    let silent = heard.keys().next().cloned();
    for _ in 0..200 {
        now = now.plus(Duration::from_secs(1));
        for h in heard.keys().filter(|h| Some(*h) != silent.as_ref()) {
            leases.renew(now, h);
            leases.committed(h, LeaseState::Alive);
        }
        for lapse in leases.tick(now) {
            lapse.holders.iter().for_each(|h| leases.committed(h, lapse.to));
        }
    }
    for (h, row) in &leases.held {
        let want = if Some(h) == silent.as_ref() { LeaseState::Dead } else { LeaseState::Alive };
        assert_eq!(row.state, want, "seed {seed}: {h} after healing");
    }
    trace
}

#[test]
fn leases_hold_under_seeded_faults() {
    let traces: Vec<_> = (0..200).map(simulate).collect();
    let deaths = traces.iter().flatten().filter(|l| l.ends_with("Dead")).count();
    assert!(deaths > 50, "the simulation hardly kills anyone: {deaths}");
}

#[test]
fn same_seed_same_trace() {
    assert_eq!(simulate(7), simulate(7));
    assert_ne!(simulate(7), simulate(8));
}
