//! The current templates, reloaded when a file in their directory changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use offramp_mail::{TemplateProblem, Templates};
use tokio::sync::watch;

use crate::cli::error::WrongConfiguration;

/// How often the directory is polled. Polling a hundred files takes less than a millisecond. Unlike file system events, it also
/// works on network drives and container mounts.
const POLL_INTERVAL: Duration = Duration::from_millis(400);

/// The depth of folders that are polled.
const DEPTH_MAX: usize = 4;

/// The templates and the errors of one load.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The number of loads so far.
    pub revision: u64,
    /// The templates of the last load without errors.
    pub templates: Arc<Templates>,
    /// The errors in the files now.
    pub problems: Vec<TemplateProblem>,
}

/// The built-in templates, and a directory whose files replace them.
#[derive(Debug)]
pub struct Gallery {
    directory: Option<PathBuf>,
    shown: watch::Sender<Shown>,
}

impl Gallery {
    /// Loads all templates. If the directory has errors, the built-in templates are shown until they are fixed.
    pub async fn open(directory: Option<PathBuf>) -> Result<Self, WrongConfiguration> {
        let loaded = load(directory.clone()).await;
        let (templates, problems) = match loaded {
            Ok(templates) => (templates, vec![]),
            Err(problems) => {
                let built_in = load(None).await.map_err(|_| {
                    WrongConfiguration("internal error: the built-in templates contain errors (bug)".to_owned())
                })?;
                (built_in, problems)
            }
        };
        let shown = Shown { revision: 1, templates: Arc::new(templates), problems };
        Ok(Self { directory, shown: watch::Sender::new(shown) })
    }

    /// The current templates and errors.
    pub fn now(&self) -> Shown {
        self.shown.borrow().clone()
    }

    /// The directory whose files replace built-in templates.
    pub fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    /// Receives every reload.
    pub fn watch(&self) -> watch::Receiver<Shown> {
        self.shown.subscribe()
    }

    /// Polls the directory until cancelled.
    pub async fn follow(self: Arc<Self>) {
        let Some(directory) = self.directory.clone() else { return };
        let mut before = files(directory.clone()).await;
        // Includes files that were saved between the first load and the first poll.
        self.reload().await;
        let mut ticks = tokio::time::interval(POLL_INTERVAL);
        loop {
            ticks.tick().await;
            let now = files(directory.clone()).await;
            if now != before {
                before = now;
                self.reload().await;
            }
        }
    }

    async fn reload(&self) {
        let loaded = load(self.directory.clone()).await;
        self.shown.send_modify(|shown| {
            shown.revision += 1;
            match loaded {
                Ok(templates) => {
                    shown.templates = Arc::new(templates);
                    shown.problems.clear();
                }
                Err(problems) => shown.problems = problems,
            }
        });
    }
}

async fn load(directory: Option<PathBuf>) -> Result<Templates, Vec<TemplateProblem>> {
    let shown = directory.as_ref().map_or_else(String::new, |path| path.display().to_string());
    tokio::task::spawn_blocking(move || Templates::load(directory.as_deref())).await.unwrap_or_else(|error| {
        Err(vec![TemplateProblem { file: shown, line: None, message: format!("cannot be loaded: {error}") }])
    })
}

/// Files with their size and the time of their last change.
type Files = Vec<(PathBuf, u64, Option<SystemTime>)>;

async fn files(directory: PathBuf) -> Files {
    let look = move || {
        let mut files = Vec::new();
        add_files(&directory, 0, &mut files);
        files.sort();
        files
    };
    tokio::task::spawn_blocking(look).await.unwrap_or_default()
}

/// Skips unreadable files: loading them reports the reason.
fn add_files(directory: &Path, depth: usize, files: &mut Files) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        match fs::metadata(&path) {
            Ok(about) if about.is_dir() && depth < DEPTH_MAX => add_files(&path, depth + 1, files),
            Ok(about) => files.push((path, about.len(), about.modified().ok())),
            Err(_) => {}
        }
    }
}
