//! Versions that are stated in several files agree.

use crate::read;

fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let start = text.find(before).unwrap_or_else(|| panic!("{before:?} is missing")) + before.len();
    &text[start..start + text[start..].find(after).unwrap()]
}

/// The image is built without `rust-toolchain.toml`, which would make rustup download components that the build does not need.
#[test]
fn the_image_is_built_with_a_supported_compiler() {
    let (manifest, dockerfile) = (read("Cargo.toml"), read("Dockerfile"));
    let numbers = |version: &str| version.split('.').map(|number| number.parse().unwrap()).collect::<Vec<u32>>();
    let oldest = between(&manifest, "rust-version = \"", "\"");
    let image = between(&dockerfile, "FROM rust:", "-");
    assert!(numbers(image) >= numbers(oldest), "{image} is older than {oldest}");
    assert!(!read(".dockerignore").contains("!rust-toolchain.toml"));
}

#[test]
fn the_readme_states_the_minimum_rust_version() {
    let manifest = read("Cargo.toml");
    let oldest = between(&manifest, "rust-version = \"", "\"");
    assert!(
        read("README.md").contains(&format!("Rust ({oldest}")) || read("README.md").contains(&format!("Rust {oldest}"))
    );
}
