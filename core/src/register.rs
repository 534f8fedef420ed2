//! Putting records into every program that links their crate.
//!
//! One macro for each kind of record. What is named in one is found by [`Registry::linked`](crate::registry::Registry::linked), in any order
//! and without running code of the crate, as records are constants. The program has to name the crate somewhere (`use my_crate as _;`), or
//! the linker leaves it out. A program that wants no globals adds records to a registry of its own instead.

/// Registers algorithms: constants of type [`AlgorithmRecord`](crate::algorithm::AlgorithmRecord).
///
/// ```
/// use qfw_core::algorithm::{AlgorithmRecord, Phase};
/// use qfw_core::register_algorithm;
///
/// const RECORD: AlgorithmRecord = AlgorithmRecord {
///     id: "mine",
///     aliases: &[],
///     phase: Phase::Round,
///     summary: "mine",
///     version: "0.1.0",
///     source: "a third party",
///     weight_only: true,
///     schema: || serde_json::json!({ "type": "object", "properties": {} }),
///     build: |_| Err(qfw_core::Error::internal("an example")),
/// };
/// register_algorithm!(RECORD);
/// # assert_eq!(qfw_core::registry::Registry::linked().unwrap().algorithm("mine").unwrap().summary, "mine");
/// ```
///
/// Nothing else goes in:
///
/// ```compile_fail
/// qfw_core::register_algorithm!("mine");
/// ```
#[macro_export]
macro_rules! register_algorithm {
    ($($record:expr),+ $(,)?) => { $crate::__register! { $crate::algorithm::AlgorithmRecord, $($record),+ } };
}

/// Registers number formats, or families of them: constants of type [`FormatRecord`](crate::format::FormatRecord).
#[macro_export]
macro_rules! register_format {
    ($($record:expr),+ $(,)?) => { $crate::__register! { $crate::format::FormatRecord, $($record),+ } };
}

/// Registers granularities: constants of type [`GranularityRecord`](crate::granularity::GranularityRecord).
#[macro_export]
macro_rules! register_granularity {
    ($($record:expr),+ $(,)?) => { $crate::__register! { $crate::granularity::GranularityRecord, $($record),+ } };
}

/// Registers observers: constants of type [`ObserverRecord`](crate::observer::ObserverRecord).
#[macro_export]
macro_rules! register_observer {
    ($($record:expr),+ $(,)?) => { $crate::__register! { $crate::observer::ObserverRecord, $($record),+ } };
}

/// Registers containers, which is what exports a finished model: constants of type
/// [`ContainerRecord`](crate::checkpoint::ContainerRecord).
#[macro_export]
macro_rules! register_container {
    ($($record:expr),+ $(,)?) => { $crate::__register! { $crate::checkpoint::ContainerRecord, $($record),+ } };
}

/// Registers architectures: constants of type [`ArchitectureRecord`](crate::model::ArchitectureRecord).
#[macro_export]
macro_rules! register_architecture {
    ($($record:expr),+ $(,)?) => { $crate::__register! { $crate::model::ArchitectureRecord, $($record),+ } };
}

/// The one that the others end in.
#[doc(hidden)]
#[macro_export]
macro_rules! __register {
    ($kind:ty, $($record:expr),+) => {
        $($crate::inventory::submit! {{
            const QFW_REGISTERED: $kind = $record;
            QFW_REGISTERED
        }})+
    };
}
