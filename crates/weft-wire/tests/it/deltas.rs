//! The rules of the stream one by one.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message as _;
use weft_model::{Digest, Mono, Revision, Uid};
use weft_sim::seeded::Dice;
use weft_snapshot::{
    fragment::{Balance, Collection, Fragment},
    snapshot::Rejection,
};
use weft_wire::{
    delta::{Change, Client, Collections, Event, Limits, MAX_RESPONSE, Poll, Presence, Session},
    fragment::encode,
    grpc::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    name::EntryName,
    pb::envoy::service::discovery::v3::Resource,
};

use crate::world::{self, Content};

const R1: Revision = Revision::new(1, 1);

/// One server, one client, a wire that nothing disturbs.
struct Pair {
    all: Collections,
    session: Session,
    client: Client,
    now: Mono,
    forbidden: Vec<Collection>,
    /// Names of the resources and removals that were sent, in order; reset by whoever looks.
    sent: Vec<String>,
    bytes: usize,
}

impl Pair {
    fn new(changes: Vec<Change>, subscribe: &[Collection]) -> Self {
        let mut all = Collections::new();
        all.apply(R1, changes).unwrap();
        let mut client = Client::new("test");
        client.subscribe(subscribe.iter().cloned());
        let mut pair = Self {
            all,
            session: Session::new(1, Limits::default()),
            client,
            now: Mono::ZERO,
            forbidden: vec![],
            sent: vec![],
            bytes: 0,
        };
        pair.reconnect(1);
        pair
    }

    fn reconnect(&mut self, id: u64) {
        self.session = Session::new(id, Limits::default());
        let first = self.client.connect();
        self.session.on_request(self.now, first).unwrap();
    }

    fn poll(&mut self) -> Poll {
        let forbidden = &self.forbidden;
        self.session.poll(self.now, &self.all, &|c| !forbidden.contains(c))
    }

    /// Until nothing moves, but no further than so many seconds.
    fn settle(&mut self, secs: u64) {
        let until = self.now.plus(Duration::from_secs(secs));
        loop {
            let subscriptions = self.client.take_request();
            self.session.on_request(self.now, subscriptions.unwrap_or_else(empty)).unwrap();
            let Poll { send, wake_at } = self.poll();
            match wake_at {
                _ if !send.is_empty() => {}
                Some(at) if at <= until => self.now = at,
                _ => return,
            }
            for response in send {
                self.deliver(response);
            }
        }
    }

    fn deliver(&mut self, response: DeltaDiscoveryResponse) {
        for resource in &response.resources {
            self.bytes += resource.len();
            self.sent.push(Resource::decode(resource.clone()).unwrap().name);
        }
        self.sent.extend(response.removed_resources.iter().map(|n| format!("-{n}")));
        let (answer, _) = self.client.on_response(response, |set| world::build(set.fragments)).unwrap();
        self.session.on_request(self.now, answer).unwrap();
    }

    fn apply(&mut self, n: u64, changes: Vec<Change>) {
        self.all.apply(Revision::new(1, n), changes).unwrap();
    }

    fn take_sent(&mut self) -> Vec<String> {
        std::mem::take(&mut self.sent)
    }
}

fn empty() -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { type_url: weft_wire::fragment::TYPE_URL.into(), ..Default::default() }
}

fn service(n: u64) -> Collection {
    Collection::Service(world::service_key(n))
}

fn endpoints(n: u64) -> Collection {
    Collection::Endpoints(world::service_key(n))
}

fn put_service(n: u64, port: u16, balance: Balance) -> Change {
    let fragment = world::service(world::service_key(n), port, balance);
    Change::Put(EntryName::only(service(n)), encode(&fragment))
}

fn put_endpoint(n: u64, id: usize, weight: u32) -> Change {
    let uid = Uid::parse(&format!("shop/s{n}/node/{id}")).unwrap();
    let name = EntryName { collection: endpoints(n), entry: Some(uid.clone()) };
    Change::Put(name, encode(&world::endpoint(uid, weight)))
}

#[test]
fn a_change_sends_what_changed_and_its_commit() {
    let changes = vec![put_service(0, 80, Balance::PeakEwma), put_endpoint(0, 1, 1), put_endpoint(0, 2, 1)];
    let mut pair = Pair::new(changes, &[service(0), endpoints(0)]);
    pair.settle(1);
    let first = pair.take_sent();
    let e = |id| format!("endpoints/shop/s0#shop/s0/node/{id}");
    assert_eq!(first, ["service/shop/s0".into(), "endpoints/shop/s0".into(), e(1), e(2), "commit".into()]);
    pair.apply(2, vec![put_endpoint(0, 2, 5)]);
    pair.settle(1);
    assert_eq!(pair.take_sent(), [e(2), "commit".into()]);
    pair.apply(3, vec![Change::Remove(e(1).parse().unwrap())]);
    pair.settle(1);
    assert_eq!(pair.take_sent(), ["commit".into(), format!("-{}", e(1))]);
    // the same bytes again, or what it did not subscribe to: nothing
    pair.apply(4, vec![put_endpoint(0, 2, 5), put_service(1, 80, Balance::PeakEwma)]);
    pair.settle(1);
    assert_eq!(pair.take_sent(), [""; 0]);
    assert!(pair.session.is_current(&pair.all));
}

#[test]
fn nov_05_a_change_counts_as_applied_when_its_commit_is_acknowledged() {
    let mut pair = Pair::new(vec![put_service(0, 80, Balance::PeakEwma)], &[service(0)]);
    pair.settle(1);
    pair.apply(2, vec![put_service(0, 81, Balance::PeakEwma), put_service(1, 81, Balance::PeakEwma)]);
    let seq = pair.all.last_change(&service(0)).unwrap();
    let stands = |pair: &Pair| (pair.session.has_applied(&service(0), seq), pair.session.is_current(&pair.all));
    assert_eq!(stands(&pair), (Some(false), false), "not even offered");
    pair.now = pair.now.plus(Duration::from_millis(1));
    assert!(pair.poll().send.is_empty());
    pair.now = pair.now.plus(Duration::from_millis(20));
    let offered = pair.poll().send.remove(0);
    assert_eq!(stands(&pair), (Some(false), false), "offered is not applied");
    pair.deliver(offered);
    assert_eq!(stands(&pair), (Some(true), true));
    assert_eq!(pair.session.has_applied(&service(1), seq), None, "it does not concern this proxy");
}

#[test]
fn changes_wait_for_company_and_subscriptions_do_not() {
    let mut pair = Pair::new(vec![put_service(0, 80, Balance::PeakEwma)], &[service(0)]);
    pair.settle(1);
    pair.take_sent();
    pair.apply(2, vec![put_service(0, 81, Balance::PeakEwma)]);
    let Poll { send, wake_at } = pair.poll();
    assert!(send.is_empty());
    assert_eq!(wake_at, Some(pair.now.plus(Duration::from_millis(20))));
    pair.apply(3, vec![put_service(0, 82, Balance::PeakEwma)]);
    pair.client.subscribe([service(1)]);
    let request = pair.client.take_request().unwrap();
    pair.session.on_request(pair.now, request).unwrap();
    let send = pair.poll().send;
    assert_eq!(send.len(), 1, "an asked-for answer is not delayed, and takes along what waits");
    pair.deliver(send.into_iter().next().unwrap());
    assert_eq!(pair.client.applied().unwrap().revision, Revision::new(1, 3));
    assert_eq!(pair.client.presence(&service(1)), Some(Presence::Absent), "missing is answered at once");
}

#[test]
fn forbidden_looks_like_missing_and_revoked_access_is_a_removal() {
    let both = vec![put_service(0, 80, Balance::PeakEwma), put_service(1, 80, Balance::PeakEwma)];
    let mut pair = Pair::new(both, &[service(0), service(1), service(2)]);
    pair.forbidden = vec![service(1)];
    pair.settle(1);
    assert_eq!(pair.take_sent(), ["service/shop/s0", "commit", "-service/shop/s1", "-service/shop/s2"]);
    pair.forbidden = vec![service(0)];
    pair.session.recheck(pair.now);
    pair.settle(1);
    assert_eq!(pair.take_sent(), ["service/shop/s1", "commit", "-service/shop/s0"]);
    assert_eq!(pair.client.presence(&service(0)), Some(Presence::Absent));
    assert!(!pair.client.fragments().contains_key(&service(0)));
    // what it may not see changes: it does not even learn that
    pair.apply(2, vec![put_service(0, 81, Balance::PeakEwma)]);
    pair.settle(1);
    assert_eq!(pair.take_sent(), [""; 0]);
}

#[test]
fn what_did_not_change_is_not_resent_after_a_reconnect() {
    let mut changes: Vec<_> = (0..100).map(|id| put_endpoint(0, id, 1)).collect();
    changes.push(put_service(0, 80, Balance::PeakEwma));
    let mut pair = Pair::new(changes, &[service(0), endpoints(0), endpoints(1)]);
    pair.settle(1);
    assert!(pair.bytes > 20_000);
    (pair.bytes, pair.sent) = (0, vec![]);
    pair.reconnect(2);
    pair.settle(1);
    assert_eq!(pair.take_sent(), ["commit"]);
    assert!(pair.bytes < 200, "{} bytes", pair.bytes);
    assert!(pair.session.is_current(&pair.all));
    // while it was away, one collection changed
    pair.apply(2, vec![put_service(0, 81, Balance::PeakEwma)]);
    pair.reconnect(3);
    pair.settle(1);
    assert_eq!(pair.take_sent(), ["service/shop/s0", "commit"]);
}

#[test]
fn ops_05_a_rejected_entry_is_held_until_it_changes() {
    let good = vec![put_service(0, 80, Balance::PeakEwma), put_service(1, 80, Balance::PeakEwma)];
    let mut pair = Pair::new(good, &[service(0), service(1), service(2)]);
    pair.settle(1);
    pair.take_sent();
    // one bad that has an older version, one bad that has none, one good
    pair.apply(
        2,
        vec![
            put_service(0, 81, Balance::Random),
            put_service(1, 81, Balance::PeakEwma),
            put_service(2, 81, Balance::Random),
        ],
    );
    pair.settle(1);
    let again = ["service/shop/s0", "service/shop/s1", "service/shop/s2", "commit"];
    assert_eq!(pair.take_sent(), [again, again].concat());
    let port = |pair: &Pair, n| {
        let entries = pair.client.fragments().get(&service(n)).unwrap();
        match &**entries.values().next().unwrap() {
            Fragment::Service(s) => s.ports.first().map(|p| p.port),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!([0, 1, 2].map(|n| port(&pair, n)), [Some(80), Some(81), None]);
    assert_eq!(pair.client.applied().unwrap().revision, Revision::new(1, 2));
    let status = pair.session.status();
    assert_eq!(
        status.rejected,
        [("service/shop/s0", "poison"), ("service/shop/s2", "poison")].map(|(n, w)| (n.into(), w.into()))
    );
    assert_eq!(status.applied, pair.client.applied());
    assert!(!pair.session.is_current(&pair.all));
    // something else changes: what is held is not tried again
    pair.apply(3, vec![put_service(1, 82, Balance::PeakEwma)]);
    pair.settle(1);
    assert_eq!(pair.take_sent(), ["service/shop/s1", "commit"]);
    // mended
    pair.apply(4, vec![put_service(0, 83, Balance::PeakEwma), put_service(2, 83, Balance::PeakEwma)]);
    pair.settle(1);
    assert_eq!(pair.take_sent(), ["service/shop/s0", "service/shop/s2", "commit"]);
    assert_eq!([0, 1, 2].map(|n| port(&pair, n)), [Some(83), Some(82), Some(83)]);
    assert!(pair.session.is_current(&pair.all));
    assert!(pair.client.refused().is_empty());
}

#[test]
fn a_set_that_is_wrong_as_a_whole_is_sent_in_full_and_later() {
    let mut pair =
        Pair::new(vec![put_service(0, 80, Balance::PeakEwma), put_endpoint(0, 1, 1)], &[service(0), endpoints(0)]);
    let mut send = pair.poll().send;
    send[0].resources.remove(0);
    pair.deliver(send.remove(0));
    pair.take_sent();
    assert_eq!(pair.client.applied(), None);
    pair.settle(0);
    assert_eq!(pair.take_sent(), [""; 0]);
    assert!(pair.session.status().rejected_set.is_some());
    pair.settle(2);
    assert_eq!(pair.take_sent().len(), 4);
    assert!(pair.session.is_current(&pair.all));
    assert_eq!(pair.session.status().rejected_set, None);
}

#[test]
fn a_builder_that_blames_what_it_does_not_have_backs_off() {
    // not there at all, and there but not subscribed
    for blamed in [endpoints(0), service(1)] {
        let both = vec![put_service(0, 80, Balance::PeakEwma), put_service(1, 80, Balance::PeakEwma)];
        let mut pair = Pair::new(both, &[service(0)]);
        let mut tries = 0;
        loop {
            let Poll { send, wake_at } = pair.poll();
            for response in send {
                tries += 1;
                let missing = |_: &weft_wire::delta::Set<'_>| {
                    let (collection, entry) = (blamed.clone(), String::new());
                    Err::<(), _>(vec![Rejection { collection, entry, reason: "missing".into() }])
                };
                let (answer, event) = pair.client.on_response(response, missing).unwrap();
                assert!(matches!(event, Event::Rejected(_)));
                pair.session.on_request(pair.now, answer).unwrap();
            }
            match wake_at {
                Some(at) if at > Mono::secs(100) => break,
                Some(at) => pair.now = at,
                None => {}
            }
        }
        assert!((4..12).contains(&tries), "{tries} tries in 100 s");
    }
}

#[test]
fn what_is_held_is_told_again_in_the_next_try() {
    let good = (0..3).map(|n| put_service(n, 80, Balance::PeakEwma)).collect();
    let mut pair = Pair::new(good, &[service(0), service(1), service(2)]);
    pair.settle(1);
    pair.take_sent();
    // the one cannot be read, which is found first; the other is refused by the builder, in the next try
    let garbage = Change::Put(EntryName::only(service(0)), Bytes::from_static(&[0x62, 0x00]));
    pair.apply(2, vec![garbage, put_service(1, 80, Balance::Random)]);
    pair.now = pair.now.plus(Duration::from_millis(1));
    pair.settle(0);
    pair.now = pair.now.plus(Duration::from_millis(20));
    for _ in 0..3 {
        pair.settle(0);
        pair.now = pair.now.plus(Duration::from_millis(20));
    }
    let both = ["service/shop/s0", "service/shop/s1", "commit"];
    assert_eq!(pair.take_sent(), [both, both, both].concat(), "three tries, none of them wrong as a whole");
    assert_eq!(pair.client.applied().unwrap().revision, Revision::new(1, 2));
    assert_eq!(pair.client.refused().len(), 2);
}

#[test]
fn a_fragment_under_the_name_of_another_is_refused() {
    let other = encode(&world::service(world::service_key(1), 80, Balance::PeakEwma));
    let mut pair = Pair::new(vec![Change::Put(EntryName::only(service(0)), other)], &[service(0)]);
    pair.settle(1);
    assert!(pair.client.refused()["service/shop/s0"].contains("something else, than its name says"));
}

#[test]
fn a_client_takes_nothing_older_than_what_it_has() {
    let mut pair = Pair::new(vec![put_service(0, 80, Balance::PeakEwma)], &[service(0)]);
    pair.all.apply(Revision::new(2, 9), vec![]).unwrap();
    pair.settle(1);
    for older in [Revision::new(2, 8), Revision::new(1, 10)] {
        // a server that does not listen to what the client has
        pair.all = Collections::new();
        pair.all.apply(older, vec![put_service(0, 70, Balance::PeakEwma)]).unwrap();
        pair.session = Session::new(older.n, Limits::default());
        let first = DeltaDiscoveryRequest { initial_resource_versions: BTreeMap::new(), ..pair.client.connect() };
        pair.session.on_request(pair.now, first).unwrap();
        pair.settle(0);
        assert_eq!(pair.client.applied().unwrap().revision, Revision::new(2, 9));
        assert!(pair.session.status().rejected_set.unwrap().contains("older than 2.9"));
    }
}

#[test]
fn behind_the_ring_the_whole_collection_is_sent() {
    let changes = (0..40).map(|id| put_endpoint(0, id, 1)).collect();
    let mut pair = Pair::new(changes, &[endpoints(0)]);
    pair.settle(1);
    pair.take_sent();
    // while the client is slow, the same endpoint changes more often than the ring is long
    for n in 2..100 {
        pair.apply(n, vec![put_endpoint(0, 0, u32::try_from(n).unwrap() + 100)]);
    }
    pair.settle(1);
    assert_eq!(pair.take_sent().len(), 1 + 40 + 1, "head, entries, commit");
    assert!(pair.session.is_current(&pair.all));
}

#[test]
fn a_slow_session_skips_to_the_newest_revision() {
    let mut pair = Pair::new(vec![put_service(0, 80, Balance::PeakEwma)], &[service(0)]);
    let first = pair.poll().send.remove(0);
    for n in 2..20 {
        pair.apply(n, vec![put_service(0, 80 + u16::try_from(n).unwrap(), Balance::PeakEwma)]);
        pair.now = pair.now.plus(Duration::from_millis(50));
        assert!(pair.poll().send.is_empty(), "one set is on its way at a time");
    }
    pair.deliver(first);
    pair.settle(1);
    assert_eq!(pair.take_sent(), ["service/shop/s0", "commit", "service/shop/s0", "commit"]);
    assert_eq!(pair.client.applied().unwrap().revision, Revision::new(1, 19));
}

#[test]
fn responses_are_at_most_1_mib() {
    let changes = (0..8_000).map(|id| put_endpoint(0, id, 1)).collect();
    let mut pair = Pair::new(changes, &[endpoints(0)]);
    let send = pair.poll().send;
    assert!(send.len() >= 2, "{} responses", send.len());
    for response in send {
        assert!(response.encoded_len() <= MAX_RESPONSE, "{} bytes", response.encoded_len());
        pair.deliver(response);
    }
    assert_eq!(pair.client.fragments()[&endpoints(0)].len(), 8_000);
}

#[test]
fn the_window_bounds_what_is_on_its_way() {
    let changes = (0..500).map(|id| put_endpoint(0, id, 1)).collect();
    let mut pair = Pair::new(changes, &[endpoints(0)]);
    let limits = Limits { window: 20_000, response: 6_000, ..Limits::default() };
    pair.session = Session::new(1, limits);
    pair.session.on_request(pair.now, pair.client.connect()).unwrap();
    let mut on_the_way = std::collections::VecDeque::new();
    while pair.client.applied().is_none() {
        on_the_way.extend(pair.poll().send);
        let bytes: usize = on_the_way.iter().map(DeltaDiscoveryResponse::encoded_len).sum();
        assert!(bytes <= 20_000 + 2 * 6_000, "{bytes} bytes on their way");
        let response = on_the_way.pop_front().expect("something is always on its way until the end");
        pair.deliver(response);
    }
    assert_eq!(pair.client.fragments()[&endpoints(0)].len(), 500);
}

#[test]
fn a_session_that_missed_many_changes_looks_at_all_of_its_own() {
    let mut pair = Pair::new(vec![put_service(0, 80, Balance::PeakEwma)], &[service(0)]);
    pair.settle(1);
    pair.take_sent();
    pair.apply(2, vec![put_service(0, 81, Balance::PeakEwma)]);
    for n in 0..5_000 {
        pair.apply(3 + n, vec![put_service(1, 80 + u16::try_from(n % 2).unwrap(), Balance::PeakEwma)]);
    }
    pair.settle(1);
    assert_eq!(pair.take_sent(), ["service/shop/s0", "commit"]);
}

#[test]
fn a_restore_during_a_set_or_between_streams_costs_one_full_set() {
    let content = vec![put_service(0, 80, Balance::PeakEwma), put_endpoint(0, 1, 1)];
    let mut pair = Pair::new(content, &[service(0), endpoints(0)]);
    let first = pair.poll().send.remove(0);
    pair.all.apply(Revision::new(2, 5), vec![put_endpoint(0, 1, 2)]).unwrap();
    assert!(pair.poll().send.is_empty());
    pair.deliver(first);
    assert_eq!(pair.take_sent().len(), 4);
    pair.settle(0);
    pair.now = pair.now.plus(Duration::from_millis(20));
    pair.settle(0);
    assert_eq!(pair.take_sent().len(), 4, "all of it, once, though the client applied the older set");
    assert_eq!(pair.client.applied().unwrap().revision, Revision::new(2, 5));
    assert_eq!(pair.session.status().rejected_set, None);
    pair.all.apply(Revision::new(3, 6), vec![]).unwrap();
    pair.reconnect(2);
    pair.settle(0);
    assert_eq!(pair.take_sent().len(), 4, "what it has from another incarnation does not count");
    assert_eq!(pair.client.applied().unwrap().revision, Revision::new(3, 6));
    assert_eq!(pair.session.status().rejected_set, None);
}

#[test]
fn a_rejected_set_that_only_answered_is_offered_again() {
    let both = vec![put_service(0, 80, Balance::PeakEwma), put_service(1, 80, Balance::PeakEwma)];
    let mut pair = Pair::new(both, &[service(0), service(1)]);
    pair.settle(1);
    pair.client.unsubscribe([service(1)]);
    let request = pair.client.take_request().unwrap();
    pair.session.on_request(pair.now, request).unwrap();
    let commit = pair.poll().send.remove(0);
    let refuse = |_: &weft_wire::delta::Set<'_>| {
        Err::<(), _>(vec![Rejection { collection: service(0), entry: String::new(), reason: "not now".into() }])
    };
    let (answer, _) = pair.client.on_response(commit, refuse).unwrap();
    pair.session.on_request(pair.now, answer).unwrap();
    assert!(pair.client.fragments().contains_key(&service(1)));
    pair.settle(10);
    assert!(!pair.client.fragments().contains_key(&service(1)));
    assert!(pair.session.is_current(&pair.all) || !pair.session.status().rejected.is_empty());
}

#[test]
fn leaving_and_coming_back_in_a_hurry_confuses_nobody() {
    let mut pair = Pair::new(vec![put_service(0, 80, Balance::PeakEwma)], &[service(0), service(1)]);
    pair.settle(1);
    pair.take_sent();
    pair.apply(2, vec![put_service(0, 81, Balance::PeakEwma)]);
    pair.now = pair.now.plus(Duration::from_millis(1));
    assert!(pair.poll().send.is_empty());
    pair.now = pair.now.plus(Duration::from_millis(20));
    let on_the_way = pair.poll().send.remove(0);
    let mut requests = Vec::new();
    for _ in 0..2 {
        pair.client.unsubscribe([service(0)]);
        requests.extend(pair.client.take_request());
        pair.client.subscribe([service(0)]);
        requests.extend(pair.client.take_request());
    }
    // the set from before arrives when all of them were sent; then a set is made after each of them
    pair.deliver(on_the_way);
    assert_eq!(pair.take_sent(), ["service/shop/s0", "commit"]);
    for request in requests {
        pair.session.on_request(pair.now, request).unwrap();
        for response in pair.poll().send {
            pair.deliver(response);
        }
    }
    assert_eq!(pair.session.status().rejected_set, None);
    assert_eq!(pair.take_sent(), ["commit", "service/shop/s0", "commit", "commit", "service/shop/s0", "commit"]);
    assert!(pair.session.is_current(&pair.all));
}

#[test]
fn an_entry_that_fits_no_response_is_refused_before_anything_changes() {
    let mut all = Collections::new();
    let name = EntryName::only(service(0));
    let huge = Bytes::from(vec![0; MAX_RESPONSE]);
    let error = all.apply(R1, vec![put_service(1, 80, Balance::PeakEwma), Change::Put(name, huge)]).unwrap_err();
    assert_eq!(error.name, "service/shop/s0");
    assert_eq!((all.head(), all.contains(&service(1))), (Revision::ZERO, false));
}

#[test]
fn a_server_that_is_behind_its_client_says_nothing() {
    let mut pair = Pair::new(vec![put_service(0, 80, Balance::PeakEwma)], &[service(0)]);
    pair.settle(1);
    pair.apply(5, vec![put_service(0, 85, Balance::PeakEwma)]);
    pair.settle(1);
    // another replica, which has not seen revision 5 yet
    let mut behind = Collections::new();
    let current = std::mem::replace(&mut pair.all, Collections::new());
    pair.reconnect(2);
    pair.settle(5);
    behind.apply(Revision::new(1, 4), vec![put_service(0, 84, Balance::PeakEwma)]).unwrap();
    pair.all = behind;
    pair.take_sent();
    pair.settle(5);
    assert_eq!(pair.take_sent(), [""; 0]);
    assert_eq!(pair.session.status().waiting_for, Some(Revision::new(1, 5)));
    pair.all = current;
    pair.settle(5);
    assert_eq!(pair.take_sent(), ["commit"]);
}

#[test]
fn a_new_incarnation_is_sent_in_full_and_may_go_back() {
    let mut pair =
        Pair::new(vec![put_service(0, 80, Balance::PeakEwma), put_endpoint(0, 1, 1)], &[service(0), endpoints(0)]);
    pair.settle(1);
    pair.take_sent();
    // the same content: still nothing that the client has counts
    pair.all.apply(Revision::new(2, 1), vec![]).unwrap();
    pair.settle(1);
    assert_eq!(pair.take_sent().len(), 4);
    assert_eq!(pair.client.applied().unwrap().revision, Revision::new(2, 1));
    pair.reconnect(2);
    pair.settle(1);
    assert_eq!(pair.take_sent(), ["commit"]);
}

#[test]
fn a_set_survives_on_disk() {
    let mut pair = Pair::new(
        vec![put_service(0, 80, Balance::PeakEwma), put_endpoint(0, 1, 1)],
        &[service(0), endpoints(0), service(3)],
    );
    pair.settle(1);
    pair.take_sent();
    let saved = pair.client.save().unwrap();
    let (client, built) = Client::restore("again", saved.clone(), |set| world::build(set.fragments)).unwrap();
    assert_eq!(built, 2);
    assert_eq!(client.fragments(), pair.client.fragments());
    assert_eq!(client.presence(&service(3)), Some(Presence::Absent));
    pair.client = client;
    pair.reconnect(2);
    pair.settle(1);
    assert_eq!(pair.take_sent(), ["commit"], "it has all of it");
    let damaged = Client::restore("again", saved.slice(..saved.len() - 40), |set| world::build(set.fragments));
    assert!(damaged.is_err());
}

proptest! {
    /// From any content to any other, in one step or in several, by deltas or in full: the same set, the same digest.
    #[test]
    fn applying_the_difference_leads_to_the_other(seed: u64, before in 0usize..8, steps in 1usize..6, skip: bool) {
        let mut dice = Dice::seeded(seed);
        let mut content = Content::new();
        let change = |dice: &mut Dice, content: &mut Content| {
            let change = world::change(dice, 0);
            world::apply(content, &change);
            change
        };
        let first = (0..before).map(|_| change(&mut dice, &mut content)).collect();
        let mut pair = Pair::new(first, &world::universe());
        pair.settle(1);
        for n in 0..steps {
            let changes = (0..3).map(|_| change(&mut dice, &mut content)).collect();
            pair.apply(2 + n as u64, changes);
            if !skip {
                pair.settle(1);
            }
        }
        pair.settle(1);
        let want = world::digest(content.iter());
        prop_assert_eq!(pair.client.applied().unwrap().set_digest, want);
        let has: BTreeMap<_, _> = pair.client.fragments().iter().map(|(c, e)| {
            (c.clone(), e.values().map(|f| Digest::of(&encode(f))).collect::<Vec<_>>())
        }).collect();
        let wanted: BTreeMap<_, _> = content.iter().map(|(c, e)| {
            (c.clone(), e.values().map(|b| Digest::of(b)).collect::<Vec<_>>())
        }).collect();
        prop_assert_eq!(has, wanted);
    }

    /// Whatever the order in which the publisher learns things.
    #[test]
    fn digests_do_not_depend_on_the_order_of_arrival(seed: u64) {
        let mut dice = Dice::seeded(seed);
        let mut changes: Vec<Change> =
            (0..4).flat_map(|n| [put_service(n, 80, Balance::PeakEwma), put_endpoint(n, 1, 2), put_endpoint(n, 2, 3)]).collect();
        let digests = |changes: &[Change]| {
            let mut all = Collections::new();
            for (n, change) in changes.iter().enumerate() {
                all.apply(Revision::new(1, n as u64 + 1), vec![change.clone()]).unwrap();
            }
            world::universe().iter().map(|c| all.digest(c)).collect::<Vec<_>>()
        };
        let before = digests(&changes);
        dice.shuffle(&mut changes);
        prop_assert_eq!(before, digests(&changes));
    }

    /// Whatever a peer sends, neither side panics.
    #[test]
    fn wire_decode_takes_any_bytes(bytes: Vec<u8>, names in prop::collection::vec("[a-z/#%-]{0,20}", 0..4)) {
        let mut pair = Pair::new(vec![put_service(0, 80, Balance::PeakEwma)], &[service(0)]);
        if let Ok(request) = DeltaDiscoveryRequest::decode(&*bytes) {
            let _ = pair.session.on_request(Mono::ZERO, request);
        }
        let request = DeltaDiscoveryRequest {
            response_nonce: names.first().cloned().unwrap_or_default(),
            resource_names_subscribe: names.clone(),
            resource_names_unsubscribe: names.clone(),
            ..empty()
        };
        let _ = pair.session.on_request(Mono::ZERO, request);
        let resources = vec![Bytes::from(bytes), Resource { name: "x".into(), ..Default::default() }.encode_to_vec().into()];
        let response = DeltaDiscoveryResponse { resources, removed_resources: names, ..response() };
        let _ = pair.client.on_response(response, |set| world::build(set.fragments));
    }
}

fn response() -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse { type_url: weft_wire::fragment::TYPE_URL.into(), ..Default::default() }
}
