//! Files to read, `-` being standard input.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;
use offramp::jsonl::{Line, lines};

/// A file that can be read more than once; so standard input is kept in memory.
#[derive(Debug)]
pub struct Input {
    name: String,
    source: Source,
}

#[derive(Debug)]
enum Source {
    File(PathBuf),
    Memory(Vec<u8>),
}

impl Input {
    /// Opens `path`, or reads standard input to its end where that is `-`.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        if path.as_os_str() == "-" {
            let mut bytes = Vec::new();
            io::stdin().lock().read_to_end(&mut bytes).context("cannot read standard input")?;
            return Ok(Self { name: "standard input".to_owned(), source: Source::Memory(bytes) });
        }
        let input = Self { name: path.display().to_string(), source: Source::File(path.to_owned()) };
        input.reader().map(drop)?;
        Ok(input)
    }

    /// What to call it in sentences.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its lines that are not empty, from the beginning.
    pub fn lines(&self) -> anyhow::Result<impl Iterator<Item = anyhow::Result<Line>> + '_> {
        Ok(lines(self.reader()?).map(|line| line.with_context(|| format!("cannot read {}", self.name))))
    }

    fn reader(&self) -> anyhow::Result<Box<dyn BufRead + '_>> {
        Ok(match &self.source {
            Source::Memory(bytes) => Box::new(bytes.as_slice()),
            Source::File(path) => {
                Box::new(BufReader::new(File::open(path).with_context(|| format!("cannot read {}", self.name))?))
            }
        })
    }
}
