//! Colours, on terminals only.
//!
//! Whoever pipes the output, or sets `NO_COLOR` to anything but nothing, gets the bare text; `TERM=dumb`
//! likewise.

use std::{
    fmt,
    io::{IsTerminal, stdout},
    sync::LazyLock,
};

/// Whether stdout is to have colours.
static IS_COLOURED: LazyLock<bool> = LazyLock::new(|| {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    stdout().is_terminal() && !no_color && !is_dumb
});

/// A text that may have a colour; its width is the text's.
pub(super) struct Painted<'a> {
    text: &'a str,
    code: &'static str,
    is_coloured: bool,
}

/// As it should be.
pub(super) fn good(text: &str) -> Painted<'_> {
    painted(text, "32")
}

/// To be looked at.
pub(super) fn warning(text: &str) -> Painted<'_> {
    painted(text, "33")
}

/// Wrong.
pub(super) fn bad(text: &str) -> Painted<'_> {
    painted(text, "31")
}

/// Where something begins.
pub(super) fn heading(text: &str) -> Painted<'_> {
    painted(text, "1")
}

fn painted<'a>(text: &'a str, code: &'static str) -> Painted<'a> {
    Painted { text, code, is_coloured: *IS_COLOURED }
}

impl fmt::Display for Painted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Painted { text, code, is_coloured } = self;
        if !is_coloured {
            return f.pad(text);
        }
        write!(f, "\u{1b}[{code}m{text}\u{1b}[0m")?;
        let width = f.width().unwrap_or(0).saturating_sub(text.chars().count());
        write!(f, "{:width$}", "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colour_takes_no_room() {
        let bare = |is_coloured| Painted { text: "ok", code: "32", is_coloured };
        assert_eq!(format!("{:4}|", bare(false)), "ok  |");
        assert_eq!(format!("{:4}|", bare(true)), "\u{1b}[32mok\u{1b}[0m  |");
    }
}
