//! Memory for numbers that begins where cache lines do.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::{copy, copy_nonoverlapping};

/// Bytes of a cache line, and of the widest register.
const LINE: usize = 64;
/// Smaller pieces are left to the system: no kernel runs over them for long.
const LEAST: usize = 1024;
/// What the system aligns to without being asked.
const USUAL: usize = 16;

/// The system's allocator, but that every piece of a kilobyte or more begins at a cache line. `malloc` promises 16 bytes, and where a vector
/// begins between two lines, every register of 64 bytes is read and written in two halves: a product on the tiles of AMX takes a quarter
/// longer. The program `qfw` runs on it; a program of your own may:
///
/// ```
/// #[global_allocator]
/// static ALLOCATOR: qfw_core::CacheLines = qfw_core::CacheLines;
/// assert_eq!(vec![0.0f32; 1000].as_ptr() as usize % 64, 0);
/// ```
///
/// A piece lies in one of the system's that is a line longer, at its first line behind 16 bytes or more; how far in is written right before
/// it. (Asked for aligned memory, allocators cut pieces to measure, which they cannot use again for the next of the same size.)
#[derive(Clone, Copy, Debug, Default)]
pub struct CacheLines;

/// What is asked of the system for a piece that is to begin at a line; none for one that is left to it.
fn around(layout: Layout) -> Option<Layout> {
    let lined = (LEAST..=isize::MAX as usize - 2 * LINE).contains(&layout.size()) && layout.align() <= LINE;
    lined.then(|| Layout::from_size_align(layout.size() + LINE, USUAL).ok()).flatten()
}

/// The piece in what the system gave.
///
/// # Safety
/// `outer` is null, or a layout of [`around`] long.
#[allow(unsafe_code, reason = "an allocator is")]
unsafe fn within(outer: *mut u8) -> *mut u8 {
    if outer.is_null() {
        return outer;
    }
    let distance = LINE - outer.addr() % LINE;
    // SAFETY: 16 to 64 bytes in, of which there are 64 more than the piece takes.
    unsafe {
        let piece = outer.add(distance);
        piece.sub(1).write(distance as u8);
        piece
    }
}

/// How far a piece lies in what the system gave.
///
/// # Safety
/// `piece` came from [`within`], and is not null.
#[allow(unsafe_code, reason = "an allocator is")]
unsafe fn distance(piece: *mut u8) -> usize {
    // SAFETY: `within` wrote it there.
    usize::from(unsafe { piece.sub(1).read() })
}

#[allow(unsafe_code, reason = "an allocator is")]
// SAFETY: pieces are the system's, or lie in one of the system's that `around` has made large enough; which of both, the layout alone says.
unsafe impl GlobalAlloc for CacheLines {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises for `layout`.
        unsafe {
            match around(layout) {
                Some(outer) => within(System.alloc(outer)),
                None => System.alloc(layout),
            }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above; what is written lies before the piece.
        unsafe {
            match around(layout) {
                Some(outer) => within(System.alloc_zeroed(outer)),
                None => System.alloc_zeroed(layout),
            }
        }
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        // SAFETY: the piece came from here with this layout.
        unsafe {
            match around(layout) {
                Some(outer) => System.dealloc(piece.sub(distance(piece)), outer),
                None => System.dealloc(piece, layout),
            }
        }
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that `size` is not zero and fits the alignment.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        let kept = layout.size().min(size);
        // SAFETY: the piece came from here with this layout. Where the system moves what is around it, the content stays as far in as it was,
        // and moves on to where the piece begins now. Otherwise there are two pieces, and the old one is not used any more.
        unsafe {
            match (around(layout), around(new)) {
                (None, None) => System.realloc(piece, layout, size),
                (Some(outer), Some(larger)) => {
                    let was = distance(piece);
                    let moved = System.realloc(piece.sub(was), outer, larger.size());
                    if moved.is_null() {
                        return moved;
                    }
                    let is = LINE - moved.addr() % LINE;
                    if is != was {
                        copy(moved.add(was), moved.add(is), kept);
                    }
                    within(moved)
                }
                _ => {
                    let to = self.alloc(new);
                    if !to.is_null() {
                        copy_nonoverlapping(piece, to, kept);
                        self.dealloc(piece, layout);
                    }
                    to
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(unsafe_code, reason = "an allocator's interface is")]
    fn pieces_begin_at_lines_and_keep_what_they_hold() {
        let sizes = [1, 8, 1000, 1023, 1024, 1025, 5000, 1 << 18];
        for align in [1, 4, 16, 64, 128, 4096] {
            for from in sizes {
                for to in sizes {
                    let layout = Layout::from_size_align(from, align).unwrap();
                    // SAFETY: each piece is used within its size, and given back once with its layout.
                    unsafe {
                        let piece = CacheLines.alloc_zeroed(layout);
                        assert!((0..from).all(|i| *piece.add(i) == 0));
                        (0..from).for_each(|i| *piece.add(i) = i as u8);
                        let piece = CacheLines.realloc(piece, layout, to);
                        assert!((0..from.min(to)).all(|i| *piece.add(i) == i as u8), "{from} to {to}");
                        assert!(piece.addr().is_multiple_of(align) && (to < LEAST || piece.addr().is_multiple_of(LINE)), "{from} to {to}");
                        CacheLines.dealloc(piece, Layout::from_size_align(to, align).unwrap());
                    }
                }
            }
        }
    }
}
