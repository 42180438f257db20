//! What files look like from outside: enough to notice that one was saved, added or removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// How often files are polled. Polling a hundred files takes less than a millisecond. Unlike file system events, it also
/// works on network drives and container mounts.
pub const POLL_INTERVAL: Duration = Duration::from_millis(400);

/// The depth of folders that are polled.
const DEPTH_MAX: usize = 4;

/// Files with their size and the time of their last change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot(Vec<(PathBuf, u64, Option<SystemTime>)>);

impl Snapshot {
    /// The files among `paths`, and in the directories among them.
    pub async fn of(paths: Vec<PathBuf>) -> Self {
        let look = move || {
            let mut files = Vec::new();
            for path in &paths {
                add(path, 0, &mut files);
            }
            files.sort();
            Self(files)
        };
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
    }

    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().map(|(path, ..)| path.as_path())
    }
}

/// Skips unreadable files: loading them reports the reason.
fn add(path: &Path, depth: usize, files: &mut Vec<(PathBuf, u64, Option<SystemTime>)>) {
    match fs::metadata(path) {
        Ok(about) if about.is_dir() && depth < DEPTH_MAX => {
            for entry in fs::read_dir(path).into_iter().flatten().flatten() {
                add(&entry.path(), depth + 1, files);
            }
        }
        Ok(about) => files.push((path.to_owned(), about.len(), about.modified().ok())),
        Err(_) => {}
    }
}
