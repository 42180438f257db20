//! The table of results, printed row by row.

use std::fmt::Write;

/// Widths of the columns, in characters.
const NAME_WIDTH: usize = 40;
const CELL_WIDTH: usize = 11;

pub fn line(text: &str) {
    println!("{text}");
}

/// The heading of a section, with its column names.
pub fn head(title: &str, columns: &[&str]) {
    println!("\n{}", padded(title, columns.iter().map(ToString::to_string)));
}

/// One row of figures.
pub fn row(name: &str, cells: impl IntoIterator<Item = String>) {
    println!("{}", padded(&format!("  {name}"), cells));
}

/// A figure with a target.
pub fn goal(name: &str, figure: &str, target: &str) {
    println!("{}   target: {target}", padded(&format!("  {name}"), [figure.to_owned()]));
}

fn padded(name: &str, cells: impl IntoIterator<Item = String>) -> String {
    let mut line = format!("{name:<NAME_WIDTH$}");
    for cell in cells {
        // Writing to a string cannot fail.
        write!(line, "{cell:>CELL_WIDTH$}").unwrap();
    }
    line.trim_end().to_owned()
}

/// `12,345`
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "figures of a table")]
pub fn whole(number: f64) -> String {
    let digits = (number.round() as u64).to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[allow(clippy::cast_precision_loss, reason = "figures of a table")]
pub fn number(count: usize) -> f64 {
    count as f64
}
