//! A full stop after a fact that ends in one (`Sports Laval Inc.`) is not doubled.

use super::link::wrapped;
use super::tags::{TagKind, Tags};

/// Where a full stop follows a fact, removes that of the fact.
pub(super) fn without_double_full_stops(text: &str, tags: &mut Tags) -> String {
    let chars: Vec<char> = text.chars().collect();
    let ends_sentence = |at: usize| {
        chars.get(at) == Some(&'.') && !chars.get(at + 1).is_some_and(|next| *next == '.' || next.is_alphanumeric())
    };
    let mut single = String::with_capacity(text.len());
    for (index, &char) in chars.iter().enumerate() {
        let fact = tags.get(char).filter(|tag| tag.kind == TagKind::Expression).cloned();
        match fact {
            Some(fact) if ends_sentence(next_text(&chars, index + 1, tags)) => {
                single.push(tags.hide_text(TagKind::Expression, &wrapped(&fact, "without_full_stop")));
            }
            _ => single.push(char),
        }
    }
    single
}

/// The index of the text that follows, behind the ends of blocks, other branches, and asterisks.
fn next_text(chars: &[char], from: usize, tags: &Tags) -> usize {
    let kind = |at: usize| chars.get(at).and_then(|&char| tags.get(char)).map(|tag| tag.kind);
    let mut at = from;
    loop {
        match kind(at) {
            Some(TagKind::Close) => at += 1,
            Some(TagKind::Else) => {
                let mut depth = 1;
                while depth > 0 && at < chars.len() {
                    at += 1;
                    match kind(at) {
                        Some(TagKind::Open) => depth += 1,
                        Some(TagKind::Close) => depth -= 1,
                        _ => {}
                    }
                }
                at += 1;
            }
            None if chars.get(at) == Some(&'*') => at += 1,
            _ => return at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_fact_before_a_full_stop_loses_its_own() {
        for (text, expected) in [
            ("with {{a}}.", "with {{without_full_stop a}}."),
            ("**{{a}}**. b", "**{{without_full_stop a}}**. b"),
            (
                "{{#if a}}{{a}}{{else}}{{b}}{{/if}}.",
                "{{#if a}}{{without_full_stop a}}{{else}}{{without_full_stop b}}{{/if}}.",
            ),
            ("{{#if a}} ({{a}}){{/if}}.", "{{#if a}} ({{a}}){{/if}}."),
            ("{{lookup a 0}}.\n", "{{without_full_stop (lookup a 0)}}.\n"),
            ("{{a}}, {{b}}… {{c}}..", "{{a}}, {{b}}… {{c}}.."),
            ("https://a.example/{{a}}.html", "https://a.example/{{a}}.html"),
        ] {
            let mut tags = Tags::default();
            let hidden = tags.hide_all(text, 0).unwrap();
            let single = without_double_full_stops(&hidden.text, &mut tags);
            assert_eq!(tags.reveal(&single), expected, "{text}");
        }
    }
}
