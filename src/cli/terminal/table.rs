//! Tables on the terminal.

use std::fmt;
use std::io::{IsTerminal, stdout};

use comfy_table::ContentArrangement;
use comfy_table::presets::UTF8_FULL;

use super::format::printable;

/// The width of a table without a terminal, in characters.
const WIDTH: u16 = 160;

/// The narrowest terminal that a table is fitted to, in characters.
const WIDTH_MIN: u16 = 40;

/// A table that fits the terminal. Its cells may contain text from outside.
pub struct Table(comfy_table::Table);

impl Table {
    pub fn new(header: &[&str]) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(UTF8_FULL).set_header(header.to_vec()).set_content_arrangement(ContentArrangement::Dynamic);
        if !stdout().is_terminal() {
            table.force_no_tty();
        }
        // Some terminals report a width of 0.
        if table.width().is_none_or(|width| width < WIDTH_MIN) {
            table.set_width(WIDTH);
        }
        Self(table)
    }

    pub fn add_row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.0.add_row(cells.into_iter().map(|cell| printable(&cell)));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
