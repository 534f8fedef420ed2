//! Counter-based random numbers: a draw is a pure function of its key, `u = mix(… mix(mix(len + k₀) + k₁) …)`.
//!
//! There is no generator state, so a draw does not depend on how many came before it, on the thread, or on a resumed run. The mixing
//! step is the output function of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).

/// 2⁶⁴ divided by the golden ratio, made odd: the increment of SplitMix64.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// 64 uniform bits for `key`, for example `[seed, index]`. Keys of different lengths are independent of each other.
pub fn uniform_u64(key: &[u64]) -> u64 {
    key.iter().fold(mix((key.len() as u64).wrapping_add(GOLDEN)), |state, &word| mix(state.wrapping_add(GOLDEN) ^ mix(word)))
}

/// A uniform integer in `[0, n)` for `key`, without modulo bias; 0 when `n` is 0.
///
/// Takes the high word of the 128-bit product and redraws while the low word falls in the part that `n` does not divide evenly
/// (Lemire, "Fast random integer generation in an interval", 2019).
pub fn uniform_below(key: &[u64], n: u64) -> u64 {
    if n == 0 {
        return 0;
    }
    let uneven = n.wrapping_neg() % n;
    let first = uniform_u64(key);
    let mut attempt = 0u64;
    loop {
        let draw = if attempt == 0 { first } else { mix(first.wrapping_add(attempt.wrapping_mul(GOLDEN))) };
        let product = u128::from(draw) * u128::from(n);
        if product as u64 >= uneven {
            return (product >> 64) as u64;
        }
        attempt += 1;
    }
}

fn mix(state: u64) -> u64 {
    let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published test vector of SplitMix64 with the seed 1234567.
    #[test]
    fn mixes_as_splitmix64() {
        let published = [6457827717110365317u64, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821];
        let drawn: Vec<u64> = (1..=5u64).map(|i| mix(1234567u64.wrapping_add(i.wrapping_mul(GOLDEN)))).collect();
        assert_eq!(drawn, published);
    }

    #[test]
    fn every_word_and_the_length_of_a_key_count() {
        let keys: [&[u64]; 7] = [&[], &[0], &[0, 0], &[1], &[0, 1], &[1, 0], &[1, 1]];
        let drawn: std::collections::BTreeSet<u64> = keys.iter().map(|key| uniform_u64(key)).collect();
        assert_eq!(drawn.len(), keys.len());
        assert_eq!(uniform_u64(&[3, 4]), uniform_u64(&[3, 4]));
    }

    #[test]
    fn draws_below_n_are_even() {
        let mut counts = [0i64; 7];
        for index in 0..70_000 {
            counts[uniform_below(&[5, index], 7) as usize] += 1;
        }
        // Five standard deviations of a binomial count with mean 10 000.
        assert!(counts.iter().all(|count| (count - 10_000).abs() < 470), "{counts:?}");
    }

    #[test]
    fn the_ends_of_the_range() {
        assert_eq!(uniform_below(&[1], 0), 0);
        assert_eq!(uniform_below(&[1], 1), 0);
        // Nearly half of all first draws are rejected for this n, so the redraw is exercised.
        let n = (1u64 << 63) + 1;
        assert!((0..1000).all(|index| uniform_below(&[index], n) < n));
    }
}
