//! Problems in template files, by file and line.

use std::fmt;

/// A problem in a template file, found when templates are loaded.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TemplateProblem {
    /// The path of the file. A built-in file has its path in the source tree.
    pub file: String,
    /// The line, from 1, if the problem is in one.
    pub line: Option<usize>,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for TemplateProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.message),
            None => write!(f, "{}: {}", self.file, self.message),
        }
    }
}

impl std::error::Error for TemplateProblem {}

/// What is wrong in which line of a file.
#[derive(Debug)]
pub(super) struct Mistake {
    /// From 1.
    pub(super) line: usize,
    pub(super) message: String,
}

impl Mistake {
    pub(super) fn new(line: usize, message: impl Into<String>) -> Self {
        Self { line, message: message.into() }
    }
}
