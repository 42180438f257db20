//! A running subcommand with web pages: `offramp preview`, `offramp console`.

use std::fmt::Write as _;
use std::io::{self, BufRead};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::eventually;
use crate::http::Response;
use crate::process::{self, Signal};
use crate::test_bed::TestBed;
use crate::worker_process::offramp;

/// The program on a free port. Killed when dropped.
pub struct WebProcess {
    child: Child,
    /// `127.0.0.1:1234`
    pub address: String,
    /// Kept open: the program exits when its standard output closes.
    _output: io::BufReader<ChildStdout>,
}

impl WebProcess {
    /// Starts a program, and waits for the address of its pages.
    pub fn start(program: &mut Command) -> Self {
        program.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = process::run(program, Command::spawn).unwrap();
        let mut output = io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let address = line.split_once("http://").expect("the address of the page").1;
        let address = address.split_once('/').expect("the address of the page").0.to_owned();
        Self { child, address, _output: output }
    }

    /// Starts the console of a test bed, on a free port.
    pub fn console(bed: &TestBed, arguments: &[&str], settings: &[(&str, &str)]) -> Self {
        let mut program = offramp(bed);
        program.args(["console", "--console-addr", "127.0.0.1:0"]).args(arguments).envs(settings.iter().copied());
        if std::env::var_os("TEST_LOG").is_none() {
            program.stderr(Stdio::null());
        }
        Self::start(&mut program)
    }

    /// Sends SIGINT, and waits for the exit.
    pub async fn interrupt(mut self) -> ExitStatus {
        process::signal(&self.child, Signal::INT).unwrap();
        eventually("the end of the program", || {
            let status = self.child.try_wait().unwrap();
            async move { status }
        })
        .await
    }

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

    /// Sends a form as the pages of this program do.
    pub async fn submit(&self, path: &str, fields: &[(&str, &str)]) -> Response {
        let encoded = fields.iter().map(|(name, value)| format!("{name}={}", percent_encoded(value)));
        let body = encoded.collect::<Vec<_>>().join("&");
        let headers = [("Content-Type", "application/x-www-form-urlencoded"), ("Sec-Fetch-Site", "same-origin")];
        self.ask(&format!("POST {path}"), &headers, &body).await
    }
}

impl Drop for WebProcess {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A value in a form or in a query.
pub fn percent_encoded(value: &str) -> String {
    value.bytes().fold(String::new(), |mut encoded, byte| {
        write!(encoded, "%{byte:02X}").unwrap();
        encoded
    })
}
