//! The clock of a machine that is wrong, for one process: libfaketime shows it another time. The monotonic clock stays as it is, as on a
//! machine whose clock somebody sets.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use crate::process;

/// A clock that differs from this machine's. It can be set while processes run.
pub struct MachineClock {
    directory: tempfile::TempDir,
}

impl MachineClock {
    /// A clock that is ahead by this many seconds.
    pub fn ahead_by(seconds: i64) -> Self {
        let clock = Self { directory: tempfile::tempdir().unwrap() };
        clock.set(seconds);
        clock
    }

    /// Sets the clock: from now on it is ahead by this many seconds.
    pub fn set(&self, seconds: i64) {
        let new = self.directory.path().join("new");
        fs::write(&new, format!("{seconds:+}")).unwrap();
        fs::rename(new, self.file()).unwrap();
    }

    /// Shows this clock to a process that is started later.
    pub fn show<'a>(&self, program: &'a mut Command) -> &'a mut Command {
        program
            .env("LD_PRELOAD", library())
            .env("FAKETIME_TIMESTAMP_FILE", self.file())
            .env("FAKETIME_NO_CACHE", "1")
            .env("DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1")
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("offset")
    }
}

/// The library, fetched if it is not installed.
fn library() -> &'static Path {
    static LIBRARY: LazyLock<PathBuf> = LazyLock::new(|| {
        let mut script = Command::new(crate::repository().join("scripts/faketime"));
        let printed = process::run(&mut script, Command::output).unwrap();
        assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
        String::from_utf8(printed.stdout).unwrap().lines().next().unwrap().into()
    });
    &LIBRARY
}
