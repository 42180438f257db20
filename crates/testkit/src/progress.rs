//! Progress lines of long runs, each with the time since the run began.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The time since the first call, which marks the beginning of the run.
pub fn elapsed() -> Duration {
    BEGIN.elapsed()
}

/// Prints a progress line to standard error, so that results on standard output stay clean.
#[macro_export]
macro_rules! say {
    ($($words:tt)*) => { eprintln!("{:6.1} s  {}", $crate::progress::elapsed().as_secs_f64(), format_args!($($words)*)) };
}
