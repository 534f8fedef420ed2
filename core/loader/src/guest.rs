//! A plugin as the host knows it before and after its library is open: its name, and what it has of the program.

use std::sync::atomic::AtomicBool;

use qfw_core::harness::Progress;

use crate::in_flight::{Flying, InFlight};
use crate::manifest::Manifest;

/// What loaded plugins have of the program they are in.
#[derive(Clone)]
pub struct Host {
    /// Set when the run is to stop.
    pub cancel: &'static AtomicBool,
    /// Calls that have not returned.
    pub in_flight: InFlight,
    /// Where plugins' lines go; the level is 1 (error) to 4 (debug).
    pub log: fn(u32, &str),
    /// Where it is told how far a call is: [`Progress::Call`].
    pub progress: fn(&Progress),
}

/// A plugin.
#[derive(Clone)]
pub(crate) struct Guest {
    id: String,
    version: String,
    pub(crate) host: Host,
}

impl Guest {
    pub(crate) fn of(manifest: &Manifest, host: &Host) -> Self {
        Self { id: manifest.id.clone(), version: manifest.version.clone(), host: host.clone() }
    }

    /// What errors call it.
    pub(crate) fn name(&self) -> String {
        format!("plugin `{}` {}", self.id, self.version)
    }

    /// A call of it, and what it is about: a site, a region, or nothing.
    pub(crate) fn what(&self, about: &str) -> String {
        if about.is_empty() { self.name() } else { format!("{} in `{about}`", self.name()) }
    }

    /// Says that a call of it has begun, until what it returns is dropped.
    pub(crate) fn enter(&self, about: &str) -> Flying {
        self.host.in_flight.enter(self.what(about))
    }

    /// Says that its library is being opened, until what it returns is dropped: constructors and the first functions are its code too.
    pub(crate) fn opening(&self) -> Flying {
        self.host.in_flight.enter(format!("opening {}", self.name()))
    }
}
