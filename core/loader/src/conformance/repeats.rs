//! The same inputs give the same bytes, however often, by however many threads, in whatever order.

use qfw_core::{Error, Result};

use super::shapes::{made, plain};
use super::{Outcome, Try};

/// What an instance makes of ordinary sites of these seeds, one after the other, with that many threads of the host.
fn bits(on: &Try, seeds: &[u64], threads: usize) -> Result<Vec<Vec<u32>>> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(|e| Error::internal(e.to_string()))?;
    pool.install(|| {
        let algorithm = on.instance()?;
        seeds
            .iter()
            .map(|seed| {
                let mut sample = plain(*seed)?;
                let weight = sample.weight.clone();
                made(&*algorithm, &mut sample, &weight).map(|m| m.bits())
            })
            .collect()
    })
}

fn same(a: &[Vec<u32>], b: &[Vec<u32>], what: &str) -> Outcome {
    if a == b { Outcome::Success } else { Outcome::Failed(format!("the same site gives other bytes {what}")) }
}

pub(super) fn twice(on: &Try) -> Result<Outcome> {
    Ok(same(&bits(on, &[on.seed], 1)?, &bits(on, &[on.seed], 1)?, "the second time"))
}

pub(super) fn threads(on: &Try) -> Result<Outcome> {
    Ok(same(&bits(on, &[on.seed], 1)?, &bits(on, &[on.seed], 4)?, "with four threads"))
}

pub(super) fn order(on: &Try) -> Result<Outcome> {
    let (a, b, c) = (on.seed, on.seed.wrapping_add(1), on.seed.wrapping_add(2));
    let first = bits(on, &[a, b, c], 1)?;
    let mut second = bits(on, &[c, a, b], 1)?;
    second.rotate_left(1);
    Ok(same(&first, &second, "after other sites"))
}
