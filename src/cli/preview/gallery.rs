//! The templates as they are now: loaded again whenever a file of their directory changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use offramp_mail::{TemplateProblem, Templates};
use tokio::sync::watch;

use crate::cli::WrongConfiguration;

/// How often the directory is looked at. Asking for the times of a hundred files takes less than a millisecond, and
/// finds what is saved on network drives and in a container's mounts, too, of which systems tell no watcher.
const LOOK_EVERY: Duration = Duration::from_millis(400);

/// How deep folders are looked into.
const DEPTH_MAX: usize = 4;

/// What there is to see.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Counts the times that the templates were loaded.
    pub revision: u64,
    /// The templates; those of the last time that they were all right.
    pub templates: Arc<Templates>,
    /// What is wrong with the files now.
    pub problems: Vec<TemplateProblem>,
}

/// The built-in templates, and a directory of others over them.
#[derive(Debug)]
pub struct Gallery {
    directory: Option<PathBuf>,
    shown: watch::Sender<Shown>,
}

impl Gallery {
    /// Loads all templates. Mistakes in the directory do no harm: until they are gone, the built-in mails are shown.
    pub async fn open(directory: Option<PathBuf>) -> Result<Self, WrongConfiguration> {
        let loaded = load(directory.clone()).await;
        let (templates, problems) = match loaded {
            Ok(templates) => (templates, vec![]),
            Err(problems) => {
                let built_in =
                    load(None).await.map_err(|_| WrongConfiguration("the built-in templates are broken".to_owned()))?;
                (built_in, problems)
            }
        };
        let shown = Shown { revision: 1, templates: Arc::new(templates), problems };
        Ok(Self { directory, shown: watch::Sender::new(shown) })
    }

    /// What there is to see now.
    pub fn now(&self) -> Shown {
        self.shown.borrow().clone()
    }

    /// Where the templates come from besides the program.
    pub fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    /// Tells of every change from now on.
    pub fn watch(&self) -> watch::Receiver<Shown> {
        self.shown.subscribe()
    }

    /// Watches the directory, for ever.
    pub async fn follow(self: Arc<Self>) {
        let Some(directory) = self.directory.clone() else { return };
        let mut before = files(directory.clone()).await;
        // What was saved between the first loading and the first look.
        self.reload().await;
        let mut ticks = tokio::time::interval(LOOK_EVERY);
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

/// What cannot be read is not there; loading it says why.
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
