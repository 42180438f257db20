//! What the preview shows now: the author's templates and organization, loaded again when one of their files changes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use offramp_mail::{EmailKind, TemplateProblem, Templates};
use tokio::sync::watch;

use super::file_watch::{POLL_INTERVAL, Snapshot};
use super::newest_valid::NewestValid;
use super::organization_file::{self, ShownOrganization};
use super::problem::Problem;
use crate::cli::error::WrongConfiguration;

/// The templates, the organization and the errors after one load.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The number of loads so far.
    pub revision: u64,
    pub emails: Arc<NewestValid>,
    /// The organization of the author's file: its last version that could be read. `None`: the organization of the samples.
    pub organization: Option<Arc<ShownOrganization>>,
    /// The errors in the files now.
    pub problems: Vec<Problem>,
    /// What is allowed in them, but probably not meant.
    pub warnings: Vec<Problem>,
}

/// The built-in templates, a directory whose files replace them, and an organization's file.
#[derive(Debug)]
pub struct Gallery {
    directory: Option<PathBuf>,
    organization_file: Option<PathBuf>,
    built_in: Arc<Templates>,
    shown: watch::Sender<Shown>,
}

impl Gallery {
    /// Loads everything. What has errors is shown as built in until they are fixed.
    pub async fn open(
        directory: Option<PathBuf>,
        organization_file: Option<PathBuf>,
    ) -> Result<Self, WrongConfiguration> {
        if let Some(path) = &organization_file {
            std::fs::metadata(path).map_err(|error| {
                WrongConfiguration(format!("--organization: cannot read {}: {error}", path.display()))
            })?;
        }
        let built_in = tokio::task::spawn_blocking(|| Templates::load(None)).await.ok().and_then(Result::ok);
        let built_in = Arc::new(built_in.ok_or_else(|| {
            WrongConfiguration("internal error: the built-in templates contain errors (bug)".to_owned())
        })?);
        let emails = Arc::new(NewestValid::new(Arc::clone(&built_in), &[]));
        let shown = Shown { revision: 0, emails, organization: None, problems: vec![], warnings: vec![] };
        let gallery = Self { directory, organization_file, built_in, shown: watch::Sender::new(shown) };
        gallery.reload(&gallery.snapshot().await).await;
        Ok(gallery)
    }

    pub fn now(&self) -> Shown {
        self.shown.borrow().clone()
    }

    /// The directory whose files replace built-in templates.
    pub fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    pub fn organization_file(&self) -> Option<&Path> {
        self.organization_file.as_deref()
    }

    /// Receives every reload.
    pub fn watch(&self) -> watch::Receiver<Shown> {
        self.shown.subscribe()
    }

    /// Polls the files until cancelled.
    pub async fn follow(self: Arc<Self>) {
        if self.directory.is_none() && self.organization_file.is_none() {
            return;
        }
        let mut before = self.snapshot().await;
        // Includes files that were saved between the first load and the first poll.
        self.reload(&before).await;
        let mut ticks = tokio::time::interval(POLL_INTERVAL);
        loop {
            ticks.tick().await;
            let now = self.snapshot().await;
            if now != before {
                self.reload(&now).await;
                before = now;
            }
        }
    }

    async fn snapshot(&self) -> Snapshot {
        Snapshot::of(self.directory.iter().chain(&self.organization_file).cloned().collect()).await
    }

    async fn reload(&self, files: &Snapshot) {
        let (directory, organization_file) = (self.directory.clone(), self.organization_file.clone());
        let (built_in, before, files) = (Arc::clone(&self.built_in), self.now(), files.clone());
        let loading = tokio::task::spawn_blocking(move || {
            let mut problems = Vec::new();
            let mut organization = before.organization;
            if let Some(path) = &organization_file {
                let (loaded, found) = organization_file::load(path);
                organization = loaded.map(Arc::new).or(organization);
                problems.extend(found);
            }
            let (newest, found) = match &directory {
                Some(_) => load_templates(directory.as_deref()),
                None => (Arc::clone(&built_in), vec![]),
            };
            problems.extend(found);
            let warnings = newest.warnings().iter().cloned().map(Problem::from).collect();
            let locale = organization.as_ref().map(|organization| organization.locale().to_owned());
            let wanted: Vec<String> = newest.locales().chain(locale).collect();
            let built_in = NewestValid::new(built_in, &wanted);
            let emails = NewestValid::new(newest, &wanted)
                .with_earlier(&before.emails, |locale, kind| {
                    built_in.has(locale, kind) || has_file(&files, locale, kind)
                })
                .with_earlier(&built_in, |_, _| true);
            (Arc::new(emails), organization, problems, warnings)
        });
        match loading.await {
            Ok((emails, organization, problems, warnings)) => self.shown.send_modify(|shown| {
                *shown = Shown { revision: shown.revision + 1, emails, organization, problems, warnings };
            }),
            Err(error) => self.shown.send_modify(|shown| {
                let file = self.directory.as_ref().map_or_else(String::new, |path| path.display().to_string());
                shown.revision += 1;
                shown.problems = vec![Problem { file, line: None, message: format!("cannot be loaded: {error}") }];
            }),
        }
    }
}

fn load_templates(directory: Option<&Path>) -> (Arc<Templates>, Vec<Problem>) {
    let (templates, problems): (Templates, Vec<TemplateProblem>) = Templates::load_valid(directory);
    (Arc::new(templates), problems.into_iter().map(Problem::from).collect())
}

/// Whether a language has a file for this email, valid or not.
fn has_file(files: &Snapshot, locale: &str, kind: EmailKind) -> bool {
    let name = format!("{kind}.md");
    let language = |tag: &str| tag.split(['-', '_']).next().unwrap_or_default().to_lowercase();
    files.paths().any(|path| {
        let folder = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
        path.file_name().is_some_and(|file| *file == *name) && language(&folder) == language(locale)
    })
}
