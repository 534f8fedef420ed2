//! The ±1 matrices `H` with `HHᵀ = K·I` that are no tensor product with `[[1, 1], [1, −1]]`: constructed, not stored.
//!
//! With `χ` the quadratic character of the field of `q` elements (0 at 0, 1 at squares, −1 elsewhere) and `Q_xy = χ(x − y)`:
//!
//! - Paley I, `q ≡ 3 (mod 4)`, order `q + 1`: `H = I + [[0, 1ᵀ], [−1, Q]]`.
//! - Paley II, `q ≡ 1 (mod 4)`, order `2(q + 1)`: `H = C ⊗ [[1, 1], [1, −1]] + I ⊗ [[1, −1], [−1, −1]]` with `C = [[0, 1ᵀ], [1, Q]]`
//!   (Paley, "On orthogonal matrices", 1933).
//! - Goethals and Seidel, order `4m`: an array of four circulant matrices whose periodic autocorrelations sum to zero off the origin
//!   ("A skew Hadamard matrix of order 36", 1970). The sequences here are constant on the cosets of a group of multipliers, which makes
//!   them few enough to have been found by a search, and a mask of cosets enough to write them down.

/// The largest order that is constructed: a product with it costs `K/4` additions a number, so a larger one is no longer fast.
const LARGEST: usize = 2048;

/// How the matrix of an order comes about.
#[derive(Clone, Copy, Debug)]
enum Construction {
    PaleyOne(PrimePower),
    PaleyTwo(PrimePower),
    Circulants(&'static Circulants),
}

/// `p^k`.
#[derive(Clone, Copy, Debug)]
struct PrimePower {
    p: usize,
    k: u32,
}

/// Four ±1 sequences of length `m`, constant on the cosets `x·⟨multiplier⟩` of the integers modulo `m`.
#[derive(Debug)]
struct Circulants {
    m: usize,
    multiplier: usize,
    /// Bit `c` of a mask: the sequence is −1 on coset `c`, counted by their smallest members.
    masks: [u32; 4],
}

/// For orders that Paley's constructions miss.
const CIRCULANTS: [Circulants; 4] = [
    Circulants { m: 23, multiplier: 22, masks: [86, 678, 824, 3638] },
    Circulants { m: 29, multiplier: 28, masks: [3530, 18922, 918, 14408] },
    Circulants { m: 39, multiplier: 16, masks: [62, 622, 2846, 10846] },
    Circulants { m: 43, multiplier: 7, masks: [14, 92, 104, 196] },
];

/// The smallest `K` with `n = K·2^p` of which a matrix is known here; 1 for powers of two.
pub(super) fn order_for(n: usize) -> Option<usize> {
    if n.is_power_of_two() {
        return Some(1);
    }
    let twos = if n == 0 { 0 } else { n.trailing_zeros() };
    // Beyond 2 an order is a multiple of 4.
    (2..=twos).map(|power| (n >> twos) << power).take_while(|order| *order <= LARGEST).find(|order| construction(*order).is_some())
}

/// All orders of which a matrix is known here, rising; sizes are these times powers of two.
pub(super) fn orders() -> impl Iterator<Item = usize> {
    std::iter::once(1).chain((4..=LARGEST).step_by(4).filter(|order| construction(*order).is_some()))
}

/// The `[K, K]` row-major ±1 matrix of an order of [`order_for`]. Its first column is `+1`, so that `1·H = √n·e₀`.
pub(super) fn base(order: usize) -> Option<Vec<i8>> {
    if order == 1 {
        return Some(vec![1]);
    }
    let mut base = match construction(order)? {
        Construction::PaleyOne(q) => paley_one(q),
        Construction::PaleyTwo(q) => paley_two(q),
        Construction::Circulants(c) => Some(goethals_seidel(c)),
    }?;
    for row in base.chunks_exact_mut(order) {
        let first = row[0];
        row.iter_mut().for_each(|x| *x *= first);
    }
    Some(base)
}

fn construction(order: usize) -> Option<Construction> {
    if !order.is_multiple_of(4) {
        return None;
    }
    // order − 1 ≡ 3 (mod 4) always.
    if let Some(q) = prime_power(order - 1) {
        return Some(Construction::PaleyOne(q));
    }
    if let Some(q) = prime_power(order / 2 - 1).filter(|_| order / 2 % 4 == 2) {
        return Some(Construction::PaleyTwo(q));
    }
    CIRCULANTS.iter().find(|c| 4 * c.m == order).map(Construction::Circulants)
}

fn prime_power(q: usize) -> Option<PrimePower> {
    if q < 2 {
        return None;
    }
    let p = (2..).take_while(|d| d * d <= q).find(|d| q.is_multiple_of(*d)).unwrap_or(q);
    let mut k = 0;
    let mut rest = q;
    while rest.is_multiple_of(p) {
        rest /= p;
        k += 1;
    }
    (rest == 1).then_some(PrimePower { p, k })
}

impl PrimePower {
    fn order(self) -> usize {
        self.p.pow(self.k)
    }

    /// `x − y` of two elements, each the number whose digits to the base `p` are the coefficients of its polynomial.
    fn difference(self, mut x: usize, mut y: usize) -> usize {
        let (mut z, mut place) = (0, 1);
        for _ in 0..self.k {
            z += (x % self.p + self.p - y % self.p) % self.p * place;
            (x, y, place) = (x / self.p, y / self.p, place * self.p);
        }
        z
    }

    /// `χ` of all elements, odd `p`.
    ///
    /// Goes through the monic polynomials `f` of degree `k` until `X` has the order `q − 1` modulo `f`. Then its powers are all the
    /// residues but 0, so that each has an inverse: the residues are the field, and its squares are the even powers.
    fn character(self) -> Option<Vec<i8>> {
        let (q, top) = (self.order(), self.order() / self.p);
        (0..q).find_map(|f| {
            let mut character = vec![0i8; q];
            let (mut power, mut sign) = (1, 1i8);
            for _ in 1..q {
                // A power comes back early, or is 0: not primitive.
                if power == 0 || character[power] != 0 {
                    return None;
                }
                character[power] = sign;
                sign = -sign;
                // Times X; the coefficient c that overflows comes back as −c·f.
                let overflow = power / top;
                power = power % top * self.p;
                for _ in 0..overflow {
                    power = self.difference(power, f);
                }
            }
            Some(character)
        })
    }
}

/// `[[0, 1ᵀ], [±1, Q]]`, row-major.
fn bordered(q: PrimePower, left: i8) -> Option<Vec<i8>> {
    let character = q.character()?;
    let size = q.order() + 1;
    let mut matrix = vec![0; size * size];
    for i in 0..size {
        for j in 0..size {
            matrix[i * size + j] = match (i, j) {
                (0, 0) => 0,
                (0, _) => 1,
                (_, 0) => left,
                _ => character[q.difference(i - 1, j - 1)],
            };
        }
    }
    Some(matrix)
}

fn paley_one(q: PrimePower) -> Option<Vec<i8>> {
    let mut matrix = bordered(q, -1)?;
    matrix.iter_mut().step_by(q.order() + 2).for_each(|diagonal| *diagonal += 1);
    Some(matrix)
}

fn paley_two(q: PrimePower) -> Option<Vec<i8>> {
    let conference = bordered(q, 1)?;
    let half = q.order() + 1;
    let order = 2 * half;
    let mut matrix = vec![0; order * order];
    for i in 0..order {
        for j in 0..order {
            let c = conference[i / 2 * half + j / 2];
            matrix[i * order + j] = match (i % 2, j % 2) {
                (0, 0) => c + i8::from(i == j),
                (1, 1) => -c - i8::from(i == j),
                _ => c - i8::from(i / 2 == j / 2),
            };
        }
    }
    Some(matrix)
}

impl Circulants {
    fn sequences(&self) -> [Vec<i8>; 4] {
        let mut coset_of = vec![usize::MAX; self.m];
        let mut cosets = 0;
        for first in 0..self.m {
            if coset_of[first] != usize::MAX {
                continue;
            }
            let mut member = first;
            while coset_of[member] == usize::MAX {
                coset_of[member] = cosets;
                member = member * self.multiplier % self.m;
            }
            cosets += 1;
        }
        self.masks.map(|mask| coset_of.iter().map(|coset| if mask >> coset & 1 == 1 { -1 } else { 1 }).collect())
    }
}

/// With `R` the exchange matrix: `[[A, BR, CR, DR], [−BR, A, DᵀR, −CᵀR], [−CR, −DᵀR, A, BᵀR], [−DR, CᵀR, −BᵀR, A]]`.
fn goethals_seidel(circulants: &Circulants) -> Vec<i8> {
    /// Which sequence, its sign, and whether its circulant is transposed.
    const ARRAY: [[(usize, i8, bool); 4]; 4] = [
        [(0, 1, false), (1, 1, false), (2, 1, false), (3, 1, false)],
        [(1, -1, false), (0, 1, false), (3, 1, true), (2, -1, true)],
        [(2, -1, false), (3, -1, true), (0, 1, false), (1, 1, true)],
        [(3, -1, false), (2, 1, true), (1, -1, true), (0, 1, false)],
    ];
    let (m, sequences) = (circulants.m, circulants.sequences());
    let order = 4 * m;
    let mut matrix = vec![0; order * order];
    for row in 0..order {
        for column in 0..order {
            let (i, j) = (row % m, column % m);
            let (which, sign, transposed) = ARRAY[row / m][column / m];
            // A stands as it is, the others have their columns reversed.
            let j = if which == 0 { j } else { m - 1 - j };
            let (i, j) = if transposed { (j, i) } else { (i, j) };
            matrix[row * order + column] = sign * sequences[which][(j + m - i) % m];
        }
    }
    matrix
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_hadamard(matrix: &[i8], order: usize) -> bool {
        let entries = matrix.len() == order * order && matrix.iter().all(|x| x.abs() == 1);
        let product = |i: usize, j: usize| -> i32 {
            let (a, b) = (&matrix[i * order..][..order], &matrix[j * order..][..order]);
            a.iter().zip(b).map(|(a, b)| i32::from(a * b)).sum()
        };
        entries && (0..order).all(|i| (0..=i).all(|j| product(i, j) == if i == j { order as i32 } else { 0 }))
    }

    #[test]
    fn every_order_up_to_256_has_orthogonal_rows() {
        let known: Vec<usize> = (4..=256).step_by(4).filter(|order| construction(*order).is_some()).collect();
        for &order in &known {
            assert!(is_hadamard(&base(order).unwrap(), order), "order {order}");
        }
        let missing: Vec<usize> = (4..=256).step_by(4).filter(|size| order_for(*size).is_none()).collect();
        assert_eq!(missing, [188, 236]);
    }

    /// The sizes of widely used models, and orders past 256 among them.
    #[test]
    fn sizes_of_models_have_a_base() {
        let sizes = [(576, 36), (896, 28), (1536, 12), (3584, 28), (4864, 76), (8960, 140), (11008, 172), (13824, 108), (14336, 28)];
        let more = [(18944, 148), (27648, 108), (28672, 28), (29568, 924), (624, 156), (608, 76), (4096, 1), (1, 1), (2, 1)];
        for (size, order) in sizes.into_iter().chain(more) {
            assert_eq!(order_for(size), Some(order), "{size}");
            assert!(is_hadamard(&base(order).unwrap(), order), "{order}");
        }
        for none in [0, 3, 6, 18, 188, 236, 4 * 509] {
            assert_eq!(order_for(none), None, "{none}");
        }
    }

    /// What makes the array orthogonal: at every shift but 0 the four autocorrelations sum to 0.
    #[test]
    fn the_four_sequences_are_complementary() {
        for circulants in &CIRCULANTS {
            let m = circulants.m;
            for shift in 1..m {
                let sum: i32 =
                    circulants.sequences().iter().map(|s| (0..m).map(|i| i32::from(s[i] * s[(i + shift) % m])).sum::<i32>()).sum();
                assert_eq!(sum, 0, "{m} at {shift}");
            }
        }
    }

    /// `χ` is multiplicative on the field of 27 elements, which shows in Q: `QQᵀ = qI − J` and zero row sums.
    #[test]
    fn the_character_of_a_field_that_is_not_prime() {
        for (p, k) in [(3, 2), (3, 3), (5, 2), (7, 2), (3, 5)] {
            let q = PrimePower { p, k };
            let chi = q.character().unwrap();
            let order = q.order();
            for x in 0..order {
                let row = |y: usize| i32::from(chi[q.difference(x, y)]);
                assert_eq!((0..order).map(row).sum::<i32>(), 0);
                let with_first: i32 = (0..order).map(|y| row(y) * i32::from(chi[q.difference(0, y)])).sum();
                assert_eq!(with_first, if x == 0 { order as i32 - 1 } else { -1 });
            }
        }
    }
}
