//! Emails as `.eml` files in a directory, for tests and trials.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::message::ComposedEmail;
use crate::send_error::{Cause, SendError};

/// Writes an email under its own name, completely or not at all, and returns the path. An email counts as sent when its
/// file is on the disk.
pub(crate) async fn write(directory: &Path, email: &ComposedEmail) -> Result<String, SendError> {
    let (directory, name) = (directory.to_owned(), file_name(email));
    // Any program shall be able to read the file.
    let bytes = email.bytes(false).map_err(|error| SendError::Transient(Cause::new(error.to_string())))?;
    let temporary = format!(".{}.tmp", email.entry_id);
    let path = directory.join(&name).display().to_string();
    blocking(move || write_synced(&directory, &temporary, &name, &bytes)).await.map(|()| path)
}

/// Writes a file and removes it again; where the directory is missing, in the nearest one that exists. Returns a sentence about the
/// directory.
pub(crate) async fn check(directory: &Path) -> Result<String, SendError> {
    let directory = directory.to_owned();
    blocking(move || {
        let existing = directory.ancestors().find(|path| path.is_dir()).unwrap_or(&directory);
        let probe = existing.join(format!(".offramp-{}.tmp", uuid::Uuid::new_v4()));
        File::create(&probe)?.write_all(b"offramp")?;
        fs::remove_file(&probe)?;
        let is_missing = existing != directory;
        Ok(if is_missing { "the directory is missing; `offramp run` creates it" } else { "the directory is writable" }
            .to_owned())
    })
    .await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, SendError> {
    let result = match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(io::Error::other(error)),
    };
    result.map_err(|error| SendError::Unavailable(Cause::new(format!("email directory: {error}"))))
}

fn write_synced(directory: &Path, temporary: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary: PathBuf = directory.join(temporary);
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, directory.join(name))?;
    File::open(directory)?.sync_all()
}

/// `2026-06-14T120000Z-payment-failed-marie_example.com-0190….eml`: sorted by time, and safe on every file system.
fn file_name(email: &ComposedEmail) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '.') { c } else { '_' };
    let to: String = email.to().chars().map(safe).take(60).collect();
    format!("{}-{}-{to}-{}.eml", email.date.format("%Y-%m-%dT%H%M%SZ"), email.template, email.entry_id)
}
