//! Conditioning: a weight moved in high precision, and the one that ranges are fitted to, where that is another.

use qfw_abi::raw;
use qfw_core::algorithm::{Condition, Conditioned, SiteContext};
use qfw_core::{Error, Result};

use super::Loaded;
use super::phase::PhaseCalls;
use crate::call::Call;
use crate::contract;
use crate::tensor::{Output, Watched};

impl Condition for Loaded {
    fn condition(&self, cx: &SiteContext<'_>) -> Result<Conditioned> {
        let PhaseCalls::Condition(function) = self.phase else { return Err(self.other_phase()) };
        let library = self.library()?;
        let call = Call::new(&library.guest, &cx.linear.site.to_string(), vec![*cx]);
        let site = self.lend(cx, 0)?;
        let shape = [cx.linear.shape.0, cx.linear.shape.1];
        let weight = Output::of(cx.weight, &shape);
        let mut out =
            raw::ConditionOut { size: size_of::<raw::ConditionOut>() as u32, reserved: 0, weight: weight.raw(), ranged: std::ptr::null() };
        // SAFETY: the header's `condition`, with what it asks for.
        #[allow(unsafe_code, reason = "the border")]
        let told =
            self.call_at(&call, &[("weight", &weight)], |host| unsafe { function(self.instance.pointer(), host, &site.raw, &mut out) })?;
        let finish = || {
            let weight = weight.take();
            contract::finite("the weight", &weight)?;
            let ranged = contract::allocated::<f32>(&call, out.ranged, &shape, "weight to fit ranges to")?;
            if let Some(ranged) = &ranged {
                contract::finite("the weight to fit ranges to", ranged)?;
            }
            Ok(Conditioned { weight, ranged, events: contract::events(&told.events)? })
        };
        finish().map_err(|e: Error| e.within(library.name()))
    }
}
