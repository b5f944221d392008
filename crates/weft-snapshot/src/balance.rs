//! Which endpoint takes the next request or connection? (features.md TRF-14; order: DESIGN section 6)
//!
//! A [`Pool`] is what the catalog says, built with the snapshot; a [`LoadView`] is what this worker measured. Tiers are
//! tried in order: passing → warning → unknown, each without what is ejected or de-preferred; then what was
//! de-preferred; then what was ejected. When fewer than half of the passing endpoints are left un-ejected, ejection is
//! ignored (it is then more likely that we are wrong than that they are). Critical, draining and maintenance never.
//!
//! By peak EWMA the cheaper of two draws wins, but an idle endpoint that is merely slower keeps a share that falls with its
//! slowness ([`share_of_slower`]): nobody who runs two versions of a service expects one of them to get nothing.

mod load;
mod pool;

use std::fmt;

use weft_model::{Health, Locality, Mono};

pub(crate) use self::pool::everything;
pub use self::{
    load::{Ewma, Load, LoadView},
    pool::{Member, Pool, Tier},
};
use crate::{fragment::Balance, route::Dice};

/// An endpoint's place in its service's list ([`crate::snapshot::ServiceView::endpoint`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointIx(pub u32);

/// Draws before the tier is searched in full.
const DRAWS: u32 = 8;
/// Draws of [`share_of_slower`] are that fine.
const SHARES: u32 = 1 << 16;
/// A connected endpoint wins over one that is not, but for one draw in this many, so that no endpoint starves.
const COLD_SHARE: u32 = 8;

/// What is asked of the balancer.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    pub now: Mono,
    /// Tried before, for this request: taken only when nothing else is left.
    pub avoid: &'a [EndpointIx],
    /// Never taken: they lead back to the proxy that asks.
    pub own: &'a [EndpointIx],
    /// Where the caller is: its zone is preferred while at least half of the zone's endpoints can be used.
    pub from: Option<&'a Locality>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Picked {
    pub ix: EndpointIx,
    pub why: Why,
}

/// How the endpoint was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Why {
    pub standing: Standing,
    /// The other candidate, if two were compared.
    pub over: Option<EndpointIx>,
    /// It is in the caller's zone, and only that zone was considered.
    pub zone: bool,
}

/// Which set the endpoint was taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Passing,
    /// More than half of the passing endpoints are ejected: ejection is ignored.
    Panic,
    Warning,
    Unknown,
    /// A connection to it failed, or it asked for less, a short while ago; nothing better is left.
    Depreferred,
    /// Nothing but ejected endpoints is left.
    Ejected,
}

/// Why an endpoint does not get the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skipped {
    Health(Health),
    WeightZero,
    /// It does not serve the port.
    NoPort,
    Ejected {
        until: Mono,
    },
    Depreferred {
        until: Mono,
    },
    /// Tried before, for this request.
    Tried,
    /// It leads back to the proxy that asks.
    Own,
}

/// 503, `UH`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct NoEndpoint {
    /// Empty: the service has no endpoints (in that subset).
    pub reasons: Vec<(EndpointIx, Skipped)>,
}

/// `load` has one entry per endpoint of the service; what is missing counts as unused.
pub fn pick(pool: &Pool, load: &LoadView, ask: &Ask<'_>, dice: &mut Dice<'_>) -> Result<Picked, NoEndpoint> {
    // One turn per question, however many sets it takes to answer it
    let turn = if pool.balance == Balance::RoundRobin { load.next_turn() } else { 0 };
    let question = Question { balance: pool.balance, load, ask, turn };
    let picked = |(ix, over), standing, zone| Ok(Picked { ix, why: Why { standing, over, zone } });
    if let Some(zone) = pool.local(load, ask) {
        let filter = Filter { eject: true, depref: true, avoid: true };
        if let Some(choice) = question.choose(zone, filter, dice) {
            return picked(choice, Standing::Passing, true);
        }
    }
    let panic = pool.panics(load, ask.now);
    // Endpoints that were tried are taken only when no other can be: all steps come once without and once with them
    for avoid in [true, false] {
        for (tier, standing, eject, depref) in steps(pool, panic) {
            if let Some(choice) = question.choose(tier, Filter { eject, depref, avoid }, dice) {
                return picked(choice, standing, false);
            }
        }
        if ask.avoid.is_empty() {
            break;
        }
    }
    Err(NoEndpoint { reasons: skipped(pool, load, ask).collect() })
}

/// Every endpoint that would not be picked now, with the reason: for the record of a decision.
pub fn skipped<'a>(
    pool: &'a Pool,
    load: &'a LoadView,
    ask: &'a Ask<'a>,
) -> impl Iterator<Item = (EndpointIx, Skipped)> + 'a {
    let live = pool.tiers.iter().flat_map(|t| t.members()).filter_map(|m| {
        let l = load.of(m.ix);
        let why = if ask.own.contains(&m.ix) {
            Skipped::Own
        } else if l.ejected_until > ask.now {
            Skipped::Ejected { until: l.ejected_until }
        } else if l.depreferred_until > ask.now {
            Skipped::Depreferred { until: l.depreferred_until }
        } else if ask.avoid.contains(&m.ix) {
            Skipped::Tried
        } else {
            return None;
        };
        Some((m.ix, why))
    });
    pool.excluded.iter().copied().chain(live)
}

// === impl NoEndpoint ===

impl NoEndpoint {
    /// What could be picked leads back to the proxy that asks, and nothing else is there.
    pub fn is_own(&self) -> bool {
        !self.reasons.is_empty() && self.reasons.iter().all(|(_, why)| *why == Skipped::Own)
    }
}

// === helpers ===

#[derive(Clone, Copy)]
struct Filter {
    eject: bool,
    depref: bool,
    avoid: bool,
}

/// In order: which tier, as what, without ejected ones?, without de-preferred ones?
fn steps(pool: &Pool, panic: bool) -> [(&Tier, Standing, bool, bool); 9] {
    let [passing, warning, unknown] = &pool.tiers;
    let first = if panic { Standing::Panic } else { Standing::Passing };
    [
        (passing, first, !panic, true),
        (warning, Standing::Warning, true, true),
        (unknown, Standing::Unknown, true, true),
        (passing, Standing::Depreferred, !panic, false),
        (warning, Standing::Depreferred, true, false),
        (unknown, Standing::Depreferred, true, false),
        (passing, Standing::Ejected, false, false),
        (warning, Standing::Ejected, false, false),
        (unknown, Standing::Ejected, false, false),
    ]
}

/// The chosen one, and the one that it was compared with.
type Choice = (EndpointIx, Option<EndpointIx>);

struct Question<'a> {
    balance: Balance,
    load: &'a LoadView,
    ask: &'a Ask<'a>,
    turn: u32,
}

impl Question<'_> {
    fn choose(&self, tier: &Tier, filter: Filter, dice: &mut Dice<'_>) -> Option<Choice> {
        if tier.members().is_empty() {
            return None;
        }
        let takes = |m: &Member| self.takes(*m, filter);
        match self.balance {
            Balance::Random => tier.draw(dice, DRAWS, &takes).map(|m| (m.ix, None)),
            Balance::RoundRobin => tier.turn(self.turn, &takes).map(|m| (m.ix, None)),
            Balance::PeakEwma | Balance::LeastRequest => {
                let first = tier.draw(dice, DRAWS, &takes)?;
                let second = tier.draw(dice, DRAWS, &|m| m.ix != first.ix && takes(m));
                let Some(second) = second else { return Some((first.ix, None)) };
                let (won, lost) = self.better(tier, first, second, dice);
                Some((won.ix, Some(lost.ix)))
            }
        }
    }

    fn takes(&self, m: Member, filter: Filter) -> bool {
        let l = self.load.of(m.ix);
        !(self.ask.own.contains(&m.ix)
            || filter.eject && l.ejected_until > self.ask.now
            || filter.depref && l.depreferred_until > self.ask.now
            || filter.avoid && self.ask.avoid.contains(&m.ix))
    }

    /// A tie goes to `a`, the first draw, which came by weight.
    fn better(&self, tier: &Tier, a: Member, b: Member, dice: &mut Dice<'_>) -> (Member, Member) {
        let (la, lb) = (self.load.of(a.ix), self.load.of(b.ix));
        if la.connected != lb.connected && dice(COLD_SHARE) != 0 {
            return if la.connected { (a, b) } else { (b, a) };
        }
        let cost = |m: Member, l: &Load| {
            let busy = 1.0 + f64::from(l.in_flight) * tier.mean_weight() / f64::from(m.weight);
            match self.balance {
                Balance::PeakEwma => busy * l.ewma.at(self.ask.now).max(1.0),
                _ => busy,
            }
        };
        let (ca, cb) = (cost(a, la), cost(b, lb));
        let (won, lost) = if cb < ca { (b, a) } else { (a, b) };
        // what is in flight there will tell anew how slow it is: only who is idle can be forgotten
        if self.balance == Balance::PeakEwma && ca != cb && self.load.of(lost.ix).in_flight == 0 {
            let weights = f64::from(won.weight) / f64::from(lost.weight);
            let share = share_of_slower(ca.min(cb), ca.max(cb), weights);
            if f64::from(dice(SHARES)) < share * f64::from(SHARES) {
                return (lost, won);
            }
        }
        (won, lost)
    }
}

/// Which share of its comparisons an idle endpoint gets that would always lose by its cost. `weights`: the other's weight
/// in units of its own.
///
/// Two choices alone starve the slower of few endpoints: with nothing in flight the faster one wins every time, be it by a
/// hair. Here each is worth its weight over the square of its cost: of equal weights, the one with r times the cost gets
/// 1/(1+r²), which is half for equals, a fifth for twice and a hundredth for ten times as slow. That bounds the price as
/// well: a request takes on average at most (√2-1)/2, about 21 %, longer than at the better of the two.
fn share_of_slower(better: f64, worse: f64, weights: f64) -> f64 {
    let ratio = worse / better;
    1.0 / (1.0 + weights * ratio * ratio)
}

// === text ===

impl fmt::Display for NoEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reasons.len() {
            0 => f.write_str("the service has no endpoints"),
            _ if self.is_own() => f.write_str("the only endpoint that is left leads back to this proxy"),
            n => write!(f, "none of {n} endpoints can be used"),
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Passing => "passing",
            Self::Panic => "passing, ejections ignored because they left fewer than half",
            Self::Warning => "warning",
            Self::Unknown => "unknown",
            Self::Depreferred => "de-preferred, nothing better was left",
            Self::Ejected => "ejected, nothing better was left",
        })
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Health(h) => write!(f, "{h}"),
            Self::WeightZero => f.write_str("has weight 0"),
            Self::NoPort => f.write_str("does not serve the port"),
            Self::Ejected { .. } => f.write_str("ejected after consecutive failures"),
            Self::Depreferred { .. } => f.write_str("failed to connect, or asked for less, a moment ago"),
            Self::Tried => f.write_str("tried already"),
            Self::Own => f.write_str("leads back to the proxy that asks"),
        }
    }
}

#[cfg(test)]
mod tests;
