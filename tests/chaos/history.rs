//! The history of a run, as JSON lines, so that others can check what was observed. `docs/contributing/histories.md` describes the format,
//! and `scripts/check-history` judges a history without using any of this program's code.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use serde_json::{Value, json};

/// Written to a file as things happen.
pub struct History {
    begin: Instant,
    file: Mutex<BufWriter<File>>,
}

impl History {
    pub fn create(path: &Path) -> Self {
        Self { begin: Instant::now(), file: Mutex::new(BufWriter::new(File::create(path).unwrap())) }
    }

    /// Writes one line: what happens now, or has just happened. As in Jepsen's histories, an operation is begun by `invoke` and ended by `ok`,
    /// or by `info` if nobody knows whether it took place.
    pub fn add(&self, process: &str, kind: &str, what: &str, about: Value) {
        self.add_at(Instant::now(), process, kind, what, about);
    }

    /// [`Self::add`] for what happened a little earlier.
    pub fn add_at(&self, at: Instant, process: &str, kind: &str, what: &str, about: Value) {
        let milliseconds = at.saturating_duration_since(self.begin).as_secs_f64() * 1_000.0;
        let mut line = json!({ "ms": milliseconds.round(), "process": process, "type": kind, "f": what });
        if let (Value::Object(line), Value::Object(about)) = (&mut line, about) {
            line.extend(about);
        }
        writeln!(self.file.lock().unwrap(), "{line}").unwrap();
    }

    pub fn finish(&self) {
        self.file.lock().unwrap().flush().unwrap();
    }
}
