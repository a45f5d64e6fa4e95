//! `status --watch`: the same view again and again, until Ctrl-C.
//!
//! On a terminal it redraws in place, cut to the window; elsewhere each view follows the last, after a
//! blank line. A node that does not answer is told, and asked again.

use std::{
    io::{IsTerminal, Write, stdout},
    time::Duration,
};

use anyhow::Result;

use super::{client::Client, paint, status};

/// How often it is drawn.
const EVERY: Duration = Duration::from_secs(1);

/// Draws until a signal ends the program, or nobody reads any more.
pub(super) async fn run(client: &Client) -> Result<()> {
    let mut pulse = tokio::time::interval(EVERY);
    pulse.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut screen = Screen::new();
    let stop = tokio::signal::ctrl_c();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            _ = &mut stop => break,
            _ = pulse.tick() => {}
        }
        let view = tokio::select! {
            _ = &mut stop => break,
            view = status::view(client) => view,
        };
        let text = view.unwrap_or_else(|error| format!("{}\n", paint::bad(&format!("{error:#}"))));
        if screen.draw(&text).is_err() {
            // Whoever read it has gone.
            break;
        }
    }
    Ok(())
}

/// Where it is drawn.
struct Screen {
    is_terminal: bool,
    is_first: bool,
}

impl Screen {
    fn new() -> Self {
        Self { is_terminal: stdout().is_terminal(), is_first: true }
    }

    fn draw(&mut self, text: &str) -> std::io::Result<()> {
        let mut out = stdout().lock();
        if self.is_terminal {
            let size = terminal_size::terminal_size();
            let (columns, rows) = size.map_or((80, 24), |(columns, rows)| (columns.0, rows.0));
            write!(out, "{}", redrawn(text, rows.into(), columns.into()))?;
        } else {
            let between = if self.is_first { "" } else { "\n" };
            write!(out, "{between}{text}")?;
        }
        self.is_first = false;
        out.flush()
    }
}

/// From the top left: each line cut to the window and cleared to its end, then the rest of the screen.
fn redrawn(text: &str, rows: usize, columns: usize) -> String {
    let mut out = "\u{1b}[H".to_owned();
    for line in text.lines().take(rows.saturating_sub(1)) {
        out.push_str(&cut(line, columns));
        out.push_str("\u{1b}[K\n");
    }
    out.push_str("\u{1b}[J");
    out
}

/// The first columns of a line; what sets colours takes no room.
fn cut(line: &str, columns: usize) -> String {
    let (mut out, mut width, mut in_code) = (String::new(), 0, false);
    for c in line.chars() {
        let is_code = in_code || c == '\u{1b}';
        in_code = is_code && c != 'm';
        if !is_code {
            width += 1;
        }
        if is_code || width <= columns {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_fits_the_window() {
        let drawn = redrawn("abc\ndefgh\nx\ny\n", 4, 4);
        assert_eq!(drawn, "\u{1b}[Habc\u{1b}[K\ndefg\u{1b}[K\nx\u{1b}[K\n\u{1b}[J");
        assert_eq!(cut("\u{1b}[31mabcdef\u{1b}[0m", 3), "\u{1b}[31mabc\u{1b}[0m");
    }
}
