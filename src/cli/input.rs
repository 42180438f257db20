//! Input files, or standard input as `-`: one JSON value per line, or values of several lines, as people and `jq` write them.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;
use offramp::jsonl::{Line, lines};
use serde_json::value::RawValue;

/// A file that can be read several times. Standard input is kept in memory.
#[derive(Debug)]
pub struct Input {
    name: String,
    source: Source,
}

#[derive(Debug)]
enum Source {
    File(PathBuf),
    Memory(Vec<u8>),
    /// Values of several lines, each with the number of its first line.
    Values(Vec<Line>),
}

impl Input {
    /// Opens `path`, or reads standard input to its end if `path` is `-`.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let mut input = if path.as_os_str() == "-" {
            let mut bytes = Vec::new();
            io::stdin().lock().read_to_end(&mut bytes).context("cannot read standard input")?;
            Self { name: "standard input".to_owned(), source: Source::Memory(bytes) }
        } else {
            Self { name: path.display().to_string(), source: Source::File(path.to_owned()) }
        };
        let first = input.lines()?.next().transpose()?;
        // A value on one line cannot end with a brace that opens.
        if first.is_some_and(|line| line.bytes.trim_ascii().ends_with(b"{")) {
            input.source = Source::Values(input.values()?);
        }
        Ok(input)
    }

    /// Its name in errors.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its values from the beginning, one per [`Line`].
    pub fn lines(&self) -> anyhow::Result<Box<dyn Iterator<Item = anyhow::Result<Line>> + '_>> {
        let named = |line: io::Result<Line>| line.with_context(|| format!("cannot read {}", self.name));
        Ok(match &self.source {
            Source::File(path) => {
                let file = File::open(path).with_context(|| format!("cannot read {}", self.name))?;
                Box::new(lines(BufReader::new(file)).map(named))
            }
            Source::Memory(bytes) => Box::new(lines(bytes.as_slice()).map(named)),
            Source::Values(values) => Box::new(values.iter().cloned().map(Ok)),
        })
    }

    /// Reads values of several lines.
    fn values(&self) -> anyhow::Result<Vec<Line>> {
        let bytes = match &self.source {
            Source::File(path) => fs::read(path).with_context(|| format!("cannot read {}", self.name))?,
            Source::Memory(bytes) => bytes.clone(),
            Source::Values(values) => return Ok(values.clone()),
        };
        let mut values = serde_json::Deserializer::from_slice(&bytes).into_iter::<&RawValue>();
        let (mut read, mut number, mut counted) = (Vec::new(), 1, 0);
        while let Some(value) = values.next() {
            let value = value.with_context(|| self.name.clone())?.get().as_bytes();
            let end = values.byte_offset();
            let begin = end - value.len();
            number += bytes[counted..begin].split(|&byte| byte == b'\n').count() - 1;
            counted = begin;
            read.push(Line { number, bytes: value.to_vec() });
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_can_have_several_lines() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "\n{\n  \"a\": 1\n}\n{\"a\": 2} {\n}\n").unwrap();
        let input = Input::open(file.path()).unwrap();
        let read: Vec<(usize, String)> = input
            .lines()
            .unwrap()
            .map(|line| line.map(|line| (line.number, String::from_utf8(line.bytes).unwrap())).unwrap())
            .collect();
        let expected = [(2, "{\n  \"a\": 1\n}"), (5, "{\"a\": 2}"), (5, "{\n}")];
        assert_eq!(read, expected.map(|(number, text)| (number, text.to_owned())));
    }

    #[test]
    fn errors_name_a_missing_file() {
        let error = Input::open(Path::new("/does/not/exist")).unwrap_err();
        assert_eq!(format!("{error:#}"), "cannot read /does/not/exist: No such file or directory (os error 2)");
    }
}
