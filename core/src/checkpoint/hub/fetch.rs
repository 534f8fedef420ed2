//! Brings files into the cache: several at once, from where the last attempt stopped, and never what is not what was listed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use ureq::http::StatusCode;

use super::cache::{Cached, length};
use super::choose::Listed;
use super::client::{Client, may_try_again};
use super::failure::Failure;
use super::progress::Progress;

/// Files that arrive at once: one connection seldom has the whole of a line.
const AT_ONCE: usize = 4;

/// Fetches those of `files` that the snapshot of `commit` lacks. `say` gets lines for a human.
pub(super) fn fetch(client: &Client, cached: &Cached, commit: &str, files: &[&Listed], say: &mut dyn FnMut(&str)) -> Result<(), Failure> {
    let lacking: Vec<&Listed> = files.iter().copied().filter(|f| !cached.holds(commit, f)).collect();
    let (lines, told) = mpsc::channel();
    let progress = Progress::new(lines, lacking.iter().map(|f| f.size).sum());
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = |progress: &Progress| -> Result<(), Failure> {
        while let Some(file) = lacking.get(next.fetch_add(1, Ordering::Relaxed)) {
            if failed.load(Ordering::Relaxed) {
                break;
            }
            one(client, cached, commit, file, progress).inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE.min(lacking.len()))
            .map(|_| {
                let progress = progress.clone();
                scope.spawn(move || work(&progress))
            })
            .collect();
        // Ends with the last worker.
        drop(progress);
        told.iter().for_each(|line: String| say(&line));
        workers.into_iter().try_for_each(|w| w.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn one(client: &Client, cached: &Cached, commit: &str, file: &Listed, progress: &Progress) -> Result<(), Failure> {
    let _held = cached.lock(file)?;
    let blob = cached.blob(file);
    if length(&blob) == Some(file.size) {
        progress.found(file.size);
    } else {
        let partial = blob.with_extension("incomplete");
        let sound = whole(client, commit, file, &partial, progress);
        if matches!(sound, Err(Failure::Length { .. })) {
            // Whatever this is, it is not the beginning of the file.
            fs::remove_file(&partial).map_err(|e| Failure::Disk(partial.clone(), e))?;
        }
        sound?;
        fs::rename(&partial, &blob).map_err(|e| Failure::Disk(blob, e))?;
    }
    cached.link(commit, file)
}

/// Fills `partial` up to the length that is listed. Gives up where several attempts in a row bring nothing.
fn whole(client: &Client, commit: &str, file: &Listed, partial: &Path, progress: &Progress) -> Result<(), Failure> {
    let disk = |e| Failure::Disk(partial.to_owned(), e);
    let mut out = OpenOptions::new().create(true).append(true).open(partial).map_err(disk)?;
    let mut have = out.metadata().map_err(disk)?.len();
    if have > file.size {
        out.set_len(0).map_err(disk)?;
        have = 0;
    }
    progress.found(have);
    let mut tried = 0;
    while have < file.size {
        let before = have;
        let ended = rest(client, commit, file, (&mut out, partial), &mut have, progress);
        tried = if have > before { 1 } else { tried + 1 };
        match ended {
            Err(failure) if !failure.may_pass() || !may_try_again(tried) => return Err(failure),
            // A server that sends less than it promised, each time.
            Ok(()) if have < file.size && !may_try_again(tried) => return Err(Failure::length(file, have)),
            _ => {}
        }
    }
    Ok(())
}

/// One request for what is missing.
fn rest(
    client: &Client,
    commit: &str,
    file: &Listed,
    (out, path): (&mut File, &Path),
    have: &mut u64,
    progress: &Progress,
) -> Result<(), Failure> {
    let disk = |e| Failure::Disk(path.to_owned(), e);
    let answer = client.open(commit, &file.path, *have)?;
    if answer.status() != StatusCode::PARTIAL_CONTENT && *have > 0 {
        out.set_len(0).map_err(disk)?;
        progress.lost(*have);
        *have = 0;
    }
    let promised = answer.body().content_length();
    if let Some(length) = promised.filter(|n| *have + n != file.size) {
        return Err(Failure::length(file, *have + length));
    }
    let mut body = answer.into_body().into_reader();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = match body.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Failure::Transport(e.into())),
        };
        if *have + n as u64 > file.size {
            return Err(Failure::length(file, *have + n as u64));
        }
        out.write_all(&buffer[..n]).map_err(disk)?;
        *have += n as u64;
        progress.came(n as u64);
    }
}
