//! Versions of engines: numbers between dots, of which fewer stand for all that begin with them.

use std::cmp::Ordering;
use std::fmt;

/// `0.32`, or `5.19.1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version(Vec<u64>);

impl Version {
    /// The version that `text` says, if it is one.
    pub(super) fn parse(text: &str) -> Option<Self> {
        text.split('.').map(|n| n.parse().ok()).collect::<Option<Vec<u64>>>().map(Self)
    }

    /// Whether it is `other`, or one of its releases: `0.32.1` is a `0.32`.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.0.starts_with(&other.0)
    }

    /// How it stands to the whole of `other`: `0.32.1` is neither before `0.32` nor after it.
    pub(super) fn against(&self, other: &Self) -> Ordering {
        let numbers = (0..other.0.len()).map(|i| self.0.get(i).copied().unwrap_or(0));
        numbers.cmp(other.0.iter().copied())
    }

    /// The nearest of some versions: the last that is not newer, else the first.
    pub(super) fn nearest<'a>(&self, of: &'a [Self]) -> Option<&'a Self> {
        let mut sorted: Vec<&Self> = of.iter().collect();
        sorted.sort_by(|a, b| a.0.cmp(&b.0));
        sorted.iter().rev().find(|v| self.against(v) != Ordering::Less).or_else(|| sorted.first()).copied()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.iter().map(ToString::to_string).collect::<Vec<_>>().join("."))
    }
}

/// Which versions a rule is about: those that were tried, or a range whose ends belong to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Range {
    pub since: Option<Version>,
    pub until: Option<Version>,
}

impl Range {
    /// Whether `version` is in it; `tried`: it is one of those that the engine's rules are about.
    pub(super) fn holds(&self, version: &Version, tried: bool) -> bool {
        match (&self.since, &self.until) {
            (None, None) => tried,
            (since, until) => {
                since.as_ref().is_none_or(|s| version.against(s) != Ordering::Less)
                    && until.as_ref().is_none_or(|u| version.against(u) != Ordering::Greater)
            }
        }
    }

    /// In words; nothing for those that were tried.
    pub(super) fn in_words(&self) -> Option<String> {
        match (&self.since, &self.until) {
            (None, None) => None,
            (Some(s), Some(u)) if s == u => Some(format!("{s}")),
            (Some(s), Some(u)) => Some(format!("{s} to {u}")),
            (Some(s), None) => Some(format!("{s} and later")),
            (None, Some(u)) => Some(format!("{u} and before")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(text: &str) -> Version {
        Version::parse(text).unwrap()
    }

    #[test]
    fn versions_are_compared_number_by_number() {
        assert!(v("0.32.1").is(&v("0.32")) && !v("0.320").is(&v("0.32")) && !v("0.3").is(&v("0.32")));
        assert!(Version::parse("0.32rc1").is_none() && Version::parse("").is_none() && Version::parse("0..1").is_none());
        let order = |a: &str, b: &str| v(a).against(&v(b));
        assert_eq!(order("0.9", "0.10"), Ordering::Less);
        assert_eq!(
            (order("5.19.3", "5.19"), order("5.20", "5.19"), order("5", "5.19")),
            (Ordering::Equal, Ordering::Greater, Ordering::Less)
        );
    }

    #[test]
    fn the_nearest_is_the_last_before_or_else_the_first() {
        let tried = [v("5.23"), v("5.19"), v("5.9")];
        for (asked, nearest) in [("5.21", "5.19"), ("5.40", "5.23"), ("5.10", "5.9"), ("4.57", "5.9"), ("5.19.2", "5.19")] {
            assert_eq!(v(asked).nearest(&tried), Some(&v(nearest)), "{asked}");
        }
        assert_eq!(v("1").nearest(&[]), None);
    }

    #[test]
    fn ends_of_a_range_belong_to_it() {
        let range = |since: Option<&str>, until: Option<&str>| Range { since: since.map(v), until: until.map(v) };
        let holds = |r: &Range, version: &str| r.holds(&v(version), false);
        let both = range(Some("5.19"), Some("5.23"));
        assert!(holds(&both, "5.19") && holds(&both, "5.23.4") && holds(&both, "5.20") && !holds(&both, "5.18.9") && !holds(&both, "5.24"));
        assert!(holds(&range(Some("0.32"), None), "1.0") && !holds(&range(None, Some("0.32")), "0.33"));
        assert!(!holds(&Range::default(), "1") && Range::default().holds(&v("1"), true));
    }
}
