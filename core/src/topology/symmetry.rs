//! Changes of basis of a region's channels.
//!
//! A symmetry is a matrix `M` acting on the channels of a region, `x ↦ x·M`: `diag(s)`, a permutation, or an orthogonal matrix. What
//! a region allows is a fact of the architecture ([`super::Allows`]); a symmetry that is not allowed would change the function.

use std::fmt;

use candle_core::{DType, Device, Tensor};

use super::{Region, Tie};
use crate::error::{Error, ErrorKind, Result};

/// A change of basis of the channels of a region. `kv` below is the number of key/value heads and `w` the channels of one.
#[derive(Clone, Debug)]
pub enum Symmetry {
    /// `x'[i] = s[i]·x[i]`: one positive factor for each of the region's `width` channels.
    ///
    /// Where query heads share key/value heads there are `kv·w` factors, those of the key/value heads. On the side of the queries
    /// (rows of q, columns of o) query head `h` takes the factors of key/value head `⌊h/repeat⌋`.
    Diagonal(Vec<f64>),
    /// `x'[i] = x[p[i]]`: a permutation of the region's `width` channels. Per head it maps every head onto itself, and the query heads
    /// follow as for a diagonal.
    Permutation(Vec<u32>),
    /// `x' = x·R`, `R` of shape `[width, width]`; per head `x'_g = x_g·R_g`, shape `[kv, w, w]`. Any float type; used as f64.
    Orthogonal(Tensor),
}

/// The three kinds of symmetry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`Symmetry::Diagonal`]
    Diagonal,
    /// [`Symmetry::Permutation`]
    Permutation,
    /// [`Symmetry::Orthogonal`]
    Orthogonal,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Diagonal, Self::Permutation, Self::Orthogonal];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Diagonal => "a scaling",
            Self::Permutation => "a permutation",
            Self::Orthogonal => "a rotation",
        })
    }
}

impl Region {
    /// How freely a symmetry of that kind may be chosen here.
    pub fn tie(&self, kind: Kind) -> Tie {
        match kind {
            Kind::Diagonal => self.allows.diagonal,
            Kind::Permutation => self.allows.permutation,
            Kind::Orthogonal => self.allows.orthogonal,
        }
    }
}

impl Symmetry {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Diagonal(_) => Kind::Diagonal,
            Self::Permutation(_) => Kind::Permutation,
            Self::Orthogonal(_) => Kind::Orthogonal,
        }
    }

    /// Whether it is one of the symmetries that `region` allows: the kind, the size, the ties, and that it is what it claims to be.
    ///
    /// # Errors
    /// If not, naming the region and the first channel at fault.
    pub fn validate(&self, region: &Region) -> Result<()> {
        let tie = region.tie(self.kind());
        if tie == Tie::Never {
            return Err(not_allowed(self.kind(), region));
        }
        match self {
            Self::Diagonal(s) => diagonal(s, region, tie),
            Self::Permutation(p) => permutation(p, region, tie),
            Self::Orthogonal(r) => orthogonal(r, region, tie),
        }
    }
}

fn not_allowed(kind: Kind, region: &Region) -> Error {
    let allowed: Vec<String> = Kind::ALL.into_iter().filter(|k| region.tie(*k) != Tie::Never).map(|k| k.to_string()).collect();
    let allowed = if allowed.is_empty() { "nothing".to_owned() } else { allowed.join(", ") };
    let message = format!("`{}` does not allow {kind}: it would change what the model computes", region.id);
    Error::new(ErrorKind::Plugin, "topology::not-allowed", message).hint(format!("`{}` allows {allowed}", region.id))
}

fn bad(region: &Region, message: impl fmt::Display) -> Error {
    Error::new(ErrorKind::Plugin, "topology::symmetry", format!("`{}`: {message}", region.id))
}

fn size(region: &Region, what: &str, n: usize) -> Result<()> {
    if n == region.width {
        return Ok(());
    }
    Err(bad(region, format!("{what} of {n} entries for {} channels", region.width)))
}

fn diagonal(s: &[f64], region: &Region, tie: Tie) -> Result<()> {
    size(region, "a scaling", s.len())?;
    if let Some(i) = s.iter().position(|x| !(x.is_finite() && *x > 0.0)) {
        return Err(bad(region, format!("the factor of channel {i} is {}, not finite and positive", s[i])));
    }
    let Tie::PerRopePair { width, rotated, .. } = tie else { return Ok(()) };
    for i in 0..s.len() {
        let (head, c) = (i / width * width, i % width);
        if c < rotated / 2 && s[i] != s[head + c + rotated / 2] {
            let other = head + c + rotated / 2;
            return Err(bad(region, format!("channels {i} and {other} are rotated together, but have factors {} and {}", s[i], s[other])));
        }
    }
    Ok(())
}

fn permutation(p: &[u32], region: &Region, tie: Tie) -> Result<()> {
    size(region, "a permutation", p.len())?;
    let mut seen = vec![false; p.len()];
    for (i, from) in p.iter().enumerate() {
        match seen.get_mut(*from as usize) {
            Some(seen) if !*seen => *seen = true,
            Some(_) => return Err(bad(region, format!("channel {from} occurs twice in a permutation"))),
            None => return Err(bad(region, format!("a permutation names channel {from} of {}", region.width))),
        }
        if let Tie::PerKvHead { width, .. } = tie
            && i / width != *from as usize / width
        {
            return Err(bad(region, format!("a permutation moves channel {from} out of its head of {width} channels, to {i}")));
        }
    }
    Ok(())
}

/// How far a rotation's `RᵀR` may be from the identity, per entry.
const ORTHOGONALITY: f64 = 1e-6;

fn orthogonal(r: &Tensor, region: &Region, tie: Tie) -> Result<()> {
    let expected = match tie {
        Tie::PerKvHead { width, .. } => vec![region.width / width, width, width],
        _ => vec![region.width, region.width],
    };
    if r.dims() != expected {
        return Err(bad(region, format!("a rotation of shape {:?} where {expected:?} is needed", r.dims())));
    }
    let n = expected[expected.len() - 1];
    let data = host(r)?;
    for block in data.chunks_exact(n * n) {
        let gap = gap_to_orthogonal(block, n);
        if gap.is_nan() || gap > ORTHOGONALITY {
            return Err(bad(region, format!("a rotation that is not orthogonal: RᵀR is {gap:.1e} away from the identity"))
                .hint("orthogonalize it in f64 before returning it"));
        }
        if tie == Tie::KeepsMean {
            let moved = block.chunks_exact(n).map(|row| (row.iter().sum::<f64>() - 1.0).abs()).fold(0.0, f64::max);
            if moved > ORTHOGONALITY * (n as f64).sqrt() {
                return Err(bad(region, format!("a rotation that moves the mean of the channels: R·1 is {moved:.1e} away from 1"))
                    .hint("the model has LayerNorm, which subtracts the mean: choose R with R·1 = 1"));
            }
        }
    }
    Ok(())
}

/// How far `RᵀR` is from the identity, as the size of an entry in its worst row, from probes: for a vector `v` of signs, an entry of
/// `Rᵀ(Rv) − v` is a signed sum over one row of `RᵀR − I`, about `√n` times an entry. That takes `n²` work rather than `n³`, and the
/// check is made for every block.
fn gap_to_orthogonal(r: &[f64], n: usize) -> f64 {
    let mut worst = 0.0f64;
    for probe in 0..4u64 {
        let v: Vec<f64> = (0..n as u64).map(|i| if mix(i ^ (probe << 40)) & 1 == 0 { 1.0 } else { -1.0 }).collect();
        let mut back = vec![0.0; n];
        for row in r.chunks_exact(n) {
            let y: f64 = row.iter().zip(&v).map(|(r, v)| r * v).sum();
            back.iter_mut().zip(row).for_each(|(b, r)| *b += r * y);
        }
        for (b, v) in back.iter().zip(&v) {
            let gap = (b - v).abs() / (n as f64).sqrt();
            if gap.is_nan() {
                return f64::NAN;
            }
            worst = worst.max(gap);
        }
    }
    worst
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64 bits without visible structure.
pub(super) fn mix(x: u64) -> u64 {
    let x = x.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// The values as f64, row-major.
pub(super) fn host(t: &Tensor) -> Result<Vec<f64>> {
    Ok(t.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{Allows, Space};

    fn region(diagonal: Tie, permutation: Tie, orthogonal: Tie) -> Region {
        Region {
            id: "blocks.1.values".to_owned(),
            space: Space::Values,
            block: Some(1),
            width: 8,
            producers: Vec::new(),
            consumers: Vec::new(),
            companions: Vec::new(),
            allows: Allows { diagonal, permutation, orthogonal },
        }
    }

    fn message(s: &Symmetry, r: &Region) -> String {
        s.validate(r).unwrap_err().to_string()
    }

    fn matrix(n: usize, f: impl Fn(usize, usize) -> f64) -> Tensor {
        let data: Vec<f64> = (0..n * n).map(|k| f(k / n, k % n)).collect();
        Tensor::from_vec(data, (n, n), &Device::Cpu).unwrap()
    }

    #[test]
    fn what_a_region_does_not_allow_is_refused_with_what_it_allows() {
        let r = region(Tie::Free, Tie::Free, Tie::Never);
        let error = Symmetry::Orthogonal(matrix(8, |i, j| f64::from(i == j))).validate(&r).unwrap_err();
        assert_eq!(error.to_string(), "`blocks.1.values` does not allow a rotation: it would change what the model computes");
        assert_eq!(error.hint_text(), Some("`blocks.1.values` allows a scaling, a permutation"));
        assert_eq!(error.code(), "topology::not-allowed");
    }

    #[test]
    fn scalings_are_positive_complete_and_tied() {
        let r = region(Tie::PerRopePair { width: 4, repeat: 2, rotated: 4 }, Tie::Never, Tie::Never);
        Symmetry::Diagonal(vec![1.0, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0]).validate(&r).unwrap();
        let mut s = vec![1.0; 8];
        assert_eq!(message(&Symmetry::Diagonal(vec![1.0; 7]), &r), "`blocks.1.values`: a scaling of 7 entries for 8 channels");
        s[7] = 2.0;
        assert_eq!(
            message(&Symmetry::Diagonal(s.clone()), &r),
            "`blocks.1.values`: channels 5 and 7 are rotated together, but have factors 1 and 2"
        );
        for x in [0.0, -1.0, f64::INFINITY, f64::NAN] {
            s[3] = x;
            let expected = format!("`blocks.1.values`: the factor of channel 3 is {x}, not finite and positive");
            assert_eq!(message(&Symmetry::Diagonal(s.clone()), &r), expected);
        }
    }

    #[test]
    fn permutations_are_permutations_and_stay_in_their_heads() {
        let r = region(Tie::Never, Tie::PerKvHead { width: 4, repeat: 2 }, Tie::Never);
        Symmetry::Permutation(vec![3, 0, 1, 2, 4, 6, 5, 7]).validate(&r).unwrap();
        for (p, expected) in [
            (vec![0, 1, 2, 3, 4, 5, 6, 6], "channel 6 occurs twice in a permutation"),
            (vec![0, 1, 2, 3, 4, 5, 6, 8], "a permutation names channel 8 of 8"),
            (vec![4, 1, 2, 3, 0, 5, 6, 7], "a permutation moves channel 4 out of its head of 4 channels, to 0"),
        ] {
            assert_eq!(message(&Symmetry::Permutation(p), &r), format!("`blocks.1.values`: {expected}"));
        }
    }

    #[test]
    fn rotations_are_orthogonal_of_the_right_shape_and_keep_the_mean_where_they_must() {
        let r = region(Tie::Never, Tie::Never, Tie::Free);
        // A reflection: exactly orthogonal.
        let reflection = matrix(8, |i, j| f64::from(i == j) - 0.25);
        Symmetry::Orthogonal(reflection.clone()).validate(&r).unwrap();
        let skewed = matrix(8, |i, j| f64::from(i == j) + if (i, j) == (2, 5) { 1e-4 } else { 0.0 });
        assert!(message(&Symmetry::Orthogonal(skewed), &r).contains("not orthogonal"));
        assert!(message(&Symmetry::Orthogonal(matrix(8, |_, _| f64::NAN)), &r).contains("not orthogonal"));
        let per_head = region(Tie::Never, Tie::Never, Tie::PerKvHead { width: 4, repeat: 2 });
        assert_eq!(
            message(&Symmetry::Orthogonal(reflection.clone()), &per_head),
            "`blocks.1.values`: a rotation of shape [8, 8] where [2, 4, 4] is needed"
        );
        // This reflection sends 1 to −1.
        let keeps = region(Tie::Never, Tie::Never, Tie::KeepsMean);
        assert!(message(&Symmetry::Orthogonal(reflection), &keeps).contains("moves the mean of the channels"));
        Symmetry::Orthogonal(matrix(8, |i, j| f64::from(i == 7 - j))).validate(&keeps).unwrap();
    }
}
