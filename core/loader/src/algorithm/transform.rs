//! Transforms: a region as a plugin sees it, and the factors it returns.

use std::ptr::null;

use qfw_abi::raw;
use qfw_core::algorithm::{RegionContext, Solved, Transform};
use qfw_core::topology::{Region, Space, Symmetry, Tie};
use qfw_core::{Error, Result};

use super::Loaded;
use super::phase::PhaseCalls;
use crate::call::{Call, lend};
use crate::contract;
use crate::site::{Layer, lend_site, stats, stream_code};
use crate::tensor::{Output, Watched};

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
            Space::Multiplied => 7,
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
    /// 0: it does not work on the region; 1: if it is named; 2: by default. Core has no errors here: one that fails is said to work on it,
    /// so that the planner goes on to ask what it needs, and is told then.
    fn how(&self, region: &Region) -> u32 {
        const GO_ON: u32 = 2;
        // What is returned are factors: where no factor may be chosen there is nothing to ask.
        if !region.may_be_scaled() {
            return 0;
        }
        self.asked_how(region).unwrap_or_else(|e| {
            if let Ok(mut trouble) = self.trouble.lock() {
                trouble.get_or_insert(e);
            }
            GO_ON
        })
    }

    fn asked_how(&self, region: &Region) -> Result<u32> {
        let PhaseCalls::Transform { suits, .. } = self.phase else { return Err(self.other_phase()) };
        let library = self.library()?;
        let (raw, call, mut answer) = (channels(region), Call::new(&library.guest, &region.id, Vec::new()), 0);
        self.instance.call(&self.described.id, || {
            // SAFETY: the header's `suits`, with what it asks for.
            #[allow(unsafe_code, reason = "the border")]
            call.run(|host| unsafe { suits(self.instance.pointer(), host, &raw, &mut answer) })
        })?;
        match answer {
            0..=2 => Ok(answer),
            other => Err(contract::violation(format!("it answers {other} to whether it suits `{}`", region.id)).within(library.name())),
        }
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
        let PhaseCalls::Transform { solve: function, .. } = self.phase else { return Err(self.other_phase()) };
        let (library, asked) = (self.library()?, self.asked());
        let mut readers = Vec::new();
        for reader in cx.readers {
            let layer = Layer {
                linear: reader.linear,
                weight: reader.weight,
                original: reader.weight,
                ranged: None,
                spec: reader.target.map(|(spec, _)| spec),
                input: reader.input,
                stream: cx.stream,
                seed: cx.seed,
                amax: 0.0,
                feeds_back: reader.feeds_back,
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
        let mut out = raw::TransformOut { size: size_of::<raw::TransformOut>() as u32, reserved: 0, factor: factor.raw() };
        let call = Call::new(&library.guest, &cx.region.id, Vec::new());
        // SAFETY: the header's `solve`, with what it asks for.
        #[allow(unsafe_code, reason = "the border")]
        let told =
            self.call_at(&call, &[("factors", &factor)], |host| unsafe { function(self.instance.pointer(), host, &region, &mut out) })?;
        let finish = || {
            let symmetry = Symmetry::Diagonal(factor.take());
            // Finite, positive, and alike where the region ties channels.
            symmetry.validate(cx.region)?;
            let events = contract::events(&told.events)?;
            let nothing = matches!(&symmetry, Symmetry::Diagonal(factor) if factor.iter().all(|f| *f == 1.0));
            Ok((!nothing || !events.is_empty()).then_some(Solved { symmetry, events }))
        };
        finish().map_err(|e: Error| e.within(library.name()))
    }
}
