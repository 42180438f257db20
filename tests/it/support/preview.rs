//! `offramp preview`, as people run it.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use super::eventually;
use super::process::{self, Signal};
use super::worker::bare;

/// The mail of which tests change the templates.
pub const MAIL: &str = "request-declined.account_manager";

/// The program with a page on a port of its own; ended when dropped.
pub struct Preview {
    child: Child,
    /// `127.0.0.1:1234`
    pub address: String,
    /// A program whose output nobody reads any more ends.
    _output: BufReader<ChildStdout>,
}

impl Preview {
    /// Starts it with these settings, and waits until it says where its page is.
    pub fn start(settings: &[(&str, &str)]) -> Self {
        let mut program = bare();
        program
            .args(["preview", "--addr", "127.0.0.1:0"])
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = process::run(&mut program, Command::spawn).unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let address = line.split_once("http://").expect("it says where its page is").1;
        let address = address.trim_end().trim_end_matches('/').to_owned();
        Self { child, address, _output: output }
    }

    /// Ctrl-C; gives how it ended.
    pub async fn interrupt(mut self) -> ExitStatus {
        process::signal(&self.child, Signal::INT).unwrap();
        eventually("the end of the preview", || {
            let status = self.child.try_wait().unwrap();
            async move { status }
        })
        .await
    }
}

impl Drop for Preview {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Copies the French words of [`MAIL`] into a templates directory, and writes `words` at the end of them.
pub fn write_words(directory: &Path, words: &str) {
    fs::create_dir_all(directory.join("fr")).unwrap();
    let built_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("templates/fr");
    for file in fs::read_dir(built_in).unwrap().map(Result::unwrap) {
        if file.file_name().to_str().unwrap().starts_with(MAIL) {
            let copy = directory.join("fr").join(file.file_name());
            fs::copy(file.path(), &copy).unwrap();
            OpenOptions::new().append(true).open(copy).unwrap().write_all(words.as_bytes()).unwrap();
        }
    }
}
