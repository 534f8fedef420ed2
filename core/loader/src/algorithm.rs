//! An algorithm of a library as core knows algorithms.

use std::ffi::{CStr, CString, c_void};
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use qfw_abi::raw;
use qfw_bridge::wire::{LinearWire, NeedsWire, PlanSite, PlanWire};
use qfw_core::algorithm::{
    Branches, BuiltAlgorithm, Condition, Conditioned, Event, Maker, Needs, Phase, PlanContext, PtqAlgorithm, Round, Rounded, SiteContext,
    Split, SplitContext, Stage,
};
use qfw_core::numeric::{Codes, Units};
use qfw_core::scheme::{FloatKind, QParams};
use qfw_core::statistic::{StatKind, Stream};
use qfw_core::{Error, Result};
use serde_json::Value;

use crate::call::{Call, Told, heard, lend};
use crate::contract;
use crate::library::{Described, Lazy, Library, sized};
use crate::options::{filled, readable};
use crate::plugin_error;
use crate::site::{Layer, LentSite, lend_site, stats};
use crate::tensor::Output;

/// What an author does whose options are more than the host checks.
const CHECK_YOURSELF: &str = "its author has to check the options in `create`, and to say so with `QFW_CHECKS_OPTIONS`";

/// Makes instances of one algorithm of a package; the first opens its library.
pub(crate) struct Loadable {
    pub(crate) lazy: Arc<Lazy>,
    pub(crate) id: String,
}

impl Maker for Loadable {
    fn build(&self, options: &Value) -> Result<BuiltAlgorithm> {
        let (loaded, options) = Loaded::new(Arc::clone(&self.lazy), &self.id, options)?;
        Ok((Box::new(loaded), options))
    }

    fn origin(&self) -> String {
        let manifest = &self.lazy.package.manifest;
        let hash = self.lazy.library().map_or_else(|_| "unknown".to_owned(), |l| l.hash.clone());
        format!("{} {} blake3:{hash}", manifest.id, manifest.version)
    }
}

/// An instance.
pub(crate) struct Loaded {
    lazy: Arc<Lazy>,
    described: Described,
    algo: *mut raw::Algo,
    phase: PhaseCalls,
    /// Calls of an instance that is not reentrant take turns.
    turn: Mutex<()>,
    /// The panic after which it is not called again.
    broken: OnceLock<String>,
    /// Statistics that it asked for when the plan was made.
    asked: Mutex<Vec<(StatKind, Stream)>>,
}

/// The functions of its phase.
#[derive(Clone, Copy)]
enum PhaseCalls {
    Round(&'static raw::RoundExt),
    Condition(&'static raw::ConditionExt),
    Split(&'static raw::SplitExt),
    Transform(&'static raw::TransformExt),
}

// SAFETY: the header says of each function of an instance which threads may call it, and `turn` sees to the rest.
#[allow(unsafe_code, reason = "see above")]
unsafe impl Send for Loaded {}
// SAFETY: as above.
#[allow(unsafe_code, reason = "see above")]
unsafe impl Sync for Loaded {}

impl Drop for Loaded {
    fn drop(&mut self) {
        // SAFETY: made by `create`, destroyed once. One that has panicked is left alone: its state may be anything.
        #[allow(unsafe_code, reason = "the border")]
        if let Some(destroy) = unsafe { (*self.algo).destroy }
            && self.broken.get().is_none()
        {
            // SAFETY: as above.
            unsafe { destroy(self.algo) };
        }
    }
}

fn extension_pointer(algo: *mut raw::Algo, id: &CStr) -> *const c_void {
    // SAFETY: `create` has made it, and it is sized as this version wants.
    #[allow(unsafe_code, reason = "the border")]
    unsafe {
        (*algo).extension.map_or(std::ptr::null(), |f| f(algo, id.as_ptr()))
    }
}

/// The extension of an instance, if it has it.
fn extension<T>(algo: *mut raw::Algo, id: &CStr) -> std::result::Result<Option<&'static T>, String> {
    let pointer = extension_pointer(algo, id);
    let sized = || sized(pointer.cast::<T>()).map(Some).map_err(|e| format!("its `{}` {e}", id.to_string_lossy()));
    if pointer.is_null() { Ok(None) } else { sized() }
}

fn phase_calls(algo: *mut raw::Algo, phase: Phase) -> std::result::Result<PhaseCalls, String> {
    fn need<T>(algo: *mut raw::Algo, id: &CStr) -> std::result::Result<&'static T, String> {
        extension::<T>(algo, id)?.ok_or_else(|| format!("it has no `{}`, which its phase asks for", id.to_string_lossy()))
    }
    Ok(match phase {
        Phase::Round => PhaseCalls::Round(need(algo, c"qfw.round/1")?),
        Phase::Condition => PhaseCalls::Condition(need(algo, c"qfw.condition/1")?),
        Phase::Split => PhaseCalls::Split(need(algo, c"qfw.split/1")?),
        Phase::Transform => PhaseCalls::Transform(need(algo, c"qfw.transform/1")?),
        Phase::Correct => return Err("the phase `correct` is for linked plugins".to_owned()),
    })
}

impl Loaded {
    pub(crate) fn new(lazy: Arc<Lazy>, id: &str, options: &Value) -> Result<(Self, Value)> {
        let library = lazy.library()?;
        let described = library.algorithm(id).cloned().ok_or_else(|| Error::internal(format!("`{id}` is in no library")))?;
        let broken = |message: String| plugin_error("plugin::contract", format!("`{id}`: {message}")).within(library.name());
        let options = match described.flags & raw::CHECKS_OPTIONS {
            0 => {
                let schema = serde_json::from_str(&described.schema).map_err(|e| broken(format!("its schema is no JSON: {e}")))?;
                readable(&schema).map_err(|why| broken(format!("its schema cannot be held to: {why}")).hint(CHECK_YOURSELF))?;
                filled(id, &schema, options)?
            }
            _ => options.clone(),
        };
        let (text, name) = (options.to_string(), CString::new(id).map_err(|e| Error::internal(e.to_string()))?);
        let mut algo = null_mut();
        let create = library.plugin.create.ok_or_else(|| Error::internal("a library without `create`"))?;
        // SAFETY: the header's `create`, with what it asks for.
        #[allow(unsafe_code, reason = "the border")]
        Call::new(library, "", Vec::new()).run(|host| unsafe { create(host, name.as_ptr(), lend(&text), 0, &mut algo) })?;
        let table = sized(algo.cast_const()).map_err(|e| broken(format!("its instance {e}")))?;
        let phase = phase_calls(algo, described.phase).map_err(broken)?;
        // SAFETY: a string of the instance's, says the header.
        #[allow(unsafe_code, reason = "the border")]
        let resolved = unsafe { heard(table.options) };
        let options = match resolved.as_str() {
            "" => options,
            text => serde_json::from_str(text).map_err(|e| broken(format!("its options are no JSON: {e}")))?,
        };
        let (turn, broken, asked) = (Mutex::new(()), OnceLock::new(), Mutex::default());
        Ok((Self { lazy: Arc::clone(&lazy), described, algo, phase, turn, broken, asked }, options))
    }

    pub(crate) fn library(&self) -> Result<&Library> {
        self.lazy.library()
    }

    /// Whether it answers to an extension's name.
    pub(crate) fn has_extension(&self, id: &CStr) -> bool {
        !extension_pointer(self.algo, id).is_null()
    }

    /// Its transform's functions.
    pub(crate) fn transform_calls(&self) -> Option<(&'static raw::TransformExt, *mut raw::Algo)> {
        if let PhaseCalls::Transform(ext) = self.phase { Some((ext, self.algo)) } else { None }
    }

    fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        let alone = self.described.flags & raw::REENTRANT == 0;
        alone.then(|| self.turn.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// A call of this instance about a site or region, on a thread of its own: one of the pool would take up other sites while the call
    /// waits for the pool, and call the instance again from inside of its own call.
    pub(crate) fn call_at(&self, call: &Call<'_>, function: impl FnOnce(*const raw::Host) -> i32) -> Result<Told> {
        self.call(call, |call| call.run_apart(function))
    }

    fn call(&self, call: &Call<'_>, run: impl FnOnce(&Call<'_>) -> Result<Told>) -> Result<Told> {
        let _turn = self.turn();
        if let Some(panic) = self.broken.get() {
            let message = format!("{panic}; `{}` is not called again after that", self.described.id);
            return Err(plugin_error("plugin::panic", message));
        }
        run(call).inspect_err(|e| {
            if e.code() == "plugin::panic" {
                self.broken.get_or_init(|| e.to_string());
            }
        })
    }

    /// The answer of one of the functions that have no host, and so no way to fail.
    pub(crate) fn answer<T>(&self, about: &str, function: impl FnOnce(*mut raw::Algo) -> T) -> Option<T> {
        let library = self.library().ok()?;
        if self.broken.get().is_some() {
            return None;
        }
        let _flying = library.enter(about);
        Some(function(self.algo))
    }

    /// Statistics that it wants at the input of its sites.
    pub(crate) fn asked(&self) -> Vec<(StatKind, Stream)> {
        self.asked.lock().map(|a| a.clone()).unwrap_or_default()
    }

    /// The needs that its description states.
    fn declared(&self, stream: Stream) -> Vec<(StatKind, Stream)> {
        const KINDS: [StatKind; 7] = [
            StatKind::Gram,
            StatKind::CrossGram,
            StatKind::Mean,
            StatKind::AbsMean,
            StatKind::Least,
            StatKind::Greatest,
            StatKind::RoundedMean,
        ];
        KINDS.iter().enumerate().filter(|(bit, _)| self.described.needs & (1 << bit) != 0).map(|(_, kind)| (*kind, stream)).collect()
    }

    /// What it needs for a plan; asks it, if it has something to say.
    fn ask(&self, plan: &PlanWire) -> Result<Needs> {
        let library = self.library()?;
        let broken =
            |message: String| plugin_error("plugin::contract", format!("`{}`: {message}", self.described.id)).within(library.name());
        let mut needs = Needs { inputs: self.declared(plan.stream), ..Needs::default() };
        let table = extension::<raw::PlanExt>(self.algo, c"qfw.plan/1").map_err(broken)?;
        if let Some(function) = table.and_then(|t| t.needs) {
            let text = serde_json::to_string(plan).map_err(|e| Error::internal(e.to_string()))?;
            let call = Call::new(library, "", Vec::new());
            // SAFETY: the header's `needs`, with what it asks for.
            #[allow(unsafe_code, reason = "the border")]
            let told = self.call(&call, |call| call.run(|host| unsafe { function(self.algo, host, lend(&text)) }))?;
            if let Some(reply) = told.reply {
                let wire: NeedsWire = serde_json::from_str(&reply).map_err(|e| broken(format!("its needs cannot be read: {e}")))?;
                needs = wire.needs();
            }
        }
        Ok(needs)
    }

    /// A site of the model for the plugin, with the statistics it asked for.
    fn lend<'a>(&self, cx: &SiteContext<'a>, token: u64) -> Result<Box<LentSite<'a>>> {
        lend_site(&Layer::of(cx), stats(cx.stats, cx.linear.input, &self.asked()), token)
    }
}

impl PtqAlgorithm for Loaded {
    fn needs(&self, cx: &PlanContext<'_>) -> Result<Needs> {
        let sites = cx.sites.iter().zip(cx.weights).zip(cx.inputs);
        let sites = sites.map(|((linear, weights), input)| PlanSite {
            linear: LinearWire::of(linear),
            weights: (*weights).clone(),
            input: input.cloned(),
        });
        let sites = sites.collect();
        let needs = self.ask(&PlanWire { blocks: cx.topology.blocks, stream: cx.stream, sites })?;
        if let Ok(mut asked) = self.asked.lock() {
            asked.clone_from(&needs.inputs);
        }
        Ok(needs)
    }

    fn stage(&self) -> Stage<'_> {
        match self.phase {
            PhaseCalls::Round(_) => Stage::Round(self),
            PhaseCalls::Condition(_) => Stage::Condition(self),
            PhaseCalls::Split(_) => Stage::Split(self),
            PhaseCalls::Transform(_) => Stage::Transform(self),
        }
    }

    fn reads_activations(&self) -> bool {
        let nothing = PlanWire { blocks: 0, stream: Stream::Quantized, sites: Vec::new() };
        // One that does not answer may read them for all that is known; `needs` comes to why.
        self.ask(&nothing).map_or(true, |needs| !needs.inputs.is_empty())
    }
}

/// The outputs of rounding, whichever width codes have.
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

    fn raw(&self) -> *mut raw::Tensor {
        match self {
            Self::Narrow(o) => o.raw(),
            Self::Wide(o) => o.raw(),
        }
    }

    fn take(self) -> Result<Units> {
        Ok(match self {
            Self::Narrow(o) => Units::Narrow(o.take("codes")?),
            Self::Wide(o) => Units::Wide(o.take("codes")?),
        })
    }
}

impl Round for Loaded {
    fn round(&self, cx: &SiteContext<'_>) -> Result<Rounded> {
        let library = self.library()?;
        let PhaseCalls::Round(raw::RoundExt { round: Some(function), .. }) = self.phase else {
            return Err(plugin_error("plugin::contract", "its `qfw.round/1` has no `round`").within(library.name()));
        };
        let (layout, call) = (cx.layout(), Call::new(library, &cx.linear.site.to_string(), vec![*cx]));
        let site = self.lend(cx, 0)?;
        let empty = Codes::new(&cx.spec.grid, 0);
        let codes = CodesOut::new(&empty, &[layout.rows, layout.cols]);
        let (tile_rows, tile_cols) = layout.grid();
        let scale = Output::<f32>::zeros(&[tile_rows, tile_cols]);
        let zero = Output::<f32>::zeros(&[tile_rows, tile_cols]);
        let mut out = raw::RoundOut {
            size: size_of::<raw::RoundOut>() as u32,
            reserved: 0,
            codes: codes.raw(),
            scale: scale.raw(),
            zero: zero.raw(),
            group_index: std::ptr::null(),
        };
        // SAFETY: the header's `round`, with what it asks for.
        #[allow(unsafe_code, reason = "the border")]
        let told = self.call_at(&call, |host| unsafe { function(self.algo, host, &site.raw, &mut out) })?;
        let finish = || {
            let codes = Codes { lo: empty.lo, data: codes.take()? };
            let (scale, zero) = (scale.take("scales")?, zero.take("zero points")?);
            let params = QParams { layout, scale, zero, global: cx.scale_rule().global() };
            contract::rounded(cx, &codes, &params)?;
            let group_index = match out.group_index {
                index if index.is_null() => None,
                index => {
                    let foreign = || plugin_error("plugin::contract", "its group index is no u32 tensor of `alloc`");
                    Some(call.allocated_u32(index).ok_or_else(foreign)?)
                }
            };
            if let Some(index) = &group_index {
                contract::group_index(cx, index)?;
            }
            Ok(Rounded { codes, params, group_index, events: contract::events(&told.events)? })
        };
        finish().map_err(|e: Error| e.within(library.name()))
    }
}

impl Condition for Loaded {
    fn condition(&self, cx: &SiteContext<'_>) -> Result<Conditioned> {
        let library = self.library()?;
        let PhaseCalls::Condition(raw::ConditionExt { condition: Some(function), .. }) = self.phase else {
            return Err(plugin_error("plugin::contract", "its `qfw.condition/1` has no `condition`").within(library.name()));
        };
        let call = Call::new(library, &cx.linear.site.to_string(), vec![*cx]);
        let site = self.lend(cx, 0)?;
        let (rows, cols) = cx.linear.shape;
        let weight = Output::of(cx.weight, &[rows, cols]);
        // SAFETY: the header's `condition`, with what it asks for.
        #[allow(unsafe_code, reason = "the border")]
        let told = self.call_at(&call, |host| unsafe { function(self.algo, host, &site.raw, weight.raw()) })?;
        let finish = || {
            let weight = weight.take("weight")?;
            contract::finite("the weight", &weight)?;
            Ok(Conditioned { weight, ranged: None, events: contract::events(&told.events)? })
        };
        finish().map_err(|e: Error| e.within(library.name()))
    }
}

/// An event of one of several sites; one that names none belongs to the first.
fn site_event(text: &str, sites: usize) -> Result<(usize, Event)> {
    #[derive(serde::Deserialize)]
    struct OfSite {
        site: usize,
        event: Event,
    }
    match serde_json::from_str::<OfSite>(text) {
        Ok(e) if e.site < sites => Ok((e.site, e.event)),
        Ok(e) => Err(plugin_error("plugin::contract", format!("it reported an event of site {} of {sites}", e.site))),
        Err(_) => Ok((0, contract::events(&[text.to_owned()])?.remove(0))),
    }
}

impl Split for Loaded {
    fn after_rounding(&self) -> bool {
        let PhaseCalls::Split(raw::SplitExt { after_rounding: Some(function), .. }) = self.phase else { return false };
        // SAFETY: the header's `after_rounding`; any thread may call it.
        #[allow(unsafe_code, reason = "the border")]
        let after = self.answer("", |algo| unsafe { function(algo) });
        after.is_some_and(|after| after != 0)
    }

    fn split(&self, cx: &SplitContext<'_>) -> Result<Branches> {
        let library = self.library()?;
        let PhaseCalls::Split(raw::SplitExt { split: Some(function), .. }) = self.phase else {
            return Err(plugin_error("plugin::contract", "its `qfw.split/1` has no `split`").within(library.name()));
        };
        let name = cx.sites.first().map_or_else(String::new, |s| s.linear.site.to_string());
        let call = Call::new(library, &name, cx.sites.to_vec());
        let lent = cx.sites.iter().enumerate().map(|(i, s)| self.lend(s, i as u64)).collect::<Result<Vec<_>>>()?;
        let sites: Vec<*const raw::Site> = lent.iter().map(|s| std::ptr::from_ref(&s.raw)).collect();
        let cols = cx.sites.first().map_or(0, |s| s.linear.shape.1);
        let a = Output::<f32>::zeros(&[cx.rank, cols]);
        let b: Vec<Output<f32>> = cx.sites.iter().map(|s| Output::zeros(&[s.linear.shape.0, cx.rank])).collect();
        let pointers: Vec<*mut raw::Tensor> = b.iter().map(Output::raw).collect();
        let stored = match cx.stored {
            FloatKind::F32 => 0,
            FloatKind::F16 => 1,
            FloatKind::Bf16 => 2,
        };
        let (rank, n) = (cx.rank as u64, sites.len());
        // SAFETY: the header's `split`, with what it asks for.
        #[allow(unsafe_code, reason = "the border")]
        let told =
            self.call_at(&call, |host| unsafe { function(self.algo, host, sites.as_ptr(), n, rank, stored, a.raw(), pointers.as_ptr()) })?;
        let finish = || {
            let a = a.take("A")?;
            let b = b.into_iter().map(|b| b.take("B")).collect::<Result<Vec<_>>>()?;
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
