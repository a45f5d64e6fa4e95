//! The part of a feed that a region keeps, by path patterns as in `.gitignore`.
//!
//! A pattern names what is kept: `webapps/**`, `conf`, `*.war`; `!` takes out again. Folders on the way
//! to what is kept come with it. Names only: nothing here looks at a file.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path};

use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::RelPath;

/// Which paths of a feed are kept.
#[derive(Debug, Clone)]
pub struct Subset {
    /// None: all.
    rules: Option<Gitignore>,
    patterns: Vec<String>,
}

impl Subset {
    /// All paths.
    #[must_use]
    pub fn all() -> Self {
        Subset { rules: None, patterns: Vec::new() }
    }

    /// The paths that these patterns name; without any, all.
    ///
    /// # Errors
    /// Which of them is no pattern, and why.
    pub fn new(patterns: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self, String> {
        let mut builder = GitignoreBuilder::new("");
        let mut named = Vec::new();
        for pattern in patterns {
            let pattern = pattern.as_ref();
            let fault = |error: &dyn std::fmt::Display| {
                format!("\"{pattern}\" is not a pattern of paths: {error}")
            };
            if pattern.trim().is_empty() || pattern.starts_with('#') {
                return Err(fault(&"it names nothing"));
            }
            if pattern.contains(['\n', '\0']) {
                return Err(fault(&"it has more than one line"));
            }
            builder.add_line(None, pattern).map_err(|error| fault(&error))?;
            named.push(pattern.to_owned());
        }
        let rules = builder.build().map_err(|error| error.to_string())?;
        Ok(Subset { rules: Some(rules).filter(|_| !named.is_empty()), patterns: named })
    }

    /// Whether everything is kept.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.rules.is_none()
    }

    /// The patterns, as they were given.
    #[must_use]
    pub fn patterns(&self) -> &[String] {
        &self.patterns
    }

    /// Whether a path that is no folder is kept. A folder is kept when something in it is, or when
    /// it is named itself.
    #[must_use]
    pub fn holds(&self, path: &RelPath, is_dir: bool) -> bool {
        let Some(rules) = &self.rules else { return true };
        let path = Path::new(OsStr::from_bytes(path.as_bytes()));
        rules.matched_path_or_any_parents(path, is_dir).is_ignore()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_patterns_name_is_kept() {
        let subset = Subset::new(["webapps/**", "/conf", "*.war", "!webapps/secret/**"]).unwrap();
        for (path, kept) in [
            ("webapps/a", true),
            ("webapps/b/c", true),
            ("conf/x/y", true),
            ("deep/conf/x", false),
            ("deep/shop.war", true),
            ("lib/a.jar", false),
            ("webapps/secret/key", false),
        ] {
            let parsed = RelPath::parse(path.as_bytes()).unwrap();
            assert_eq!(subset.holds(&parsed, false), kept, "{path}");
        }
        let none: [&str; 0] = [];
        assert!(Subset::new(none).unwrap().holds(&RelPath::parse(b"x").unwrap(), false));
        for bad in ["", " ", "# x", "two\nlines"] {
            assert!(Subset::new([bad]).is_err(), "{bad}");
        }
    }
}
