//! A server's session and a client's state under whatever a peer may send, while the world goes on.

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use weft_model::{Mono, Revision};
use weft_wire::{
    delta::{Change, Client, Collections, Event, Limits, Session},
    name::{EntryName, parse_collection},
    pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
};

/// What is published and subscribed to; their contents are the input's.
const COLLECTIONS: [&str; 3] = ["service/default/a", "bundle/example.org", "revocations"];

struct World {
    now: Mono,
    all: Collections,
    revision: Revision,
    /// One that is told whatever the input says, and one whose peer keeps to the protocol.
    session: Session,
    honest: Session,
    client: Client,
    /// One whose server sends whatever the input says.
    misled: Client,
}

/// Steps of one byte that says what, two of length, and so many of content.
pub fn run(data: &[u8]) {
    let mut world = World::new();
    let mut rest = data;
    while let Some(([what, high, low], after)) = rest.split_first_chunk() {
        let (content, after) = after.split_at(usize::from(u16::from_be_bytes([*high, *low])).min(after.len()));
        rest = after;
        world.step(*what, Bytes::copy_from_slice(content));
        world.check();
    }
}

impl World {
    fn new() -> Self {
        let [mut client, mut misled] = ["honest", "misled"].map(Client::new);
        let all = || COLLECTIONS.iter().filter_map(|name| parse_collection(name).ok());
        client.subscribe(all());
        misled.subscribe(all());
        let mut honest = Session::new(2, Limits::default());
        assert_eq!(honest.on_request(Mono::ZERO, client.connect()), Ok(()));
        let _ = misled.connect();
        Self {
            now: Mono::ZERO,
            all: Collections::new(),
            revision: Revision::new(1, 0),
            session: Session::new(1, Limits::default()),
            honest,
            client,
            misled,
        }
    }

    fn step(&mut self, what: u8, content: Bytes) {
        match what % 5 {
            0 => {
                let refused =
                    DeltaDiscoveryRequest::decode(content).map(|r| self.session.on_request(self.now, r).is_err());
                if refused == Ok(true) {
                    self.session = Session::new(1, Limits::default());
                }
            }
            1 => self.publish(&content),
            2 => self.deliver(),
            3 => self.now = self.now.plus(Duration::from_millis(content.first().copied().map_or(20, u64::from) * 8)),
            _ => {
                if let Ok(response) = DeltaDiscoveryResponse::decode(content) {
                    let _ = self.misled.on_response(response, |_| Ok(()));
                }
            }
        }
        let polled = self.session.poll(self.now, &self.all, &|_| true);
        for response in polled.send {
            // what a server of ours says is understood, whoever asked for it
            assert!(self.misled.on_response(response, |_| Ok(())).is_ok());
        }
    }

    /// The first byte chooses the collection, and whether it goes.
    fn publish(&mut self, content: &Bytes) {
        let choice = usize::from(content.first().copied().unwrap_or_default());
        let Some(collection) = COLLECTIONS.get(choice % 4).and_then(|name| parse_collection(name).ok()) else { return };
        let name = EntryName { collection, entry: None };
        let change = match choice & 0x80 {
            0 => Change::Put(name, content.slice(content.len().min(1)..)),
            _ => Change::Remove(name),
        };
        self.revision = Revision::new(self.revision.incarnation, self.revision.n + 1);
        assert!(self.all.apply(self.revision, vec![change]).is_ok(), "contents are small");
    }

    /// Between two that keep to the protocol nothing is refused but contents that are no fragments.
    fn deliver(&mut self) {
        for response in self.honest.poll(self.now, &self.all, &|_| true).send {
            let answered = self.client.on_response(response, |_| Ok(()));
            let Ok((answer, event)) = answered else { unreachable!("it is connected and served its own type") };
            assert_eq!(self.honest.on_request(self.now, answer), Ok(()));
            if let Event::Applied { commit, .. } = event {
                assert!(commit.revision <= self.revision, "applied before it was");
            }
        }
    }

    fn check(&self) {
        assert_eq!(self.all.check_invariants(), Ok(()));
        for session in [&self.session, &self.honest] {
            assert_eq!(session.check_invariants(), Ok(()));
        }
        for client in [&self.client, &self.misled] {
            assert_eq!(client.check_invariants(), Ok(()));
        }
    }
}
