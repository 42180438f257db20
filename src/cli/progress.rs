//! Progress of anything long, on standard error where that is a terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar for `total` of `what`; invisible where standard error is no terminal.
pub fn progress(total: u64, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(total);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {human_pos}/{human_len} {msg}, {eta} left") {
        bar.set_style(style);
    }
    bar.set_message(what);
    bar
}
