//! Each algorithm rounds to nearest, except for one thing that it does wrong. `bad.nothing` does nothing wrong.

use qfw_abi::plugin::{
    Algorithm, CodesMut, Condition, Descriptor, Factory, Failure, Host, Phase, Result, Round, RoundOut, Site, Stage, StatKind, Status,
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
    Hang,
    Fails,
    Event,
}

const FAULTS: [(&str, Fault); 9] = [
    ("bad.nothing", Fault::Nothing),
    ("bad.panic", Fault::Panic),
    ("bad.range", Fault::Range),
    ("bad.nan-scale", Fault::NanScale),
    ("bad.unstored-scale", Fault::UnstoredScale),
    ("bad.nan-weight", Fault::NanWeight),
    ("bad.hang", Fault::Hang),
    ("bad.fails", Fault::Fails),
    ("bad.event", Fault::Event),
];

struct Made(usize);

impl Factory for Made {
    fn descriptor(&self) -> Descriptor {
        let (id, fault) = FAULTS[self.0];
        Descriptor {
            id: id.to_owned(),
            phase: if fault == Fault::NanWeight { Phase::Condition } else { Phase::Round },
            summary: "does one thing wrong".to_owned(),
            options_schema: r#"{"type":"object","properties":{"strength":{"type":"number","minimum":0,"maximum":1,"default":0.5}}}"#
                .to_owned(),
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
        if self.0 == Fault::NanWeight { Stage::Condition(self) } else { Stage::Round(self) }
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
        match self.0 {
            Fault::Panic => panic!("a bug in {}", site.role()),
            Fault::Hang => {
                host.log(3, "hanging");
                loop {
                    std::thread::sleep(std::time::Duration::from_millis(10));
                }
            }
            Fault::Fails => return Err(Failure::new(Status::Internal, "the disk is full").hint("empty it")),
            _ => {}
        }
        let numeric = host.numeric()?;
        let (scale, zero) = numeric.fit(site, site.weight())?;
        numeric.nearest(site, site.weight(), &scale, &zero, out)?;
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
    algorithms: [&Made(0), &Made(1), &Made(2), &Made(3), &Made(4), &Made(5), &Made(6), &Made(7), &Made(8)],
}
