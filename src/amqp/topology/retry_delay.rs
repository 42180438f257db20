//! The delays between the attempts at a command.

use std::time::Duration;

use strum::IntoStaticStr;

/// The delay before a retry. There is one queue for each; the names are the endings of the queues' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, IntoStaticStr)]
pub enum RetryDelay {
    #[strum(serialize = "5s")]
    S5,
    #[strum(serialize = "30s")]
    S30,
    #[strum(serialize = "2m")]
    M2,
    #[strum(serialize = "10m")]
    M10,
    #[strum(serialize = "1h")]
    H1,
}

impl RetryDelay {
    /// Every delay, in the order of the attempts.
    pub const ALL: [Self; 5] = [Self::S5, Self::S30, Self::M2, Self::M10, Self::H1];

    /// The delay after the delivery with this `attempt`, counted from 0. `None` once all delays are used.
    #[must_use]
    pub fn for_attempt(attempt: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(attempt).ok()?).copied()
    }

    #[must_use]
    pub fn duration(self) -> Duration {
        Duration::from_secs(match self {
            Self::S5 => 5,
            Self::S30 => 30,
            Self::M2 => 2 * 60,
            Self::M10 => 10 * 60,
            Self::H1 => 60 * 60,
        })
    }

    pub(super) fn as_str(self) -> &'static str {
        self.into()
    }

    pub(super) fn milliseconds(self) -> i32 {
        i32::try_from(self.duration().as_millis()).unwrap_or(i32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_attempt_has_a_longer_delay_until_the_last() {
        let seconds: Vec<_> =
            (0..7).map(|attempt| RetryDelay::for_attempt(attempt).map(|d| d.duration().as_secs())).collect();
        assert_eq!(seconds, [Some(5), Some(30), Some(120), Some(600), Some(3_600), None, None]);
    }
}
