//! A number format of core as a format of the ABI.

use qfw_abi::plugin::{Failure, Format, FormatDescriptor, Result, Status, Values};
use qfw_core::format::{Ask, FormatRecord, Meaning};
use qfw_core::scheme::{Convention, FloatKind, Grid, ScaleForm, Zero};

use crate::linked::failure;

/// A number format with a record of `qfw-core` for [`qfw_abi::export_plugin!`].
///
/// What crosses is a grid: a table, or integers without zero points, with scales that are stored as the scheme says. A format that is more
/// than that is linked, or not there; describing it fails with the reason.
pub struct LinkedFormat {
    /// Its record, or that of its family.
    pub record: &'static FormatRecord,
    /// Its name there.
    pub name: &'static str,
    /// Its id as the plugin offers it.
    pub id: &'static str,
}

impl Format for LinkedFormat {
    fn descriptor(&self) -> Result<FormatDescriptor> {
        let cannot = |why: &str| Failure::new(Status::Unsupported, format!("the number format `{}` cannot cross: {why}", self.id));
        let found = (self.record.find)(self.name).ok_or_else(|| cannot(&format!("its record has no `{}`", self.name)))?;
        let convention = Convention::default();
        let ask = |stored| Ask { symmetric: true, convention, float_zero: false, power_of_two: None, stored };
        let resolved = |stored| found.resolve(&ask(stored)).map_err(|e| failure(&e));
        let Meaning { grid, symmetric, convention: settled, .. } = resolved(FloatKind::F16)?;
        for stored in [FloatKind::F16, FloatKind::Bf16, FloatKind::F32] {
            if resolved(stored)?.scale != ScaleForm::Float(stored) {
                return Err(cannot("its scales are not stored as the scheme says"));
            }
        }
        if !symmetric || settled != convention || found.granularity().is_some() || found.observer().is_some() {
            return Err(cannot("it is defined with more than its values"));
        }
        let values = match grid {
            Grid::Int { lo, hi, zero: Zero::None } => Values::Integers { least: lo, greatest: hi },
            Grid::Levels(levels) => Values::Levels(levels),
            _ => return Err(cannot("its values are neither a table nor integers without zero points")),
        };
        Ok(FormatDescriptor { id: self.id.to_owned(), summary: self.record.summary.to_owned(), values })
    }
}

#[cfg(test)]
mod tests {
    use qfw_core::format::BUILTIN;

    use super::*;

    fn described(name: &'static str) -> Result<Values, String> {
        let record = BUILTIN.iter().copied().flatten().find(|r| (r.find)(name).is_some()).unwrap();
        LinkedFormat { record, name, id: name }.descriptor().map(|d| d.values).map_err(|f| f.message)
    }

    #[test]
    fn what_is_a_grid_crosses_and_what_is_more_says_so() {
        assert_eq!(described("int5"), Ok(Values::Integers { least: -16, greatest: 15 }));
        let Ok(Values::Levels(levels)) = described("nf4") else { panic!("nf4 is a table") };
        assert_eq!((levels.len(), levels[0], levels[7], levels[15]), (16, -1.0, 0.0, 1.0));
        let why = |name| described(name).unwrap_err();
        assert_eq!(why("uint4"), "the number format `uint4` cannot cross: its values are neither a table nor integers without zero points");
        assert_eq!(why("ternary"), "the number format `ternary` cannot cross: it is defined with more than its values");
        assert!(why("mxfp4").starts_with("the number format `mxfp4` cannot cross: "), "{}", why("mxfp4"));
    }
}
