//! Questions on the terminal.

use std::io::{BufRead, Write, stderr, stdin};

/// Asks a question with the answers y and n. Everything but an explicit yes is a no.
pub fn confirm(question: &str) -> std::io::Result<bool> {
    let mut err = stderr().lock();
    err.write_all(question.as_bytes())?;
    err.flush()?;
    let mut answer = String::new();
    stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
