//! How long an outbound connection waits for its client to speak, and which ports taught us not to.

use std::{collections::BTreeMap, time::Duration};

use weft_model::{Mono, Protocol, ServiceKey};

/// How long the client of an undeclared port may take before the tunnel opens (DESIGN section 6).
const RACE: Duration = Duration::from_millis(2);
/// How long "the server spoke first" is remembered.
const REMEMBERED: Duration = Duration::from_secs(600);
/// More (service, port) pairs than that are not remembered; the oldest go.
const MAX_KNOWN: usize = 4096;

/// What to do with an accepted outbound connection while it is silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// The protocol is declared to be HTTP: read its head, however long it takes.
    ForHead,
    /// Open the upstream now and carry bytes.
    Not,
    /// Peek; when this has passed without a byte, open the upstream and carry bytes.
    Race(Duration),
    /// Peek; when this has passed, warm an upstream connection, and go on peeking.
    Warm(Duration),
}

/// Ports on which the server was seen to speak first. It changes waiting, never policy.
#[derive(Debug, Default)]
pub struct ServerFirst {
    seen: BTreeMap<(ServiceKey, u16), Mono>,
}

/// `server_first`: what [`ServerFirst::knows`] says.
pub fn waiting(declared: Protocol, has_http_route: bool, server_first: bool) -> Waiting {
    match declared {
        Protocol::Http | Protocol::Http2 | Protocol::Grpc => Waiting::ForHead,
        Protocol::Tcp | Protocol::Tls => Waiting::Not,
        Protocol::Undeclared if server_first => Waiting::Not,
        Protocol::Undeclared if has_http_route => Waiting::Warm(RACE),
        Protocol::Undeclared => Waiting::Race(RACE),
    }
}

// === impl ServerFirst ===

impl ServerFirst {
    pub fn note(&mut self, service: &ServiceKey, port: u16, now: Mono) {
        self.seen.insert((service.clone(), port), now);
        if self.seen.len() > MAX_KNOWN {
            self.seen.retain(|_, at| now.since(*at) < REMEMBERED);
        }
        if self.seen.len() > MAX_KNOWN
            && let Some(oldest) = self.seen.iter().min_by_key(|(_, at)| **at).map(|(k, _)| k.clone())
        {
            self.seen.remove(&oldest);
        }
    }

    pub fn knows(&self, service: &ServiceKey, port: u16, now: Mono) -> bool {
        // The key is cloned (two counters) because a map of pairs cannot be asked by borrowed parts
        self.seen.get(&(service.clone(), port)).is_some_and(|at| now.since(*at) < REMEMBERED)
    }

    /// A declaration (`None`: of the whole service) ends the memory.
    pub fn forget(&mut self, service: &ServiceKey, port: Option<u16>) {
        self.seen.retain(|(s, p), _| s != service || port.is_some_and(|port| port != *p));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn l4t_04_a_declaration_is_believed_and_silence_is_bounded() {
        let check = |declared, route, known, want| assert_eq!(waiting(declared, route, known), want, "{declared:?}");
        check(Protocol::Http, false, true, Waiting::ForHead);
        check(Protocol::Grpc, false, false, Waiting::ForHead);
        check(Protocol::Tcp, true, false, Waiting::Not);
        check(Protocol::Tls, false, false, Waiting::Not);
        check(Protocol::Undeclared, false, false, Waiting::Race(RACE));
        check(Protocol::Undeclared, true, false, Waiting::Warm(RACE));
        check(Protocol::Undeclared, true, true, Waiting::Not);
    }

    #[test]
    fn l4t_04_memory_expires_and_is_cleared() {
        let (db, web) = ("shop/db".parse().unwrap(), "shop/web".parse().unwrap());
        let mut memory = ServerFirst::default();
        assert!(!memory.knows(&db, 3306, Mono::ZERO));
        memory.note(&db, 3306, Mono::secs(1));
        memory.note(&db, 3307, Mono::secs(1));
        assert!(memory.knows(&db, 3306, Mono::secs(600)));
        assert!(!memory.knows(&db, 3306, Mono::secs(601)));
        assert!(!memory.knows(&web, 3306, Mono::secs(2)));
        memory.forget(&db, Some(3306));
        assert!(!memory.knows(&db, 3306, Mono::secs(2)) && memory.knows(&db, 3307, Mono::secs(2)));
        memory.forget(&db, None);
        assert!(!memory.knows(&db, 3307, Mono::secs(2)));
    }

    #[test]
    fn memory_is_bounded() {
        let mut memory = ServerFirst::default();
        let db = "shop/db".parse().unwrap();
        for port in 0..5000 {
            memory.note(&db, port, Mono::millis(port.into()));
        }
        assert_eq!(memory.seen.len(), MAX_KNOWN);
        assert!(memory.knows(&db, 4999, Mono::secs(5)) && !memory.knows(&db, 0, Mono::secs(5)));
    }
}
