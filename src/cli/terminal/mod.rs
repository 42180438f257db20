//! Input and output on the terminal: text, tables, progress and questions.

mod format;
mod progress;
mod prompt;
mod table;

pub use format::{age, count, printable, rfc3339};
pub use progress::progress;
pub use prompt::confirm;
pub use table::Table;
