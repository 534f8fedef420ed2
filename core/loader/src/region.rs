//! Transforms: a region as a plugin sees it, and the factors it returns.

use std::ptr::null;

use qfw_abi::raw;
use qfw_core::algorithm::{RegionContext, Solved, Transform};
use qfw_core::topology::{Region, Space, Symmetry, Tie};
use qfw_core::{Error, Result};

use crate::algorithm::Loaded;
use crate::call::{Call, lend};
use crate::contract;
use crate::plugin_error;
use crate::site::{Layer, lend_site, stats, stream_code};
use crate::tensor::Output;

/// The channels of a region; readers and statistics are not in it yet.
fn channels(region: &Region) -> raw::Region {
    let (head_width, repeat) = region.heads();
    let rotated = match region.allows.diagonal {
        Tie::PerRopePair { rotated, .. } => rotated,
        _ => 0,
    };
    let allows = [region.allows.diagonal, region.allows.permutation, region.allows.orthogonal];
    raw::Region {
        size: size_of::<raw::Region>() as u32,
        space: match region.space {
            Space::Residual => 0,
            Space::AttnIn => 1,
            Space::MlpIn => 2,
            Space::HeadIn => 3,
            Space::Heads => 4,
            Space::Values => 5,
            Space::MlpHidden => 6,
        },
        name: lend(&region.id),
        block: region.block.map_or(-1, i64::from),
        width: region.width as u64,
        head_width: head_width as u64,
        repeat: repeat as u64,
        rotated: rotated as u64,
        allows: allows.iter().enumerate().filter(|(_, tie)| **tie != Tie::Never).fold(0, |bits, (i, _)| bits | 1 << i),
        stream: 1,
        seed: 0,
        readers: null(),
        n_readers: 0,
        stats: null(),
        n_stats: 0,
    }
}

impl Loaded {
    fn how(&self, region: &Region) -> i32 {
        let Some((raw::TransformExt { suits: Some(suits), .. }, _)) = self.transform_calls() else { return 0 };
        let raw = channels(region);
        // What is returned are factors: where no factor may be chosen there is nothing to ask.
        if !region.may_be_scaled() {
            return 0;
        }
        // SAFETY: the header's `suits`, with what it asks for.
        #[allow(unsafe_code, reason = "the border")]
        self.answer(&region.id, |algo| unsafe { suits(algo, &raw) }).unwrap_or(0)
    }
}

impl Transform for Loaded {
    fn suits(&self, region: &Region) -> bool {
        self.how(region) > 0
    }

    fn by_default(&self, region: &Region) -> bool {
        self.how(region) > 1
    }

    fn solve(&self, cx: &RegionContext<'_>) -> Result<Option<Solved>> {
        let library = self.library()?;
        let Some((raw::TransformExt { solve: Some(function), .. }, algo)) = self.transform_calls() else {
            return Err(plugin_error("plugin::contract", "its `qfw.transform/1` has no `solve`").within(library.name()));
        };
        let asked = self.asked();
        let mut readers = Vec::new();
        for reader in cx.readers {
            let layer = Layer {
                linear: reader.linear,
                weight: reader.weight,
                original: reader.weight,
                spec: reader.target.map(|(spec, _)| spec),
                input: reader.input,
                stream: cx.stream,
                seed: cx.seed,
                amax: 0.0,
            };
            // Numerics over a site's grid are for the rounding phases: no token of this call.
            readers.push(lend_site(&layer, stats(cx.stats, reader.linear.input, &asked), u64::MAX)?);
        }
        let pointers: Vec<*const raw::Site> = readers.iter().map(|r| std::ptr::from_ref(&r.raw)).collect();
        let known = stats(cx.stats, cx.port()?, &asked);
        let region = raw::Region {
            stream: stream_code(cx.stream),
            seed: cx.seed,
            readers: pointers.as_ptr(),
            n_readers: pointers.len(),
            stats: known.pointer(),
            n_stats: known.len(),
            ..channels(cx.region)
        };
        let factor = Output::of(&vec![1.0f64; cx.region.width], &[cx.region.width]);
        let call = Call::new(library, &cx.region.id, Vec::new());
        // SAFETY: the header's `solve`, with what it asks for.
        #[allow(unsafe_code, reason = "the border")]
        let told = self.call_at(&call, |host| unsafe { function(algo, host, &region, factor.raw()) })?;
        let finish = || {
            let factor = factor.take("factors")?;
            let symmetry = Symmetry::Diagonal(factor);
            // Finite, positive, and alike where the region ties channels.
            symmetry.validate(cx.region)?;
            let events = contract::events(&told.events)?;
            let nothing = matches!(&symmetry, Symmetry::Diagonal(factor) if factor.iter().all(|f| *f == 1.0));
            Ok((!nothing || !events.is_empty()).then_some(Solved { symmetry, events }))
        };
        finish().map_err(|e: Error| e.within(library.name()))
    }
}
