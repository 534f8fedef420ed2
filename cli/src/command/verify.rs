//! `qfw verify`

use qfw_core::{Error, Result};
use qfw_verify::{Difference, Position, Report, TensorReport};
use serde_json::json;

use super::{say_json, target};
use crate::arguments::Verify;
use crate::hub;
use crate::terminal::say;

/// Lines of differences and findings that a person is shown.
const LINES: usize = 40;

pub(crate) fn run(a: &Verify) -> Result<()> {
    let path = hub::model(&a.path)?;
    let against = a.against.as_deref().map(hub::model).transpose()?;
    let (mut reports, mut unread) = (Vec::new(), Vec::new());
    for part in qfw_verify::parts(&path).map_err(unreadable)? {
        match qfw_verify::verify(&part, against.as_deref()) {
            Ok(report) => reports.push(report),
            // One that has no reader here takes nothing from what was found in the others.
            Err(e) => unread.push(unreadable(e)),
        }
    }
    if reports.is_empty() {
        return unread.into_iter().next().map_or(Ok(()), Err);
    }
    let equal = reports.iter().all(|r| r.equal);
    let judged = a.target.as_ref().map(|t| target::judged(t, &path)).transpose()?;
    if a.json {
        let codes: Vec<bool> = reports.iter().filter_map(|r| r.codes_equal).collect();
        let codes_equal = (!codes.is_empty()).then(|| codes.iter().all(|c| *c));
        say_json(
            &json!({ "path": a.path, "equal": equal, "codes_equal": codes_equal, "checked": reports, "unreadable": unread.iter().map(ToString::to_string).collect::<Vec<_>>(), "target": judged }),
        )?;
    } else {
        reports.iter().for_each(show);
        unread.iter().for_each(|e| say(&format!("not checked: {e}")));
        if let Some(judgement) = &judged {
            say(judgement.to_string().trim_end());
        }
    }
    if let (true, Some(e)) = (equal, unread.into_iter().next()) {
        return Err(e);
    }
    if equal {
        // What cannot be right there is wrong however sound it is.
        let refused = |e: Error| Error::input("verify::target", e.to_string()).hint(e.hint_text().unwrap_or_default());
        return judged.map_or(Ok(()), |j| j.demand()).map_err(refused);
    }
    let wrong = |r: &Report| !r.findings.is_empty() || r.tensors.iter().any(|t| t.as_recorded == Some(false));
    let (what, hint) = match &against {
        Some(other) if !reports.iter().any(wrong) => (
            format!("other values than `{}`", other.display()),
            "formats that round scales hold the same codes and other values; `--json` has `codes_equal` and the largest difference of each tensor",
        ),
        _ => (
            "something else than it should".to_owned(),
            "copy it again from where it was right, or write it anew with `qfw apply … --overwrite`",
        ),
    };
    Err(Error::input("verify::differs", format!("`{}` holds {what}", a.path.display())).hint(hint))
}

/// What the other crate could not read, as an error of this one.
fn unreadable(e: qfw_verify::Error) -> Error {
    let error = match e.code {
        "verify::nothing-to-compare" => Error::config(e.code, e.message),
        _ => Error::input(e.code, e.message),
    };
    match e.hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

fn show(r: &Report) {
    let mut lines: Vec<String> = r.findings.iter().map(|f| format!("{}: {}", f.code, f.message)).collect();
    lines.extend(r.tensors.iter().filter(|t| t.differs()).map(line));
    let more = lines.len().saturating_sub(LINES);
    lines.iter().take(LINES).for_each(|l| say(l));
    if more > 0 {
        say(&format!("… and {more} more; `--json` lists all"));
    }
    let quantized = r.tensors.iter().filter(|t| t.quantized).count();
    let differ = r.tensors.iter().filter(|t| t.differs()).count();
    let verdict = if r.equal { "all as they should be".to_owned() } else { format!("{differ} differ, {} findings", r.findings.len()) };
    say(&format!("`{}` ({}): {} tensors, {quantized} quantized, {verdict}", r.path.display(), r.container, r.tensors.len()));
    match &r.record {
        Some(file) => say(&format!("compared with the values that `{}` records", file.display())),
        None => say("no run has recorded what belongs here"),
    }
    let list = |what: &str, names: &[String]| {
        if !names.is_empty() {
            say(&format!("{what}: {}", names.join(", ")));
        }
    };
    list("not checked, since nothing says what they should be", &r.unchecked);
    list("buffers that this format leaves out", &r.left_out);
    if !r.known_architecture {
        say("the architecture is unknown here: names and shapes were not checked against the configuration");
    }
}

/// What is to be said of a tensor that differs.
fn line(t: &TensorReport) -> String {
    let mut text = format!("values: `{}`", t.name);
    if t.as_recorded == Some(false) || t.codes_as_recorded == Some(false) {
        text += match t.codes_as_recorded {
            Some(true) => " has the codes that the run wrote, and other scales",
            Some(false) => " has other codes than the run wrote",
            None => " is not what the run wrote",
        };
    }
    match &t.against {
        Some(Difference { differing, largest, first: Some(at), codes_equal, .. }) => {
            let all: usize = t.shape.iter().product();
            let codes = match codes_equal {
                Some(true) => ", by its scales alone",
                Some(false) => ", by its codes",
                None => "",
            };
            let Position { row, column, here, there } = at;
            text += &format!(
                " differs in {differing} of {all} values{codes}; first at [{row}, {column}]: {here} here, {there} there; by at most {largest:e}"
            );
        }
        Some(d) if d.differing > 0 => text += " holds other bytes than there",
        _ => {}
    }
    text
}
