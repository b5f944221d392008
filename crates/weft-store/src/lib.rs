//! Revisioned keys and watches: memory and redb behind one conformance suite.
