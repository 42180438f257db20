//! A running `offramp preview`.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::ops::Deref;
use std::path::Path;
use std::process::ExitStatus;

use serde_json::json;

use crate::http::Response;
use crate::web_process::WebProcess;
use crate::worker_process::bare;

/// The email whose templates the tests change.
pub const EMAIL: &str = "request-declined.account_manager";

/// The program on a free port. Killed when dropped.
pub struct PreviewProcess(WebProcess);

impl Deref for PreviewProcess {
    type Target = WebProcess;

    fn deref(&self) -> &WebProcess {
        &self.0
    }
}

impl PreviewProcess {
    /// Starts the program with these settings, and waits for the address of its page.
    pub fn start(settings: &[(&str, &str)]) -> Self {
        Self::start_with(&[], settings)
    }

    /// The same with these arguments.
    pub fn start_with(arguments: &[&str], settings: &[(&str, &str)]) -> Self {
        let mut program = bare();
        program.args(["preview", "--addr", "127.0.0.1:0"]).args(arguments).envs(settings.iter().copied());
        Self(WebProcess::start(&mut program))
    }

    /// Sends SIGINT, and waits for the exit.
    pub async fn interrupt(self) -> ExitStatus {
        self.0.interrupt().await
    }

    pub async fn send(&self, to: &str, headers: &[(&str, &str)]) -> Response {
        let headers = [headers, &[("Content-Type", "application/json")]].concat();
        let body = json!({ "to": to }).to_string();
        self.ask(&format!("POST /emails/fr-CA/{EMAIL}/full/send"), &headers, &body).await
    }
}

/// Copies the French templates of [`EMAIL`] into a templates directory, and appends `words`.
pub fn write_words(directory: &Path, words: &str) {
    fs::create_dir_all(directory.join("fr")).unwrap();
    let built_in = crate::repository().join("templates/fr");
    for file in fs::read_dir(built_in).unwrap().map(Result::unwrap) {
        if file.file_name().to_str().unwrap().starts_with(EMAIL) {
            let copy = directory.join("fr").join(file.file_name());
            fs::copy(file.path(), &copy).unwrap();
            OpenOptions::new().append(true).open(copy).unwrap().write_all(words.as_bytes()).unwrap();
        }
    }
}
