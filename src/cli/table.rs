//! Tables on the terminal.

use std::io::{IsTerminal, stdout};

use comfy_table::presets::UTF8_FULL;
use comfy_table::{ContentArrangement, Table};

/// How wide a table is where there is no terminal, in characters.
const WIDTH: u16 = 160;

/// The narrowest terminal that a table is fitted into, in characters.
const WIDTH_MIN: u16 = 40;

/// An empty table that fits into the terminal.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL).set_header(header.to_vec()).set_content_arrangement(ContentArrangement::Dynamic);
    if !stdout().is_terminal() {
        table.force_no_tty();
    }
    // Some terminals do not know how wide they are, and say 0.
    if table.width().is_none_or(|width| width < WIDTH_MIN) {
        table.set_width(WIDTH);
    }
    table
}
