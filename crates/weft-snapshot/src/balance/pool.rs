//! The endpoints of one service, port and subset, sorted by what may be picked; built with the snapshot.

use weft_model::{Health, Labels, Locality, Mono};

use super::{Ask, Dice, EndpointIx, LoadView, Skipped};
use crate::fragment::{Balance, Endpoint};

/// So that a sum of weights fits the dice.
const MAX_WEIGHT: u32 = 1 << 16;

#[derive(Debug, Clone)]
pub struct Pool {
    pub balance: Balance,
    /// Passing, warning, unknown.
    pub(super) tiers: [Tier; 3],
    /// Passing ones by zone, where a zone is known and there are several.
    zones: Vec<(Locality, Tier)>,
    /// What is never picked.
    pub(super) excluded: Vec<(EndpointIx, Skipped)>,
}

/// Members with their running sum of weights.
#[derive(Debug, Clone, Default)]
pub struct Tier {
    members: Vec<Member>,
    sums: Vec<u64>,
    total: u64,
    /// Coprime to `total`: steps of this size visit every position once.
    stride: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    pub ix: EndpointIx,
    pub weight: u32,
}

// === impl Pool ===

impl Pool {
    /// Of the endpoints (in their service's order), those that serve `port` and carry the labels of `subset`.
    pub fn build<'a>(
        balance: Balance,
        endpoints: impl Iterator<Item = &'a Endpoint>,
        port: u16,
        subset: &Labels,
    ) -> Self {
        let mut members: [Vec<Member>; 3] = Default::default();
        let mut zones: Vec<(Locality, Vec<Member>)> = Vec::new();
        let mut excluded = Vec::new();
        for (ix, e) in (0..).map(EndpointIx).zip(endpoints) {
            if !subset.0.iter().all(|(k, v)| e.labels.0.get(k) == Some(v)) {
                continue;
            }
            match tier_of(e, port) {
                Err(why) => excluded.push((ix, why)),
                Ok(tier) => {
                    let member = Member { ix, weight: e.weight.min(MAX_WEIGHT) };
                    let [passing, warning, unknown] = &mut members;
                    match tier {
                        Health::Passing => passing.push(member),
                        Health::Warning => warning.push(member),
                        _ => unknown.push(member),
                    }
                    if tier == Health::Passing && !e.locality.zone.is_empty() {
                        match zones.iter_mut().find(|(z, _)| *z == e.locality) {
                            Some((_, list)) => list.push(member),
                            None => zones.push((e.locality.clone(), vec![member])),
                        }
                    }
                }
            }
        }
        let all_in_one = matches!(zones.as_slice(), [(_, list)] if list.len() == members[0].len());
        if all_in_one {
            zones.clear();
        }
        Self {
            balance,
            tiers: members.map(Tier::new),
            zones: zones.into_iter().map(|(z, list)| (z, Tier::new(list))).collect(),
            excluded,
        }
    }

    /// Can anything be picked, whatever the load?
    pub fn is_empty(&self) -> bool {
        self.tiers.iter().all(|t| t.members.is_empty())
    }

    /// All that may be picked, best first.
    pub fn members(&self) -> impl Iterator<Item = Member> {
        self.tiers.iter().flat_map(|t| &t.members).copied()
    }

    /// Fewer than half of the passing endpoints are not ejected.
    pub(super) fn panics(&self, load: &LoadView, now: Mono) -> bool {
        let [passing, ..] = &self.tiers;
        passing.usable(load, now) * 2 < passing.members.len()
    }

    /// The passing endpoints of the caller's zone, while at least half of them can be used.
    pub(super) fn local(&self, load: &LoadView, ask: &Ask<'_>) -> Option<&Tier> {
        let from = ask.from.filter(|l| !l.zone.is_empty())?;
        let (_, tier) = self.zones.iter().find(|(z, _)| z == from)?;
        let usable = tier.usable(load, ask.now);
        (usable > 0 && usable * 2 >= tier.members.len()).then_some(tier)
    }
}

fn tier_of(e: &Endpoint, port: u16) -> Result<Health, Skipped> {
    if !e.health.is_pickable() {
        return Err(Skipped::Health(e.health));
    }
    if e.weight == 0 {
        return Err(Skipped::WeightZero);
    }
    if !e.ports.contains_key(&port) {
        return Err(Skipped::NoPort);
    }
    Ok(e.health)
}

// === impl Tier ===

impl Tier {
    fn new(members: Vec<Member>) -> Self {
        let mut total = 0_u64;
        let sums = members
            .iter()
            .map(|m| {
                total += u64::from(m.weight);
                total
            })
            .collect();
        Self { stride: stride(&members, total), members, sums, total }
    }

    pub fn members(&self) -> &[Member] {
        &self.members
    }

    pub(super) fn mean_weight(&self) -> f64 {
        self.total as f64 / self.members.len().max(1) as f64
    }

    fn usable(&self, load: &LoadView, now: Mono) -> usize {
        self.members.iter().filter(|m| load.of(m.ix).ejected_until <= now).count()
    }

    /// One member by weight among those that `takes` accepts: a few draws, then a search.
    pub(super) fn draw(&self, dice: &mut Dice<'_>, draws: u32, takes: &dyn Fn(&Member) -> bool) -> Option<Member> {
        let mut roll = || match u32::try_from(self.total) {
            Ok(0..=1) => 0,
            Ok(n) => u64::from(dice(n)),
            Err(_) => u64::from(dice(u32::MAX)).saturating_mul(self.total) >> 32,
        };
        for _ in 0..draws {
            if let Some(m) = self.at(roll()).filter(takes) {
                return Some(m);
            }
        }
        let total: u64 = self.members.iter().filter(|m| takes(m)).map(|m| u64::from(m.weight)).sum();
        let mut rest = match u32::try_from(total) {
            Ok(0..=1) => 0,
            Ok(n) => u64::from(dice(n)),
            Err(_) => u64::from(dice(u32::MAX)).saturating_mul(total) >> 32,
        };
        self.members.iter().filter(|m| takes(m)).copied().find(|m| {
            let here = rest < u64::from(m.weight);
            rest = rest.saturating_sub(u64::from(m.weight));
            here
        })
    }

    /// The member of this turn, by weight; the next one that `takes` accepts if it is not.
    pub(super) fn turn(&self, turn: u32, takes: &dyn Fn(&Member) -> bool) -> Option<Member> {
        let position = u64::from(turn).wrapping_mul(self.stride).checked_rem(self.total)?;
        let first = self.sums.partition_point(|s| *s <= position);
        let (before, after) = self.members.split_at_checked(first)?;
        after.iter().chain(before).copied().find(takes)
    }

    fn at(&self, position: u64) -> Option<Member> {
        self.members.get(self.sums.partition_point(|s| *s <= position)).copied()
    }
}

/// Equal weights take turns one after the other; others are spread by about the golden ratio.
fn stride(members: &[Member], total: u64) -> u64 {
    let equal = members.first().is_some_and(|f| members.iter().all(|m| m.weight == f.weight));
    if equal {
        return members.first().map_or(1, |m| m.weight.into());
    }
    let golden = (total as f64 * 0.618_033_988_75) as u64;
    (golden.max(1)..).find(|s| gcd(*s, total) == 1).unwrap_or(1)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Labels that no endpoint is filtered by.
pub(crate) fn everything() -> &'static Labels {
    static ALL: std::sync::LazyLock<Labels> = std::sync::LazyLock::new(Labels::default);
    &ALL
}
