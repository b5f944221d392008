//! Counting: one catalogue of metrics, handles that count without a lock, and the text that scrapers read.
//!
//! A series is looked up under a lock once; the handle that comes back is a few atomics. Each worker counts in its own
//! [`Shard`], so that no two of them write to the same cache line; a scrape adds the shards up.

mod catalogue;
mod process;
mod text;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};

pub use self::{
    catalogue::{
        Bounds, Desc, HTTP_LABELS, Kind, Label, MILLISECONDS, Metric, SIZES, TCP_LABELS, Unit, Where, document,
    },
    process::observe_process,
    text::{Format, Number},
};

/// Series of one metric that are kept apart. Beyond it names become [`UNKNOWN`].
pub const MAX_SERIES: usize = 2000;

/// Where a label's value is not known, or there are too many.
pub const UNKNOWN: &str = "unknown";

/// Every series of a process.
pub struct Registry {
    /// In the order of [`Metric::ALL`].
    families: Box<[Mutex<Family>]>,
    collectors: Mutex<Vec<Collector>>,
    shards: AtomicU32,
}

/// Reads at scrape time what nobody counts.
type Collector = Box<dyn Fn(&mut Samples) + Send + Sync>;

#[derive(Default)]
struct Family {
    series: BTreeMap<Values, Series>,
    folded: u64,
}

/// One per label of the metric, in its order.
type Values = Box<[Arc<str>]>;

/// The part of each shard that counts in it.
type Series = Vec<(u32, Arc<Cells>)>;

/// A counter or gauge is one number; a histogram is its buckets and their sum.
#[derive(Default)]
struct Cells {
    value: AtomicU64,
    buckets: Box<[AtomicU64]>,
}

/// One worker's part of the registry.
#[derive(Clone)]
pub struct Shard {
    registry: Arc<Registry>,
    id: u32,
}

#[derive(Clone)]
pub struct Counter(Arc<Cells>);

/// The sum of what all shards added.
#[derive(Clone)]
pub struct Gauge(Arc<Cells>);

#[derive(Clone)]
pub struct Histogram {
    cells: Arc<Cells>,
    bounds: &'static Bounds,
}

/// What collectors say.
#[derive(Default)]
pub struct Samples(BTreeMap<Metric, Vec<(Vec<String>, Number)>>);

// === impl Registry ===

impl Registry {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            families: Metric::ALL.iter().map(|_| Mutex::default()).collect(),
            collectors: Mutex::default(),
            shards: AtomicU32::new(1),
        })
    }

    /// A part of its own, for one thread.
    pub fn shard(self: &Arc<Self>) -> Shard {
        Shard { registry: self.clone(), id: self.shards.fetch_add(1, Relaxed) }
    }

    /// In the part that everybody shares. `values`: one per label of the metric, in its order.
    pub fn counter(&self, metric: Metric, values: &[&str]) -> Counter {
        Counter(self.cells(metric, values, 0))
    }

    pub fn gauge(&self, metric: Metric, values: &[&str]) -> Gauge {
        Gauge(self.cells(metric, values, 0))
    }

    pub fn histogram(&self, metric: Metric, values: &[&str]) -> Histogram {
        Histogram::new(metric, self.cells(metric, values, 0))
    }

    /// `collect` is called at every scrape.
    pub fn collect(&self, collect: impl Fn(&mut Samples) + Send + Sync + 'static) {
        lock(&self.collectors).push(Box::new(collect));
    }

    /// Everything, for a scraper.
    pub fn render(&self, format: Format) -> String {
        let mut collected = Samples::default();
        for collect in lock(&self.collectors).iter() {
            collect(&mut collected);
        }
        for (metric, family) in Metric::ALL.iter().zip(&self.families) {
            let folded = lock(family).folded;
            if folded > 0 {
                collected.push(Metric::Folded, &[metric.desc().name], folded);
            }
        }
        let mut out = String::with_capacity(64 * 1024);
        for (metric, family) in Metric::ALL.iter().zip(&self.families) {
            let d = metric.desc();
            let told = collected.0.get(metric).map(Vec::as_slice).unwrap_or_default();
            let family = lock(family);
            if family.series.is_empty() && told.is_empty() {
                continue;
            }
            text::header(&mut out, d, format);
            for (values, shards) in &family.series {
                write_series(&mut out, d, values, shards);
            }
            for (values, number) in told {
                text::sample(&mut out, d, values, *number);
            }
        }
        if format == Format::OpenMetrics {
            out.push_str("# EOF\n");
        }
        out
    }

    fn cells(&self, metric: Metric, values: &[&str], shard: u32) -> Arc<Cells> {
        let d = metric.desc();
        debug_assert_eq!(values.len(), d.labels.len(), "labels of {}", d.name);
        let key = |folded: bool| -> Values {
            let value = |(i, label): (usize, &Label)| match values.get(i) {
                Some(v) if !folded || label.is_closed() => Arc::from(*v),
                _ => Arc::from(UNKNOWN),
            };
            d.labels.iter().enumerate().map(value).collect()
        };
        let Some(family) = self.families.get(metric as usize) else { return Arc::default() };
        let mut family = lock(family);
        let mut at = key(false);
        if family.series.len() >= MAX_SERIES && !family.series.contains_key(&at) {
            family.folded += 1;
            at = key(true);
        }
        let shards = family.series.entry(at).or_default();
        if let Some((_, cells)) = shards.iter().find(|(id, _)| *id == shard) {
            return cells.clone();
        }
        let buckets = match d.kind {
            Kind::Histogram(b) => b.fine.len() + 1,
            Kind::Counter | Kind::Gauge => 0,
        };
        let cells =
            Arc::new(Cells { value: AtomicU64::new(0), buckets: (0..buckets).map(|_| AtomicU64::new(0)).collect() });
        shards.push((shard, cells.clone()));
        cells
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

fn write_series(out: &mut String, d: &Desc, values: &[Arc<str>], shards: &[(u32, Arc<Cells>)]) {
    let sum = shards.iter().fold(0_u64, |sum, (_, c)| sum.wrapping_add(c.value.load(Relaxed)));
    match d.kind {
        Kind::Counter => text::sample(out, d, values, Number::Whole(sum)),
        // added to as two's complement
        Kind::Gauge => text::sample(out, d, values, Number::Real(sum.cast_signed() as f64)),
        Kind::Histogram(bounds) => {
            let mut buckets = vec![0_u64; bounds.fine.len() + 1];
            for (_, cells) in shards {
                cells.add_buckets(&mut buckets);
            }
            text::histogram(out, d, bounds, values, &buckets, sum);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Cells ===

impl Cells {
    fn add_buckets(&self, to: &mut [u64]) {
        for (sum, n) in to.iter_mut().zip(&self.buckets) {
            *sum += n.load(Relaxed);
        }
    }
}

// === impl Shard ===

impl Shard {
    /// Its number in the process.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The same handle for the same values, always.
    pub fn counter(&self, metric: Metric, values: &[&str]) -> Counter {
        Counter(self.registry.cells(metric, values, self.id))
    }

    pub fn gauge(&self, metric: Metric, values: &[&str]) -> Gauge {
        Gauge(self.registry.cells(metric, values, self.id))
    }

    pub fn histogram(&self, metric: Metric, values: &[&str]) -> Histogram {
        Histogram::new(metric, self.registry.cells(metric, values, self.id))
    }
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Shard").field(&self.id).finish()
    }
}

// === impl Counter, Gauge, Histogram ===

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.value.fetch_add(n, Relaxed);
    }

    /// What this shard counted.
    pub fn get(&self) -> u64 {
        self.0.value.load(Relaxed)
    }

    /// Of its series in this shard: two handles count in one when their names were folded.
    pub fn series_id(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }
}

impl Gauge {
    pub fn add(&self, n: i64) {
        self.0.value.fetch_add(n.cast_unsigned(), Relaxed);
    }

    pub fn set(&self, n: i64) {
        self.0.value.store(n.cast_unsigned(), Relaxed);
    }

    pub fn get(&self) -> i64 {
        self.0.value.load(Relaxed).cast_signed()
    }
}

impl Histogram {
    fn new(metric: Metric, cells: Arc<Cells>) -> Self {
        let bounds = match metric.desc().kind {
            Kind::Histogram(bounds) => bounds,
            // no buckets, no harm: it only sums
            Kind::Counter | Kind::Gauge => &SIZES,
        };
        Self { cells, bounds }
    }

    /// In ticks of the metric's bounds: microseconds for durations, bytes for sizes.
    pub fn observe(&self, ticks: u64) {
        let at = self.bounds.fine.partition_point(|bound| *bound < ticks);
        if let Some(bucket) = self.cells.buckets.get(at) {
            bucket.fetch_add(1, Relaxed);
        }
        self.cells.value.fetch_add(ticks, Relaxed);
    }

    /// Adds what this shard counted to `to`: one number per fine bound, and one for what lies beyond.
    pub fn add_to(&self, to: &mut Vec<u64>) {
        to.resize(to.len().max(self.bounds.fine.len() + 1), 0);
        self.cells.add_buckets(to);
    }

    /// In ticks, what this shard counted.
    pub fn sum(&self) -> u64 {
        self.cells.value.load(Relaxed)
    }
}

macro_rules! debug_as_number {
    ($($t:ty),*) => {$(
        impl fmt::Debug for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.get())
            }
        }
    )*};
}
debug_as_number!(Counter, Gauge);

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sum {}", self.cells.value.load(Relaxed))
    }
}

// === impl Samples ===

impl Samples {
    pub fn push(&mut self, metric: Metric, values: &[&str], number: impl Into<Number>) {
        debug_assert_eq!(values.len(), metric.desc().labels.len(), "labels of {}", metric.desc().name);
        let values = values.iter().map(|v| (*v).into()).collect();
        self.0.entry(metric).or_default().push((values, number.into()));
    }
}

#[cfg(test)]
mod tests;
