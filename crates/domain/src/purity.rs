//! Holds the domain to its first sentence: no I/O, no clock, no randomness, nothing that waits. What it does not name it
//! cannot call.

use std::fs;
use std::path::Path;

/// Crates and modules that do something, and calls that ask the world something.
const FORBIDDEN: &[&str] = &[
    "lapin",
    "mongodb",
    "bson",
    "lettre",
    "tokio",
    "futures_util",
    "handlebars",
    "axum",
    "tracing",
    "metrics", // crates
    "std::fs",
    "std::io",
    "std::net",
    "std::env",
    "std::thread",
    "std::process", // the world
    "Utc::now",
    "Local::now",
    "SystemTime",
    "Instant", // clocks
    "new_v4",
    "new_v7",
    "RandomState", // randomness
    "async",
    "await",
    "println",
    "eprintln", // waiting and talking
];

/// The forbidden names in `source`, as whole words. Comments count too: what the rules do not know of, they need not
/// mention.
fn forbidden_in(source: &str) -> Vec<&'static str> {
    let is_word = |char: char| char.is_alphanumeric() || char == '_';
    let names = |name: &&&str| {
        source
            .match_indices(**name)
            .any(|(at, _)| !source[..at].ends_with(is_word) && !source[at + name.len()..].starts_with(is_word))
    };
    FORBIDDEN.iter().filter(names).copied().collect()
}

fn check(folder: &Path, found: &mut Vec<String>) -> usize {
    let mut files = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files += check(&path, found);
        } else if !path.ends_with(file!()) {
            let source = fs::read_to_string(&path).unwrap();
            found.extend(forbidden_in(&source).iter().map(|name| format!("{}: {name}", path.display())));
            files += 1;
        }
    }
    files
}

#[test]
fn the_domain_is_pure() {
    let mut found = Vec::new();
    let files = check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/domain"), &mut found);
    assert!(files > 15, "the folder has moved: {files} files were read");
    assert_eq!(found, [""; 0], "the domain names what it must not know");
}

#[test]
fn whole_words_only() {
    assert_eq!(forbidden_in("let now = chrono::Utc::now();"), ["Utc::now"]);
    assert_eq!(forbidden_in("use std::time::{Duration, Instant};"), ["Instant"]);
    assert_eq!(forbidden_in("bson::doc! {}"), ["bson"]);
    assert_eq!(forbidden_in("an instant, instantly; ObjectId of bsonic; awaited"), [""; 0]);
}
