//! Consistency of the repository itself: no import cycles, no broken links, and facts that are stated twice agree. Needs no server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on has failed")]

mod deployment;
mod imports;
mod kubernetes;
mod log_fields;
mod monitoring;
mod pages;
mod promql;
mod versions;

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize as _;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below `folder` with this extension, sorted, except those of builds and in hidden folders.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut entries: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|own| own == extension) {
            found.push(path);
        }
    }
    found
}

/// The text of a file of the repository.
fn read(file: &str) -> String {
    fs::read_to_string(repository().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The documents of a YAML file.
fn yaml(file: &str) -> Vec<serde_json::Value> {
    serde_yaml_ng::Deserializer::from_str(&read(file))
        .map(|document| serde_json::Value::deserialize(document).unwrap_or_else(|error| panic!("{file}: {error}")))
        .collect()
}
