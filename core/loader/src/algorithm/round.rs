//! Rounding: codes, scales and zero points.

use qfw_abi::raw;
use qfw_core::algorithm::{Round, Rounded, SiteContext};
use qfw_core::numeric::{Codes, Units};
use qfw_core::scheme::QParams;
use qfw_core::{Error, Result};

use super::Loaded;
use super::phase::PhaseCalls;
use crate::call::Call;
use crate::contract;
use crate::tensor::{Output, Watched};

/// The codes, whichever width they have.
enum CodesOut {
    Narrow(Output<u8>),
    Wide(Output<u16>),
}

impl CodesOut {
    fn new(codes: &Codes, shape: &[usize]) -> Self {
        match codes.data {
            Units::Narrow(_) => Self::Narrow(Output::zeros(shape)),
            Units::Wide(_) => Self::Wide(Output::zeros(shape)),
        }
    }

    fn watched(&self) -> &dyn Watched {
        match self {
            Self::Narrow(o) => o,
            Self::Wide(o) => o,
        }
    }

    fn take(self) -> Units {
        match self {
            Self::Narrow(o) => Units::Narrow(o.take()),
            Self::Wide(o) => Units::Wide(o.take()),
        }
    }
}

impl Round for Loaded {
    fn round(&self, cx: &SiteContext<'_>) -> Result<Rounded> {
        let PhaseCalls::Round(function) = self.phase else { return Err(self.other_phase()) };
        let library = self.library()?;
        let (layout, call) = (cx.layout(), Call::new(&library.guest, &cx.linear.site.to_string(), vec![*cx]));
        let site = self.lend(cx, 0)?;
        let empty = Codes::new(&cx.spec.grid, 0);
        let codes = CodesOut::new(&empty, &[layout.rows, layout.cols]);
        let (tile_rows, tile_cols) = layout.grid();
        let (scale, zero) = (Output::<f32>::zeros(&[tile_rows, tile_cols]), Output::<f32>::zeros(&[tile_rows, tile_cols]));
        let mut out = raw::RoundOut {
            size: size_of::<raw::RoundOut>() as u32,
            reserved: 0,
            codes: codes.watched().raw(),
            scale: scale.raw(),
            zero: zero.raw(),
            group_index: std::ptr::null(),
        };
        let outputs: [(&str, &dyn Watched); 3] = [("codes", codes.watched()), ("scales", &scale), ("zero points", &zero)];
        // SAFETY: the header's `round`, with what it asks for.
        #[allow(unsafe_code, reason = "the border")]
        let told = self.call_at(&call, &outputs, |host| unsafe { function(self.instance.pointer(), host, &site.raw, &mut out) })?;
        let finish = || {
            let codes = Codes { lo: empty.lo, data: codes.take() };
            let params = QParams { layout, scale: scale.take(), zero: zero.take(), global: cx.scale_rule().global() };
            contract::rounded(cx, &codes, &params)?;
            let index = contract::allocated::<u32>(&call, out.group_index, &[layout.cols], "group index")?;
            if let Some(index) = &index {
                contract::group_index(cx, index)?;
            }
            Ok(Rounded { codes, params, group_index: index, events: contract::events(&told.events)? })
        };
        finish().map_err(|e: Error| e.within(library.name()))
    }

    fn feeds_back(&self) -> bool {
        self.described.is(raw::FEEDS_BACK)
    }
}
