use proptest::prelude::*;

use super::*;

const START: Mono = Mono::secs(10);

fn plan(attempts: u32, statuses: &[u16], request: Option<u64>) -> Plan {
    let policy = RetryPolicy { attempts, statuses: statuses.to_vec(), backoff: Duration::from_millis(100) };
    Plan::new(&policy, Timeouts { request: request.map(Duration::from_millis), backend: None }, START)
}

fn next(plan: &mut Plan, outcome: Outcome, body: Body, now: Mono) -> Next {
    plan.next(outcome, body, now, &Budget::default(), &mut |n| n / 2)
}

const UNSENT: Outcome = Outcome::NeverSent(NeverSent::NoByteWritten);

fn give_up(why: GiveUp) -> Next {
    Next::GiveUp { why }
}

#[test]
fn what_was_never_sent_goes_elsewhere_at_once() {
    let mut p = plan(2, &[], None);
    for proof in [NeverSent::RefusedStream, NeverSent::AboveGoaway] {
        let said = next(&mut p, Outcome::NeverSent(proof), Body::Kept, START);
        assert!(matches!(said, Next::Retry { .. }), "{said:?}");
    }
    assert_eq!(p.tries(), 3);
    let last = Outcome::NeverSent(NeverSent::FarProxySays);
    assert_eq!(next(&mut p, last, Body::Kept, START), give_up(GiveUp::Attempts { tries: 3 }));
    assert_eq!(next(&mut plan(2, &[], None), UNSENT, Body::Kept, START), Next::Retry { after: Duration::ZERO });
    assert_eq!(next(&mut plan(0, &[], None), UNSENT, Body::Kept, START), give_up(GiveUp::Attempts { tries: 1 }));
    assert_eq!(next(&mut plan(2, &[], None), UNSENT, Body::Gone, START), give_up(GiveUp::BodyGone));
}

#[test]
fn answers_are_tried_again_only_where_the_policy_says_so() {
    let answer = |status| Outcome::Answered { status };
    let said = |statuses: &[u16], status, body| next(&mut plan(2, statuses, None), answer(status), body, START);
    assert_eq!(said(&[], 503, Body::Kept), give_up(GiveUp::Answered));
    assert_eq!(said(&[503], 502, Body::Kept), give_up(GiveUp::Answered));
    assert_eq!(said(&[503], 200, Body::Kept), give_up(GiveUp::Answered));
    assert_eq!(said(&[503], 503, Body::Gone), give_up(GiveUp::BodyGone));
    assert_eq!(said(&[503], 503, Body::Kept), Next::Retry { after: Duration::from_millis(100) });
}

#[test]
fn a_far_proxys_verdict_is_final_whatever_the_policy_says() {
    assert_eq!(next(&mut plan(9, &[403], None), Outcome::Refused, Body::Kept, START), give_up(GiveUp::Answered));
}

#[test]
fn what_may_have_been_done_is_never_repeated() {
    for outcome in [Outcome::Lost, Outcome::TryTimedOut] {
        assert_eq!(next(&mut plan(9, &[503], None), outcome, Body::Kept, START), give_up(GiveUp::MayBeDone));
    }
}

#[test]
fn trf_11_the_deadline_bounds_tries_and_pauses() {
    let mut p = plan(5, &[503], Some(150));
    assert_eq!(p.deadline(), Some(Mono::millis(10_150)));
    assert_eq!(p.try_deadline(START), Some(Mono::millis(10_150)));
    let answer = Outcome::Answered { status: 503 };
    assert!(matches!(next(&mut p, answer, Body::Kept, START), Next::Retry { .. }));
    assert_eq!(next(&mut p, answer, Body::Kept, START), give_up(GiveUp::Deadline));
    assert_eq!(next(&mut plan(5, &[], Some(150)), UNSENT, Body::Kept, Mono::millis(10_150)), give_up(GiveUp::Deadline));

    let timeouts = |request, backend| Timeouts { request, backend };
    let of = |t| Plan::new(&RetryPolicy::default(), t, START).try_deadline(Mono::secs(11));
    let s = Duration::from_secs;
    assert_eq!(of(timeouts(None, None)), None);
    assert_eq!(of(timeouts(None, Some(s(3)))), Some(Mono::secs(14)));
    assert_eq!(of(timeouts(Some(s(2)), Some(s(3)))), Some(Mono::secs(12)));
    assert_eq!(of(timeouts(Some(s(9)), Some(s(3)))), Some(Mono::secs(14)));
}

#[test]
fn pauses_double_with_jitter() {
    let pauses = |face: fn(u32) -> u32| {
        let (mut p, budget) = (plan(4, &[503], None), Budget::default());
        let mut all = Vec::new();
        while let Next::Retry { after } =
            p.next(Outcome::Answered { status: 503 }, Body::Kept, START, &budget, &mut |n| face(n))
        {
            all.push(after.as_millis());
        }
        all
    };
    assert_eq!(pauses(|_| 0), [50, 100, 200, 400]);
    assert_eq!(pauses(|n| n - 1), [150, 300, 600, 1200]);
}

#[test]
fn a_token_is_spent_only_on_a_retry_that_happens() {
    let budget = Budget::default();
    let answer = Outcome::Answered { status: 503 };
    let mut dice = |n: u32| n / 2;
    let now = Mono::ZERO;
    assert_eq!(budget.left(), 10);
    plan(0, &[503], None).next(answer, Body::Kept, now, &budget, &mut dice);
    plan(1, &[503], None).next(answer, Body::Gone, now, &budget, &mut dice);
    plan(1, &[], None).next(UNSENT, Body::Kept, now, &budget, &mut dice);
    assert_eq!(budget.left(), 10);
    for left in (0..10).rev() {
        plan(1, &[503], None).next(answer, Body::Kept, now, &budget, &mut dice);
        assert_eq!(budget.left(), left);
    }
    let spent = plan(1, &[503], None).next(answer, Body::Kept, now, &budget, &mut dice);
    assert_eq!(spent, give_up(GiveUp::Budget));
    // what was never sent does not ask
    let unsent = plan(1, &[503], None).next(UNSENT, Body::Kept, now, &budget, &mut dice);
    assert!(matches!(unsent, Next::Retry { .. }));
    // time and requests fill it again
    assert!(budget.withdraw(Mono::millis(100)) && !budget.withdraw(Mono::millis(150)));
    (0..5).for_each(|_| budget.deposit());
    assert!(budget.withdraw(Mono::millis(150)) && !budget.withdraw(Mono::millis(150)));
    (0..10_000).for_each(|_| budget.deposit());
    assert_eq!(budget.left(), 100);
}

proptest! {
    #[test]
    fn the_retry_budget_is_never_exceeded(steps in prop::collection::vec((0_u64..300, 0_u32..5, 0_u32..20), 1..60)) {
        let budget = Budget::default();
        let (mut now, mut requests, mut granted) = (Mono::ZERO, 0_u64, 0_u64);
        for (millis, deposits, withdrawals) in steps {
            now = now.plus(Duration::from_millis(millis));
            (0..deposits).for_each(|_| budget.deposit());
            requests += u64::from(deposits);
            granted += (0..withdrawals).map(|_| u64::from(budget.withdraw(now))).sum::<u64>();
            let earned = 10_000 + now.as_nanos() / 100_000 + requests * 200;
            prop_assert!(granted * 1000 <= earned, "{granted} of {earned}/1000");
        }
    }
}
