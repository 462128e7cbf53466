//! Progress bars, never wider than the terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar of `len` units, with what `what` says of them and a message that is cut where the terminal ends.
pub fn new(len: u64, what: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(&format!("{{bar:20}} {what} {{wide_msg}}"));
    ProgressBar::new(len).with_style(style.expect("templates are constants of this program"))
}
