//! Pages of the documentation that are generated from the code. Tests compare them with the files; `make docs` writes them.

use std::fs;
use std::path::Path;

/// The beginning of a page.
pub fn start(title: &str, source: &str, introduction: &str) -> String {
    format!("<!-- Generated from {source} by `make docs`. -->\n\n# {title}\n\n{introduction}\n\n")
}

/// Fails when the file differs from the page, or writes it where `UPDATE_DOCS` is set.
#[allow(clippy::panic, clippy::expect_used, reason = "only tests call it")]
pub fn check(path: &Path, page: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&file, page).expect("the page can be written");
    }
    let written = fs::read_to_string(&file).unwrap_or_default();
    assert!(written == page, "{} is out of date; run `make docs`", path.display());
}
