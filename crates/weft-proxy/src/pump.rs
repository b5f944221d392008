//! The one copy loop: any two byte streams, both ways, until both ended or one broke.
//!
//! An end is passed on as a half-close, a break as a reset, so a truncated stream never looks complete. No buffer is held
//! while the streams are idle: reads go through the worker's scratch, and only what the other side would not take at once
//! is kept.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::io::AsyncWrite;

use crate::{io::Io, record::REPORT_EVERY};

/// What went through, and how it ended.
#[derive(Debug)]
pub struct Pumped {
    /// Bytes from the first stream to the second, and back.
    pub forth: u64,
    pub back: u64,
    pub end: End,
}

#[derive(Debug)]
pub enum End {
    /// Both sides said that they were done.
    Closed,
    /// The first stream broke; the second was reset.
    FirstBroke(io::Error),
    SecondBroke(io::Error),
    /// Nothing moved for the idle limit; both were reset.
    Idle,
}

/// Who spoke first, for whoever asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoke {
    First,
    Second,
}

/// What whoever pumps may want to know meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Said once.
    Spoke(Spoke),
    /// Bytes so far: said every [`REPORT_EVERY`] in which some moved.
    Moved { forth: u64, back: u64 },
}

/// From here on a read counts as large.
const LARGE: usize = 16 * 1024;

#[derive(Default)]
struct Way {
    moved: u64,
    /// Read, not yet taken by the other side.
    rest: Bytes,
    /// The last read brought much: the next one will.
    large: bool,
    state: WayState,
}

#[derive(Default, PartialEq, Eq, Clone, Copy)]
enum WayState {
    #[default]
    Open,
    /// Written bytes may sit in a TLS session.
    Unflushed,
    Ended,
    Closed,
}

/// Which stream broke, seen from one way.
enum Broke {
    Source(io::Error),
    Sink(io::Error),
}

/// Copies both ways. `idle` of `None` never times out.
///
/// Cancelling it (a policy that now denies, a drain that ran out of time) leaves both streams to the caller, who resets them.
pub async fn pump(a: &mut Io, b: &mut Io, idle: Option<Duration>, event: &mut dyn FnMut(Event)) -> Pumped {
    let (mut forth, mut back) = (Way::default(), Way::default());
    let mut said = false;
    let mut reported = 0;
    // A long timer while nothing moves, a short one while something does; one at a time, never one per read.
    let mut moving = false;
    let end = loop {
        let copying = poll_fn(|cx| {
            let f = forth.poll(cx, a, b);
            let k = back.poll(cx, b, a);
            let moved = forth.moved + back.moved;
            if !said && moved > 0 {
                said = true;
                event(Event::Spoke(if forth.moved > 0 { Spoke::First } else { Spoke::Second }));
            }
            match (f, k) {
                (Poll::Ready(Err(Broke::Source(e))), _) | (_, Poll::Ready(Err(Broke::Sink(e)))) => {
                    Poll::Ready(Some(End::FirstBroke(e)))
                }
                (Poll::Ready(Err(Broke::Sink(e))), _) | (_, Poll::Ready(Err(Broke::Source(e)))) => {
                    Poll::Ready(Some(End::SecondBroke(e)))
                }
                (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Some(End::Closed)),
                _ if !moving && moved > reported => Poll::Ready(None),
                _ => Poll::Pending,
            }
        });
        let limit = if moving { Some(REPORT_EVERY) } else { idle };
        let ended = match limit {
            None => copying.await,
            Some(limit) => match tokio::time::timeout(limit, copying).await {
                Ok(ended) => ended,
                Err(_) if moving => {
                    let moved = forth.moved + back.moved;
                    moving = moved > reported;
                    if moving {
                        reported = moved;
                        event(Event::Moved { forth: forth.moved, back: back.moved });
                    }
                    continue;
                }
                Err(_) => break End::Idle,
            },
        };
        match ended {
            Some(end) => break end,
            None => moving = true,
        }
    };
    if !matches!(end, End::Closed) {
        a.reset_on_drop();
        b.reset_on_drop();
    }
    Pumped { forth: forth.moved, back: back.moved, end }
}

// === impl Way ===

impl Way {
    fn poll(&mut self, cx: &mut Context<'_>, from: &mut Io, to: &mut Io) -> Poll<Result<(), Broke>> {
        loop {
            while !self.rest.is_empty() {
                let n = ready!(to.poll_write_chunk(cx, &mut self.rest)).map_err(Broke::Sink)?;
                if n == 0 {
                    return Poll::Ready(Err(Broke::Sink(io::ErrorKind::WriteZero.into())));
                }
                self.moved += u64::try_from(n).unwrap_or(0);
                self.state = WayState::Unflushed;
            }
            match self.state {
                WayState::Closed => return Poll::Ready(Ok(())),
                WayState::Ended => {
                    ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(Broke::Sink)?;
                    ready!(shutdown(cx, to)).map_err(Broke::Sink)?;
                    self.state = WayState::Closed;
                }
                WayState::Open | WayState::Unflushed => match from.poll_chunk(cx, self.large) {
                    Poll::Ready(Ok(chunk)) if chunk.is_empty() => self.state = WayState::Ended,
                    Poll::Ready(Ok(chunk)) => {
                        self.large = chunk.len() >= LARGE;
                        self.rest = chunk;
                    }
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(Broke::Source(e))),
                    Poll::Pending => {
                        if self.state == WayState::Unflushed {
                            ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(Broke::Sink)?;
                            self.state = WayState::Open;
                        }
                        return Poll::Pending;
                    }
                },
            }
        }
    }
}

/// A peer that is gone needs no half-close any more: that is its end, not a break, when everything it sent was passed on.
fn shutdown(cx: &mut Context<'_>, to: &mut Io) -> Poll<io::Result<()>> {
    match Pin::new(to).poll_shutdown(cx) {
        Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
        other => other,
    }
}

#[cfg(test)]
mod tests;
