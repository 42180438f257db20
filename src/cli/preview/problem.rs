//! What is wrong in the files of an author.

use std::fmt;

use offramp_mail::TemplateProblem;
use serde::Serialize;

/// A problem in a template or in the organization's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    pub file: String,
    /// From 1, if the problem is in one line.
    pub line: Option<usize>,
    pub message: String,
}

impl From<TemplateProblem> for Problem {
    fn from(problem: TemplateProblem) -> Self {
        Self { file: problem.file, line: problem.line, message: problem.message }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.message),
            None => write!(f, "{}: {}", self.file, self.message),
        }
    }
}
