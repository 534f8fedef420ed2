//! Options as the host passes them: a flat JSON object, checked against the schema. Enough of a reader for numbers, words and switches;
//! a plugin with tables or lists among its options brings a JSON library of its own.

/// The text of a member's value, if the object has it.
fn value<'a>(object: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = object.trim().strip_prefix('{')?;
    loop {
        let (key, after) = string(rest.trim_start())?;
        let after = after.trim_start().strip_prefix(':')?.trim_start();
        let end = length(after)?;
        if key == name {
            return Some(after[..end].trim());
        }
        rest = after[end..].trim_start().strip_prefix(',')?;
    }
}

/// A string at the beginning of `text`, without its quotes, and what follows.
fn string(text: &str) -> Option<(&str, &str)> {
    let inner = text.strip_prefix('"')?;
    let mut escaped = false;
    for (i, c) in inner.char_indices() {
        match c {
            '"' if !escaped => return Some((&inner[..i], &inner[i + 1..])),
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    None
}

/// Where the value at the beginning of `text` ends.
fn length(text: &str) -> Option<usize> {
    let (mut depth, mut at) = (0usize, 0);
    while let Some(c) = text[at..].chars().next() {
        match c {
            '"' => {
                at = text.len() - string(&text[at..])?.1.len();
                continue;
            }
            '{' | '[' => depth += 1,
            '}' | ']' if depth > 0 => depth -= 1,
            '}' | ']' | ',' if depth == 0 => return Some(at),
            _ => {}
        }
        at += c.len_utf8();
    }
    None
}

/// A number among the options.
pub fn number(options: &str, name: &str) -> Option<f64> {
    value(options, name)?.parse().ok()
}

/// A switch among the options.
pub fn switch(options: &str, name: &str) -> Option<bool> {
    value(options, name)?.parse().ok()
}

/// A word among the options: a string without escapes.
pub fn word<'a>(options: &'a str, name: &str) -> Option<&'a str> {
    let (word, _) = string(value(options, name)?)?;
    (!word.contains('\\')).then_some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_objects_are_read() {
        let options = r#"{"note":"a \"b\", {c","clip": 0.75 ,"deep":{"clip":2,"x":[1,{}]},"fast":true,"order":"static"}"#;
        assert_eq!(number(options, "clip"), Some(0.75));
        assert_eq!(switch(options, "fast"), Some(true));
        assert_eq!(word(options, "order"), Some("static"));
        assert_eq!((word(options, "note"), number(options, "x"), number("", "x"), number("{}", "x")), (None, None, None, None));
        assert_eq!(number("{\"clip\"", "clip"), None);
    }
}
