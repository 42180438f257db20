//! Progress bars on standard error.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar that counts to `total`. Invisible if standard error is not a terminal.
pub fn progress(total: u64, unit: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(total);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {human_pos}/{human_len} {msg}, {eta} left") {
        bar.set_style(style);
    }
    bar.set_message(unit);
    bar
}
