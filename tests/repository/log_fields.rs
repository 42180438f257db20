//! Every field of a log line is explained in `docs/operate/logs.md`, and every field that the page explains exists.

use std::collections::BTreeSet;
use std::fs;

use crate::{files, repository};

/// The arguments of every `tracing` macro in a file.
fn log_calls(source: &str) -> Vec<&str> {
    let mut calls = Vec::new();
    for level in ["trace!(", "debug!(", "info!(", "warn!(", "error!("] {
        for (at, begin) in source.match_indices(&format!("tracing::{level}")) {
            let arguments = &source[at + begin.len()..];
            calls.push(&arguments[..end(arguments, &[')']).unwrap()]);
        }
    }
    calls
}

/// The position of the first of `ends` that is neither in parentheses nor in a string.
fn end(text: &str, ends: &[char]) -> Option<usize> {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for (position, char) in text.char_indices() {
        match char {
            _ if escaped => escaped = false,
            '\\' if in_string => escaped = true,
            '"' => in_string = !in_string,
            _ if in_string => {}
            _ if depth == 0 && ends.contains(&char) => return Some(position),
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// The fields of a call: its arguments before the message.
fn fields(call: &str) -> Vec<String> {
    let mut fields = Vec::new();
    let mut rest = call;
    loop {
        let argument_end = end(rest, &[',']).unwrap_or(rest.len());
        let argument = rest[..argument_end].trim();
        let name = argument.split_once(" = ").map_or(argument, |(name, _)| name);
        let is_message = name.len() == argument.len() && argument.starts_with('"');
        if is_message || argument.is_empty() || argument_end == rest.len() {
            return fields;
        }
        fields.push(name.trim_matches(['%', '?', '"']).to_owned());
        rest = &rest[argument_end + 1..];
    }
}

#[test]
fn every_log_field_is_documented() {
    let mut used = BTreeSet::new();
    for file in files(&repository().join("src"), "rs") {
        let source = fs::read_to_string(file).unwrap();
        used.extend(log_calls(&source).into_iter().flat_map(fields));
    }
    let page = fs::read_to_string(repository().join("docs/operate/logs.md")).unwrap();
    let (_, table) = page.split_once("## Fields").unwrap();
    let (table, _) = table.split_once("\n## ").unwrap();
    let documented: BTreeSet<String> =
        table.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned())).collect();
    assert_eq!(used.difference(&documented).collect::<Vec<_>>(), Vec::<&String>::new(), "not documented");
    assert_eq!(documented.difference(&used).collect::<Vec<_>>(), Vec::<&String>::new(), "not used");
}

#[test]
fn fields_of_a_call_are_found() {
    let source = "tracing::warn!(\n    lane = %self.kind, %error, \"type\" = f(a, \"b, c\"), entries,\n    \"a message, with {}\", x\n);";
    assert_eq!(fields(log_calls(source)[0]), ["lane", "error", "type", "entries"]);
    assert_eq!(fields("\"no fields\""), Vec::<String>::new());
}
