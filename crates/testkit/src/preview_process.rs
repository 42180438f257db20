//! A running `offramp preview`.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::eventually;
use crate::http::Response;
use crate::process::{self, Signal};
use crate::worker_process::bare;

/// The email whose templates the tests change.
pub const EMAIL: &str = "request-declined.account_manager";

/// The program on a free port. Killed when dropped.
pub struct PreviewProcess {
    child: Child,
    /// `127.0.0.1:1234`
    pub address: String,
    /// Kept open: the program exits when its standard output closes.
    _output: io::BufReader<ChildStdout>,
}

impl PreviewProcess {
    /// Starts the program with these settings, and waits for the address of its page.
    pub fn start(settings: &[(&str, &str)]) -> Self {
        Self::start_with(&[], settings)
    }

    /// The same with these arguments.
    pub fn start_with(arguments: &[&str], settings: &[(&str, &str)]) -> Self {
        let mut program = bare();
        program
            .args(["preview", "--addr", "127.0.0.1:0"])
            .args(arguments)
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut child = process::run(&mut program, Command::spawn).unwrap();
        let mut output = io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let address = line.split_once("http://").expect("the address of the page").1;
        let address = address.trim_end().trim_end_matches('/').to_owned();
        Self { child, address, _output: output }
    }

    /// Sends SIGINT, and waits for the exit.
    pub async fn interrupt(mut self) -> ExitStatus {
        process::signal(&self.child, Signal::INT).unwrap();
        eventually("the end of the preview", || {
            let status = self.child.try_wait().unwrap();
            async move { status }
        })
        .await
    }
}

impl Drop for PreviewProcess {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl PreviewProcess {
    pub async fn request(&self, line: &str, headers: &[(&str, &str)], body: &str) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(&self.address).await.unwrap();
        let mut request = format!("{line} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        for (name, value) in headers {
            write!(request, "{name}: {value}\r\n").unwrap();
        }
        if !headers.iter().any(|(name, _)| *name == "Host") {
            write!(request, "Host: {}\r\n", self.address).unwrap();
        }
        stream.write_all(format!("{request}\r\n{body}").as_bytes()).await.unwrap();
        BufReader::new(stream)
    }

    pub async fn ask(&self, line: &str, headers: &[(&str, &str)], body: &str) -> Response {
        let mut answer = Vec::new();
        // The server does not read a rejected request to the end, so the connection is reset after the response.
        drop(self.request(line, headers, body).await.read_to_end(&mut answer).await);
        Response::parse(answer).expect("an HTTP response")
    }

    pub async fn get(&self, path: &str) -> Response {
        self.ask(&format!("GET {path}"), &[], "").await
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
