//! Splitting: branches of low rank beside the codes.

use qfw_abi::raw;
use qfw_core::algorithm::{Branches, Event, Split, SplitContext};
use qfw_core::scheme::FloatKind;
use qfw_core::{Error, Result};

use super::Loaded;
use super::phase::PhaseCalls;
use crate::call::Call;
use crate::contract;
use crate::tensor::{Output, Watched};

/// An event of one of several sites; one that names none belongs to the first.
fn site_event(text: &str, sites: usize) -> Result<(usize, Event)> {
    #[derive(serde::Deserialize)]
    struct OfSite {
        site: usize,
        event: Event,
    }
    match serde_json::from_str::<OfSite>(text) {
        Ok(e) if e.site < sites => Ok((e.site, e.event)),
        Ok(e) => Err(contract::violation(format!("it reported an event of site {} of {sites}", e.site))),
        Err(_) => Ok((0, contract::events(&[text.to_owned()])?.remove(0))),
    }
}

impl Split for Loaded {
    fn after_rounding(&self) -> bool {
        matches!(self.phase, PhaseCalls::Split { after_rounding: true, .. })
    }

    fn split(&self, cx: &SplitContext<'_>) -> Result<Branches> {
        let PhaseCalls::Split { split: function, .. } = self.phase else { return Err(self.other_phase()) };
        let library = self.library()?;
        let name = cx.sites.first().map_or_else(String::new, |s| s.linear.site.to_string());
        let call = Call::new(&library.guest, &name, cx.sites.to_vec());
        let lent = cx.sites.iter().enumerate().map(|(i, s)| self.lend(s, i as u64)).collect::<Result<Vec<_>>>()?;
        let sites: Vec<*const raw::Site> = lent.iter().map(|s| std::ptr::from_ref(&s.raw)).collect();
        let (n, cols) = (sites.len(), cx.sites.first().map_or(0, |s| s.linear.shape.1));
        let a = Output::<f32>::zeros(&[cx.rank, cols]);
        let b: Vec<Output<f32>> = cx.sites.iter().map(|s| Output::zeros(&[s.linear.shape.0, cx.rank])).collect();
        let pointers: Vec<*mut raw::Tensor> = b.iter().map(Watched::raw).collect();
        let mut out = raw::SplitOut {
            size: size_of::<raw::SplitOut>() as u32,
            stored: match cx.stored {
                FloatKind::F32 => 0,
                FloatKind::F16 => 1,
                FloatKind::Bf16 => 2,
            },
            rank: cx.rank as u64,
            a: a.raw(),
            b: pointers.as_ptr(),
        };
        let outputs: Vec<(&str, &dyn Watched)> =
            std::iter::once(("A", &a as &dyn Watched)).chain(b.iter().map(|b| ("B", b as &dyn Watched))).collect();
        // SAFETY: the header's `split`, with what it asks for.
        #[allow(unsafe_code, reason = "the border")]
        let told = self.call_at(&call, &outputs, |host| unsafe { function(self.instance.pointer(), host, sites.as_ptr(), n, &mut out) })?;
        let finish = || {
            let (a, b): (Vec<f32>, Vec<Vec<f32>>) = (a.take(), b.into_iter().map(Output::take).collect());
            contract::finite("A", &a)?;
            b.iter().try_for_each(|b| contract::finite("B", b))?;
            let mut events = vec![Vec::new(); n];
            for text in &told.events {
                let (site, event) = site_event(text, n)?;
                events[site].push(event);
            }
            Ok(Branches { a, b, events })
        };
        finish().map_err(|e: Error| e.within(library.name()))
    }
}
