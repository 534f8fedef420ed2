//! Shapes, formats and groups, drawn from the seed.

use qfw_core::numeric::uniform_below;
use qfw_core::{ErrorKind, Result};

use super::shapes::{made, sample};
use super::{Kind, Outcome, Try};

/// Sites to try.
const TRIES: u64 = 24;

pub(super) fn run(on: &Try) -> Result<Outcome> {
    let algorithm = on.instance()?;
    for n in 0..TRIES {
        let draw = |what: u64, below: u64| uniform_below(&[on.seed, 9, n, what], below);
        let (rows, cols) = (1 + draw(0, 20) as usize, 1 + draw(1, 70) as usize);
        let format = ["int2", "int3", "int4", "int8", "uint2", "uint4", "nf4"][draw(2, 7) as usize];
        let group = [0, 1, 8, 32][draw(3, 4) as usize];
        let kinds = [Kind::Plain, Kind::ZeroColumn, Kind::ConstantRow, Kind::Outlier, Kind::RankDeficient];
        let kind = kinds[draw(4, kinds.len() as u64) as usize];
        let mut sample = sample(on.seed.wrapping_add(n), kind, (rows, cols), format, group)?;
        let weight = sample.weight.clone();
        match made(&*algorithm, &mut sample, &weight) {
            Err(e) if !matches!(e.kind(), ErrorKind::Numeric | ErrorKind::Plan) => {
                let what = format!("{rows}x{cols} in {format}, groups of {group}, {kind:?}");
                return Ok(Outcome::Failed(format!("with seed {}, {what}: {e}", on.seed)));
            }
            _ => {}
        }
    }
    Ok(Outcome::Success)
}
