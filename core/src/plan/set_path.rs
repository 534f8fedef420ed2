//! `PATH=VALUE`: one value set at a dotted path.

use super::alias::{SITES, spec_key};
use super::node::{Node, Origin, Value, dotted};
use super::raw::RawRun;
use super::read::{fields_of, list};
use crate::error::{Error, Result, did_you_mean};

/// More segments than any configuration has; it bounds the depth of what a flag can build.
const MAX_SEGMENTS: usize = 32;

/// Splits `PATH=VALUE` at the first `=` outside quotes.
pub(super) fn split_assignment(text: &str) -> Result<(Vec<String>, &str)> {
    let mut quoted = false;
    let split = text.char_indices().find(|(_, c)| {
        quoted ^= *c == '"';
        *c == '=' && !quoted
    });
    let Some((at, _)) = split else {
        return Err(Error::config("config::set", format!("`--set {text}`: no `=`")).hint("write `--set PATH=VALUE`"));
    };
    Ok((split_path(text[..at].trim())?, text[at + 1..].trim()))
}

/// Splits `a.b."c.d"` into segments.
pub(super) fn split_path(text: &str) -> Result<Vec<String>> {
    let fail =
        |why: &str| Err(Error::config("config::set", format!("path `{text}`: {why}")).hint("write a path such as `scheme.weights.format`"));
    let mut segments = vec![String::new()];
    let mut quoted = false;
    let mut was_quoted = false;
    for c in text.chars() {
        match c {
            '"' => (quoted, was_quoted) = (!quoted, true),
            '.' if !quoted => {
                if segments.last().is_some_and(String::is_empty) && !was_quoted {
                    return fail("empty segment");
                }
                was_quoted = false;
                segments.push(String::new());
            }
            c => segments.last_mut().into_iter().for_each(|s| s.push(c)),
        }
    }
    match () {
        () if quoted => fail("a quote is not closed"),
        () if segments.last().is_some_and(String::is_empty) && !was_quoted => fail("empty segment"),
        () if segments.len() > MAX_SEGMENTS => fail("too many segments"),
        () => Ok(segments),
    }
}

/// The path with a pass named by its algorithm replaced by its place in the list, and aliases replaced by what they stand for.
pub(super) fn resolve(root: &Node, mut path: Vec<String>, value: Node, shown: &str) -> Result<(Vec<String>, Node)> {
    if let [first, rest @ ..] = path.as_slice()
        && !fields_of::<RawRun>().contains(&first.as_str())
    {
        let index = pass_index(root, first, shown)?.to_string();
        let head = ["pass", index.as_str(), "options"].map(str::to_owned);
        path = head.into_iter().chain(rest.iter().cloned()).collect();
    }
    let key_at = match path.first().map(String::as_str) {
        Some("scheme") => 2,
        Some("override") => 3,
        _ => return Ok((path, value)),
    };
    let is_key = path.len() == key_at + 1 && SITES.contains(&path[key_at - 1].as_str());
    match path.get(key_at).and_then(|key| spec_key(key)) {
        Some("group-size") if is_key => {
            "granularity".clone_into(&mut path[key_at]);
            let origin = value.origin.clone();
            Ok((path, Node { value: Value::Table(vec![("group".to_owned(), value)]), origin }))
        }
        Some(canonical) if is_key => {
            canonical.clone_into(&mut path[key_at]);
            Ok((path, value))
        }
        _ => Ok((path, value)),
    }
}

/// Sets `value` at `path`. What stands in the way and is neither table nor array is replaced, as is another choice of an enum.
pub(super) fn set_at(root: &mut Node, path: &[String], value: Node, shown: &str) -> Result<()> {
    let Some((last, parents)) = path.split_last() else { return Ok(()) };
    let mut node = root;
    for (depth, segment) in parents.iter().enumerate() {
        node = enter(node, &path[..depth], segment, &value.origin, shown)?;
    }
    let slot = enter(node, parents, last, &value.origin, shown)?;
    *slot = value;
    Ok(())
}

/// The entry `segment` of `node`, which stands at `path`; made where there is none.
fn enter<'a>(node: &'a mut Node, path: &[String], segment: &str, origin: &Origin, shown: &str) -> Result<&'a mut Node> {
    if matches!(node.value, Value::Array(_)) {
        let count = node.items().len();
        let item = match &mut node.value {
            Value::Array(items) => segment.parse::<usize>().ok().and_then(|i| items.get_mut(i)),
            _ => None,
        };
        return item.ok_or_else(|| {
            let what = if count == 1 { "1 entry, index 0".to_owned() } else { format!("{count} entries, counted from 0") };
            Error::config("config::set", format!("{shown}: `{}` has {what}; there is no `{segment}`", dotted(path)))
        });
    }
    if !matches!(node.value, Value::Table(_)) || node.is_other_choice(Some(segment), path) {
        *node = Node { value: Value::Table(Vec::new()), origin: origin.clone() };
    }
    if node.get(segment).is_none() {
        node.insert(segment, Node { value: Value::Table(Vec::new()), origin: origin.clone() });
    }
    node.get_mut(segment).ok_or_else(|| Error::internal("an inserted key is not there"))
}

fn pass_index(root: &Node, name: &str, shown: &str) -> Result<usize> {
    let passes = root.get("pass").map(Node::items).unwrap_or_default();
    let algos = passes.iter().filter_map(|pass| pass.get("algo").and_then(Node::text)).collect::<Vec<_>>();
    let found = passes.iter().enumerate().filter(|(_, pass)| pass.get("algo").and_then(Node::text) == Some(name));
    match found.map(|(i, _)| i).collect::<Vec<_>>().as_slice() {
        [one] => Ok(*one),
        [] => {
            let known = fields_of::<RawRun>();
            let suggestion = did_you_mean(name, algos.iter().chain(known).copied());
            let passes = if algos.is_empty() { "none".to_owned() } else { list(&algos) };
            let message = format!("{shown}: `{name}` is neither a section nor a pass of this run{suggestion}");
            Err(Error::config("config::set", format!("{message}; its passes: {passes}"))
                .hint(format!("add the pass with `--algo`, or set one of the sections {}", list(known))))
        }
        many => Err(Error::config("config::set", format!("{shown}: {} passes are called `{name}`", many.len()))
            .hint(format!("name one by its place, such as `pass.{}.options.…`", many[0]))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_split_at_dots_outside_quotes() {
        assert_eq!(split_path("a.b-c.0").unwrap(), ["a", "b-c", "0"]);
        assert_eq!(split_path("plugins.require.\"x.y\"").unwrap(), ["plugins", "require", "x.y"]);
        let (path, value) = split_assignment("a.\"b=c\" = \"d=e\"").unwrap();
        assert_eq!((path.join("/").as_str(), value), ("a/b=c", "\"d=e\""));
    }

    #[test]
    fn bad_paths_say_why() {
        for (text, message) in [
            ("a.b", "`--set a.b`: no `=`"),
            ("a..b=1", "path `a..b`: empty segment"),
            ("=1", "path ``: empty segment"),
            ("a.=1", "path `a.`: empty segment"),
            ("\"a=1", "`--set \"a=1`: no `=`"),
        ] {
            assert_eq!(split_assignment(text).unwrap_err().to_string(), message);
        }
        assert_eq!(split_path("\"a").unwrap_err().to_string(), "path `\"a`: a quote is not closed");
        assert!(split_path(&"a.".repeat(40)).is_err() && split_path(&vec!["a"; 40].join(".")).is_err());
    }
}
