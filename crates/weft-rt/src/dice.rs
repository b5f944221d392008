//! Randomness as an argument.

use crate::sys;

/// xoshiro256** seeded by splitmix64: fast, good enough for balancing and jitter, and never for keys.
#[derive(Clone, Debug)]
pub struct Dice([u64; 4]);

// === impl Dice ===

impl Dice {
    /// The same seed, the same throws.
    pub fn seeded(seed: u64) -> Self {
        let mut x = seed;
        Self(std::array::from_fn(|_| splitmix(&mut x)))
    }

    /// Seeded by the kernel. Where that fails, time and address space are what is left; nothing secret hangs on it.
    pub fn from_os() -> Self {
        let fallback = || u64::try_from(sys::boot_time().as_nanos()).unwrap_or(1) ^ u64::from(std::process::id()) << 32;
        Self::seeded(sys::random_u64().unwrap_or_else(|_| fallback()))
    }

    pub fn next_u64(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.0;
        let out = b.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= t;
        *d = d.rotate_left(45);
        out
    }

    /// Uniform in `0..n`; 0 for `n == 0`. (Multiply-shift: the bias is below 2⁻³² for every n that occurs.)
    pub fn below(&mut self, n: u64) -> u64 {
        let wide = u128::from(self.next_u64()) * u128::from(n);
        u64::try_from(wide >> 64).unwrap_or(0)
    }

    /// Uniform in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit a double exactly")]
        let x = (self.next_u64() >> 11) as f64;
        x / (1u64 << 53) as f64
    }

    /// An independent generator, for a worker or a task of its own.
    #[must_use]
    pub fn split(&mut self) -> Self {
        Self::seeded(self.next_u64())
    }
}

fn splitmix(x: &mut u64) -> u64 {
    *x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (*x ^ (*x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_same_throws_other_seed_others() {
        let throws = |seed| {
            let mut d = Dice::seeded(seed);
            (0..8).map(|_| d.next_u64()).collect::<Vec<_>>()
        };
        assert_eq!(throws(7), throws(7));
        assert_ne!(throws(7), throws(8));
    }

    #[test]
    fn spreads_evenly() {
        let mut d = Dice::seeded(1);
        let mut n = [0u32; 10];
        for _ in 0..10_000 {
            n[usize::try_from(d.below(10)).unwrap()] += 1;
            assert!((0.0..1.0).contains(&d.unit()));
        }
        assert!(n.iter().all(|n| (850..1150).contains(n)), "{n:?}");
        assert_eq!(d.below(0), 0);
        assert_eq!(d.below(1), 0);
    }
}
