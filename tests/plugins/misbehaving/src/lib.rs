//! Each algorithm does one thing wrong; apart from that it rounds to nearest, or leaves its region alone. `bad.nothing` does nothing wrong.

#![allow(clippy::print_stderr, reason = "one of the things that are wrong")]

use std::sync::atomic::{AtomicUsize, Ordering};

use qfw_abi::plugin::{
    Algorithm, CodesMut, Condition, ConditionOut, Descriptor, Factory, Failure, Host, Phase, Region, Result, Round, RoundOut, Site, Split,
    Stage, StatKind, Status, Suits, Transform,
};

/// What it does wrong.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    Nothing,
    Panic,
    Range,
    NanScale,
    UnstoredScale,
    NanWeight,
    /// Until `QFW_TEST_CURED` is set.
    Hang,
    Fails,
    Event,
    /// It panics when it is asked what it needs.
    Needs,
    /// It prints.
    Loud,
    /// It ends the process.
    Abort,
    /// It keeps a copy of each weight.
    Leak,
    /// What it does depends on what it did.
    Order,
    /// Its schema's default is out of its schema's range.
    Default,
    /// Its schema says more than the host checks.
    Schema,
    /// The factor of the first channel.
    Factor(f64),
    /// It panics when it is asked whether it suits a region.
    Suits,
    /// It panics when it is asked when it splits.
    After,
    /// It panics when it is asked for its phase.
    Stage,
    /// It panics when it is dropped, and so does what it panics with.
    Drop,
    /// What it replies that it needs.
    Reply(&'static str),
    /// It says that it reads activations, and asks for none.
    Idle,
    /// It says that it reads none, and asks for some where its option is not the default.
    Sometimes,
    /// It splits, and does not say how much.
    Silent,
    /// It returns a weight to fit ranges to; its last number.
    Ranged(f32),
    /// It says something that a terminal would act upon.
    Escapes,
    /// The last weight is no number.
    LastNan,
}

const GRAM: &str = r#"{"inputs":[["gram","quantized"]]}"#;

const FAULTS: [(&str, Fault); 36] = [
    ("bad.nothing", Fault::Nothing),
    ("bad.panic", Fault::Panic),
    ("bad.range", Fault::Range),
    ("bad.nan-scale", Fault::NanScale),
    ("bad.unstored-scale", Fault::UnstoredScale),
    ("bad.nan-weight", Fault::NanWeight),
    ("bad.hang", Fault::Hang),
    ("bad.fails", Fault::Fails),
    ("bad.event", Fault::Event),
    ("bad.needs", Fault::Needs),
    ("bad.loud", Fault::Loud),
    ("bad.abort", Fault::Abort),
    ("bad.leak", Fault::Leak),
    ("bad.order", Fault::Order),
    ("bad.default", Fault::Default),
    ("bad.schema", Fault::Schema),
    ("bad.zero-factor", Fault::Factor(0.0)),
    ("bad.negative-factor", Fault::Factor(-1.0)),
    ("bad.nan-factor", Fault::Factor(f64::NAN)),
    ("bad.suits", Fault::Suits),
    ("bad.after", Fault::After),
    ("bad.stage", Fault::Stage),
    ("bad.drop", Fault::Drop),
    ("bad.rescale", Fault::Reply(r#"{"rescale":1.5}"#)),
    ("bad.tiny", Fault::Reply(r#"{"rescale":1e-60}"#)),
    ("bad.scratch", Fault::Reply(r#"{"scratch-bytes":18446744073709551615}"#)),
    ("bad.hungry", Fault::Reply(r#"{"scratch-bytes":1099511627776}"#)),
    ("bad.branches", Fault::Reply(r#"{"branch":{"rank":2}}"#)),
    ("bad.reads", Fault::Reply(GRAM)),
    ("bad.idle", Fault::Idle),
    ("bad.sometimes", Fault::Sometimes),
    ("bad.silent", Fault::Silent),
    ("bad.ranged", Fault::Ranged(0.5)),
    ("bad.nan-ranged", Fault::Ranged(f32::NAN)),
    ("bad.escapes", Fault::Escapes),
    ("bad.last-nan", Fault::LastNan),
];

struct Made(usize);

impl Fault {
    fn phase(self) -> Phase {
        match self {
            Self::NanWeight | Self::LastNan | Self::Ranged(_) => Phase::Condition,
            Self::Factor(_) | Self::Suits => Phase::Transform,
            Self::After | Self::Silent => Phase::Split,
            _ => Phase::Round,
        }
    }

    fn strength(self) -> &'static str {
        match self {
            Self::Default => r#""minimum":0,"maximum":1,"default":2"#,
            Self::Schema => r#""multipleOf":0.25,"default":0.5"#,
            _ => r#""minimum":0,"maximum":1,"default":0.5"#,
        }
    }
}

impl Factory for Made {
    fn descriptor(&self) -> Descriptor {
        let (id, fault) = FAULTS[self.0];
        assert!(std::env::var_os("QFW_TEST_DESCRIPTOR").is_none(), "a bug in the description of {id}");
        let strength = fault.strength();
        Descriptor {
            id: id.to_owned(),
            phase: fault.phase(),
            summary: "does one thing wrong".to_owned(),
            options_schema: format!(
                r#"{{"type":"object","properties":{{"strength":{{"description":"of nothing","type":"number",{strength}}}}}}}"#
            ),
            needs: if fault == Fault::Hang { vec![StatKind::Gram] } else { Vec::new() },
            weight_only: !matches!(fault, Fault::Hang | Fault::Idle),
            checks_options: false,
            feeds_back: false,
        }
    }

    fn create(&self, _: &Host<'_>, options: &str, _: u64) -> Result<Box<dyn Algorithm>> {
        if !options.contains("\"strength\"") {
            return Err(Failure::new(Status::Options, "the host has not filled in `strength`"));
        }
        Ok(Box::new(Bad(FAULTS[self.0].1, options.to_owned())))
    }
}

/// The fault, and the options.
struct Bad(Fault, String);

struct Worse;

impl Drop for Worse {
    fn drop(&mut self) {
        panic!("a bug in a panic");
    }
}

impl Drop for Bad {
    fn drop(&mut self) {
        if self.0 == Fault::Drop {
            std::panic::panic_any(Worse);
        }
    }
}

impl Algorithm for Bad {
    fn stage(&self) -> Stage<'_> {
        assert!(self.0 != Fault::Stage, "a bug in its phase");
        match self.0.phase() {
            Phase::Condition => Stage::Condition(self),
            Phase::Split => Stage::Split(self),
            Phase::Transform => Stage::Transform(self),
            _ => Stage::Round(self),
        }
    }

    fn needs(&self, _: &str) -> Result<Option<String>> {
        assert!(self.0 != Fault::Needs, "a bug before the run");
        Ok(match self.0 {
            Fault::Reply(reply) => Some(reply.to_owned()),
            Fault::Sometimes if !self.1.contains(r#""strength":0.5"#) => Some(GRAM.to_owned()),
            _ => None,
        })
    }
}

impl Split for Bad {
    fn after_rounding(&self) -> bool {
        assert!(self.0 != Fault::After, "a bug before the split");
        false
    }

    fn split(&self, _: &Host<'_>, _: &[Site<'_>], _: usize, _: u32, _: &mut [f32], _: &mut [&mut [f32]]) -> Result<()> {
        Ok(())
    }
}

impl Transform for Bad {
    fn suits(&self, region: &Region<'_>) -> Suits {
        assert!(self.0 != Fault::Suits, "a bug in {}", region.name());
        if region.rotated() == 0 { Suits::ByDefault } else { Suits::Never }
    }

    fn solve(&self, _: &Host<'_>, _: &Region<'_>, factor: &mut [f64]) -> Result<()> {
        if let Fault::Factor(wrong) = self.0 {
            factor[0] = wrong;
        }
        Ok(())
    }
}

impl Condition for Bad {
    fn condition(&self, _: &Host<'_>, _: &Site<'_>, out: &mut ConditionOut<'_>) -> Result<()> {
        match self.0 {
            Fault::Ranged(last) => {
                let mut ranged = out.weight().to_vec();
                if let Some(number) = ranged.last_mut() {
                    *number = last;
                }
                out.set_ranged(&ranged)?;
            }
            Fault::LastNan => out.weight().iter_mut().rev().take(1).for_each(|w| *w = f32::NAN),
            _ => out.weight()[3] = f32::NAN,
        }
        Ok(())
    }
}

impl Round for Bad {
    fn round(&self, host: &Host<'_>, site: &Site<'_>, out: &mut RoundOut<'_>) -> Result<()> {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        let mut weight = site.weight().to_vec();
        match self.0 {
            Fault::Panic => panic!("a bug in {}", site.role()),
            Fault::Hang if std::env::var_os("QFW_TEST_CURED").is_none() => {
                host.log(3, "hanging");
                loop {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
            }
            Fault::Fails => return Err(Failure::new(Status::Internal, "the disk is full").hint("empty it")),
            Fault::Escapes => return Err(Failure::new(Status::Internal, "\u{1b}[2J\u{9b}31mall is well").hint("\u{1b}]0;trust me\u{7}")),
            Fault::Loud => eprintln!("rounding {}", site.name()),
            Fault::Abort => {
                eprintln!("this is the end");
                std::process::abort();
            }
            Fault::Leak => drop(std::hint::black_box(Box::leak(site.weight().to_vec().into_boxed_slice()))),
            Fault::Order => weight[0] += CALLS.fetch_add(1, Ordering::Relaxed) as f32,
            _ => {}
        }
        let numeric = host.numeric()?;
        let (scale, zero) = numeric.fit(site, &weight)?;
        host.progress(1, 2);
        numeric.nearest(site, &weight, &scale, &zero, out)?;
        match self.0 {
            Fault::Range => {
                if let CodesMut::Narrow(codes) = out.codes() {
                    codes[7] = 200;
                }
            }
            Fault::NanScale => out.scale()[0] = f32::NAN,
            Fault::UnstoredScale => out.scale()[0] *= 1.000_01,
            Fault::Event => host.event("{\"no-such-event\":{}}"),
            _ => {}
        }
        Ok(())
    }
}

qfw_abi::export_plugin! {
    id: "org.qfw.misbehaving",
    version: "0.1.0",
    algorithms: [
        &Made(0), &Made(1), &Made(2), &Made(3), &Made(4), &Made(5), &Made(6), &Made(7), &Made(8), &Made(9), &Made(10), &Made(11), &Made(12),
        &Made(13), &Made(14), &Made(15), &Made(16), &Made(17), &Made(18), &Made(19), &Made(20), &Made(21), &Made(22), &Made(23), &Made(24),
        &Made(25), &Made(26), &Made(27), &Made(28), &Made(29), &Made(30), &Made(31), &Made(32), &Made(33), &Made(34), &Made(35),
    ],
}
