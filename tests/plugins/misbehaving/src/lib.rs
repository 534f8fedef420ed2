//! Each algorithm does one thing wrong; apart from that it rounds to nearest, or leaves its region alone. `bad.nothing` does nothing wrong.

#![allow(clippy::print_stderr, reason = "one of the things that are wrong")]

use std::sync::atomic::{AtomicUsize, Ordering};

use qfw_abi::plugin::{
    Algorithm, CodesMut, Condition, Descriptor, Factory, Failure, Host, Phase, Region, Result, Round, RoundOut, Site, Stage, StatKind,
    Status, Suits, Transform,
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
}

const FAULTS: [(&str, Fault); 19] = [
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
];

struct Made(usize);

impl Fault {
    fn phase(self) -> Phase {
        match self {
            Self::NanWeight => Phase::Condition,
            Self::Factor(_) => Phase::Transform,
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
        let strength = fault.strength();
        Descriptor {
            id: id.to_owned(),
            phase: fault.phase(),
            summary: "does one thing wrong".to_owned(),
            options_schema: format!(
                r#"{{"type":"object","properties":{{"strength":{{"description":"of nothing","type":"number",{strength}}}}}}}"#
            ),
            needs: if fault == Fault::Hang { vec![StatKind::Gram] } else { Vec::new() },
            weight_only: fault != Fault::Hang,
            checks_options: false,
        }
    }

    fn create(&self, _: &Host<'_>, options: &str, _: u64) -> Result<Box<dyn Algorithm>> {
        if !options.contains("\"strength\"") {
            return Err(Failure::new(Status::Options, "the host has not filled in `strength`"));
        }
        Ok(Box::new(Bad(FAULTS[self.0].1)))
    }
}

struct Bad(Fault);

impl Algorithm for Bad {
    fn stage(&self) -> Stage<'_> {
        match self.0.phase() {
            Phase::Condition => Stage::Condition(self),
            Phase::Transform => Stage::Transform(self),
            _ => Stage::Round(self),
        }
    }

    fn needs(&self, _: &str) -> Result<Option<String>> {
        assert!(self.0 != Fault::Needs, "a bug before the run");
        Ok(None)
    }
}

impl Transform for Bad {
    fn suits(&self, region: &Region<'_>) -> Suits {
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
    fn condition(&self, _: &Host<'_>, _: &Site<'_>, weight: &mut [f32]) -> Result<()> {
        weight[3] = f32::NAN;
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
        &Made(13), &Made(14), &Made(15), &Made(16), &Made(17), &Made(18),
    ],
}
