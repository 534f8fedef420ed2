//! Selectors: which sites a name or regular expression means.
//!
//! A selector matches a site if it equals, or as a regular expression matches the whole of, its role path (`blocks.3.attn.q`), its role
//! (`attn.q`), or the stored name of its module (`model.layers.3.self_attn.q_proj`).

use regex::Regex;

use crate::error::{Error, Result, did_you_mean};
use crate::topology::{Linear, Role};

/// A compiled selector.
pub(super) struct Selector {
    text: String,
    regex: Regex,
}

impl Selector {
    pub(super) fn new(text: &str) -> Result<Self> {
        let regex = Regex::new(&format!("^(?:{text})$")).map_err(|e| {
            Error::config("config::selector", format!("`{text}` is not a valid selector"))
                .with_source(e)
                .hint("selectors are regular expressions over role paths, such as `blocks\\.\\d+\\.mlp\\.down`")
        })?;
        Ok(Self { text: text.to_owned(), regex })
    }

    pub(super) fn matches(&self, linear: &Linear) -> bool {
        [&linear.site.to_string(), linear.site.role.name(), &linear.module].into_iter().any(|name| self.is(name))
    }

    /// Whether it means something of that name.
    pub(super) fn is(&self, name: &str) -> bool {
        self.regex.is_match(name)
    }

    /// Embeddings are not linears, and a model taken matrix by matrix has no head, but all of them may be named.
    pub(super) fn matches_unlisted(&self) -> bool {
        [Role::Embed, Role::PositionEmbed, Role::Head].iter().any(|r| self.is(r.name()))
    }

    /// The error for a selector that matches nothing.
    pub(super) fn unmatched(&self, place: &str, linears: &[&Linear]) -> Error {
        let mut roles: Vec<&str> = linears.iter().map(|l| l.site.role.name()).collect();
        roles.sort_unstable();
        roles.dedup();
        let nearest = did_you_mean(&self.text, roles.iter().copied());
        Error::config("config::unmatched-selector", format!("{place} `{}` matches no site of this model{nearest}", self.text))
            .hint(format!("roles of this model: {}; sites are named `blocks.N.ROLE`", roles.join(", ")))
    }
}
