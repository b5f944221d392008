//! A decision in sentences.

use std::fmt::Write as _;

use super::{Decision, Direction, Pick, Policy, Route, Spoken, Teller, Try};
use crate::failure::Sent;

/// For people: what happened, by which rule, and what to look at. One sentence per line.
pub fn explain(d: &Decision) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail
    let _ = write!(out, "{}", Sentences(d));
    out
}

struct Sentences<'a>(&'a Decision);

impl std::fmt::Display for Sentences<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let d = self.0;
        opening(d, f)?;
        match &d.route {
            Route::NotAsked => {}
            Route::Default => f.write_str("No route is attached: it goes to the service itself.\n")?,
            Route::Rule(rule) => writeln!(f, "Route {rule} matched.")?,
            Route::NotFound => f.write_str("Routes are attached to the service and none of them matches.\n")?,
        }
        match &d.policy {
            Policy::NotAsked => {}
            Policy::Allowed { rule: Some(rule), why } => writeln!(f, "Allowed by {rule}: {why}.")?,
            Policy::Allowed { rule: None, why } => writeln!(f, "Allowed: {why}.")?,
            Policy::Denied { rule: Some(rule), why } => writeln!(f, "Denied by {rule}: {why}.")?,
            Policy::Denied { rule: None, why } => writeln!(f, "Denied: {why}.")?,
        }
        if let Some(pick) = &d.pick {
            picking(pick, f)?;
        }
        if d.attempts > 1 {
            writeln!(f, "It was tried {} times.", d.attempts)?;
            for (n, t) in (1..).zip(&d.tries) {
                trying(n, t, f)?;
            }
        }
        if let Some(why) = d.gave_up.filter(|_| d.failure.is_some()) {
            writeln!(f, "No further try was made: {why}.")?;
        }
        ending(d, f)
    }
}

fn opening(d: &Decision, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
    let what = match d.protocol {
        Spoken::Http => "request",
        Spoken::Tcp => "connection",
    };
    let way = match d.direction {
        Direction::Inbound => "came in",
        Direction::Outbound => "went out",
    };
    write!(f, "{}: {what} {} {way}", d.at, d.request)?;
    match &d.source {
        Some(id) => write!(f, " from {id}")?,
        None => f.write_str(" from a peer without an identity")?,
    }
    if let Some((service, port)) = &d.service {
        write!(f, " for {service}:{port}")?;
    }
    if let Some(id) = &d.destination {
        write!(f, " to {id}")?;
    }
    f.write_str(".\n")
}

fn picking(pick: &Pick, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
    match &pick.chosen {
        Some(c) => {
            write!(f, "Endpoint {} at {} was picked ({})", c.uid, c.address, c.standing)?;
            match &c.over {
                Some(other) => writeln!(f, " over {other}.")?,
                None => f.write_str(".\n")?,
            }
        }
        None if pick.skipped.is_empty() && pick.others == 0 => f.write_str("The service has no endpoints.\n")?,
        None => f.write_str("No endpoint could be picked.\n")?,
    }
    for (uid, why) in &pick.skipped {
        writeln!(f, "Endpoint {uid} was passed over: {why}.")?;
    }
    match pick.others {
        0 => Ok(()),
        n => writeln!(f, "So were {n} others."),
    }
}

fn trying(n: usize, t: &Try, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
    write!(f, "Try {n} went to {} at {} ({}) and ", t.endpoint, t.address, t.standing)?;
    match (t.failure, t.status) {
        (Some(kind), _) => write!(f, "failed: {} ({kind})", kind.sentence())?,
        (None, 0) => f.write_str("was connected")?,
        (None, status) => write!(f, "was answered {status}")?,
    }
    if t.failure.is_some() && t.sent == Sent::NotSent {
        f.write_str(", nothing of it had been sent")?;
    }
    write!(f, ", after {} ms", t.took.as_millis())?;
    match &t.detail {
        Some(detail) => writeln!(f, ": {detail}."),
        None => f.write_str(".\n"),
    }
}

fn ending(d: &Decision, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
    match (d.failure, d.protocol) {
        (Some(kind), Spoken::Http) => {
            write!(
                f,
                "It was answered {} by {} ({}, {}): {}",
                d.status,
                match d.teller {
                    Teller::Proxy => "the proxy itself",
                    Teller::FarProxy => "the endpoint's proxy",
                    Teller::Application => "the application",
                },
                kind.flag(),
                kind,
                kind.sentence()
            )?;
        }
        (Some(kind), Spoken::Tcp) => {
            write!(f, "It was ended by the proxy itself ({}, {}): {}", kind.flag(), kind, kind.sentence())?;
        }
        (None, Spoken::Http) => write!(f, "It was answered {}", d.status)?,
        (None, Spoken::Tcp) => f.write_str("It was carried to its end")?,
    }
    writeln!(f, ", at revision {}.", d.revision)
}

#[cfg(test)]
mod tests;
