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

mod simulation;
