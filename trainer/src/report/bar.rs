//! Progress bars of one line. A bar is never wider than the terminal, also after the terminal has
//! become narrower.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

use console::{Term, measure_text_width, truncate_str};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};

/// A bar of `len` units. `what` is indicatif's template for the text behind the bar; a message
/// follows it and is cut at the edge of the terminal.
pub fn new(len: u64, what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(&format!("{{bar:20}} {what} {{wide_msg}}"));
    let term = Term::buffered_stderr();
    let target = if term.is_term() {
        ProgressDrawTarget::term_like_with_hz(Box::new(OneLine { term, drawn: AtomicUsize::new(0) }), 10)
    } else {
        ProgressDrawTarget::hidden()
    };
    ProgressBar::with_draw_target(Some(len), target).with_style(style.expect("templates are constants of this program"))
}

/// A terminal that shows one line at a time.
///
/// indicatif fills a line with spaces up to the right edge and counts its rows when it writes it.
/// A terminal that becomes narrower breaks such a line into more rows, which indicatif would never
/// clear.
#[derive(Debug)]
struct OneLine {
    term: Term,
    /// Columns of the line that is shown.
    drawn: AtomicUsize,
}

impl TermLike for OneLine {
    fn width(&self) -> u16 {
        self.term.size().1
    }

    fn height(&self) -> u16 {
        self.term.size().0
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        let text = text.trim_end();
        let text = truncate_str(text, self.width().into(), "");
        self.drawn.fetch_add(measure_text_width(&text), Ordering::Relaxed);
        self.term.write_str(&text)
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.term.write_line(text)
    }

    /// Clears the rows that the line takes at the current width.
    fn clear_line(&self) -> io::Result<()> {
        let rows = rows(self.drawn.swap(0, Ordering::Relaxed), self.width().into());
        self.term.clear_line()?;
        self.term.clear_last_lines(rows.saturating_sub(1))
    }

    fn flush(&self) -> io::Result<()> {
        self.term.flush()
    }

    // There is only one line to move in.
    fn move_cursor_up(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_down(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_right(&self, _: usize) -> io::Result<()> {
        Ok(())
    }

    fn move_cursor_left(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
}

/// Rows that a line of `columns` takes in a terminal of this width.
fn rows(columns: usize, width: usize) -> usize {
    columns.div_ceil(width.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_takes_more_rows_in_a_narrower_terminal() {
        assert_eq!([rows(0, 80), rows(80, 80), rows(80, 79), rows(80, 20), rows(80, 0)], [0, 1, 2, 4, 80]);
    }
}
