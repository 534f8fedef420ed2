//! What goes wrong in a call stays on this side of the border: failures become codes with text, and panics too.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::Result;
use super::host::Host;
use crate::raw;

thread_local! {
    /// Where the last panic of this thread was.
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps panics of this library from being printed: the host tells of them. What is kept is where they were.
pub fn quiet_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        std::panic::set_hook(Box::new(|info| {
            let place = info.location().map_or_else(String::new, |l| format!(" at {}:{}", l.file(), l.line()));
            // A thread that is ending has none, and nobody to tell.
            let _ = PLACE.try_with(|p| *p.borrow_mut() = place);
        }));
    });
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let place = PLACE.try_with(|p| p.borrow().clone()).unwrap_or_default();
    format!("{}{place}", text.unwrap_or("a panic"))
}

/// What `body` returns, or what its panic says.
pub(super) fn caught<T>(body: impl FnOnce() -> T) -> std::result::Result<T, String> {
    catch_unwind(AssertUnwindSafe(body)).map_err(|panic| {
        let text = text_of(&*panic);
        // A payload may panic when it is dropped.
        std::mem::forget(panic);
        text
    })
}

/// Runs the body of a call, and tells the host why it fails.
pub(super) fn contain(host: Option<Host<'_>>, body: impl FnOnce() -> Result<()>) -> i32 {
    let (status, message, hint) = match caught(body) {
        Ok(Ok(())) => return raw::OK,
        Ok(Err(failure)) => (failure.status.code(), failure.message, failure.hint),
        Err(panic) => (raw::ERR_PANIC, panic, String::new()),
    };
    if let Some(host) = host
        && !message.is_empty()
    {
        host.fail(&message, &hint);
    }
    status
}
