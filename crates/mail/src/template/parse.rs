//! Template files are written in a little Markdown, with Handlebars in it. This module parses them into blocks.
//!
//! A condition around whole blocks has each of its tags on its own line. A condition within a sentence begins and ends in
//! that sentence.

use std::iter::{Peekable, Zip};
use std::ops::{Range, RangeFrom};

use handlebars::template::Template as Parsed;
use pulldown_cmark::{Event, HeadingLevel, Parser, Tag, TagEnd};

use super::ast::{nodes, partials};
use super::block::{Block, BlockKind, Branch, Inline, Link};
use super::plain::flatten;
use super::problem::Mistake;

/// The one fact that may be a link. Other facts are text that a person wrote, which could lead anywhere.
const PAGE: &str = "{{admin_url}}";

const UNSUPPORTED: &str = "only paragraphs, `# headline`, `> notice`, `- **label:** fact`, `**bold**` and \
                           `[label](address)` are supported";

/// Parses a body that begins after `lines_before` lines of its file.
pub(super) fn parse(body: &str, lines_before: usize) -> Result<Vec<Block>, Mistake> {
    let mut lines = body.lines().zip(lines_before + 1..).peekable();
    let blocks = parse_until_tag(&mut lines)?;
    match lines.next() {
        // Its other tag is inside a sentence.
        Some((tag, line)) => Err(Mistake::new(line, misplaced(tag))),
        None => Ok(blocks),
    }
}

/// Lines and their numbers.
type Lines<'a> = Peekable<Zip<std::str::Lines<'a>, RangeFrom<usize>>>;

/// Parses blocks up to an `{{else}}` or a closing tag, which is not consumed, or to the end.
fn parse_until_tag(lines: &mut Lines<'_>) -> Result<Vec<Block>, Mistake> {
    let mut blocks = Vec::new();
    let mut markdown = String::new();
    let mut markdown_line = 0;
    loop {
        let tag = match lines.peek() {
            Some(&(text, line)) => match lone_tag(text) {
                None => {
                    if markdown.is_empty() {
                        markdown_line = line;
                    }
                    markdown.push_str(text);
                    markdown.push('\n');
                    lines.next();
                    continue;
                }
                Some(tag) => Some((tag, line)),
            },
            None => None,
        };
        parse_markdown(&std::mem::take(&mut markdown), markdown_line, &mut blocks)?;
        let Some((tag, line)) = tag else { return Ok(blocks) };
        let kind = match tag {
            LoneTag::Else | LoneTag::End => return Ok(blocks),
            LoneTag::Comment => {
                lines.next();
                continue;
            }
            LoneTag::Partial(name) => {
                lines.next();
                BlockKind::Partial(name)
            }
            LoneTag::Begin => parse_condition(lines, line)?,
        };
        blocks.push(Block { line, kind });
    }
}

fn parse_condition(lines: &mut Lines<'_>, begins: usize) -> Result<BlockKind, Mistake> {
    let mut branches = Vec::new();
    while let Some((text, line)) = lines.next() {
        let tag = text.trim().to_owned();
        if lone_tag(text) == Some(LoneTag::End) {
            return Ok(BlockKind::Condition { branches, end: tag });
        }
        branches.push(Branch { line, tag, blocks: parse_until_tag(lines)? });
    }
    Err(Mistake::new(begins, misplaced("{{#if …}}")))
}

/// The message about a partial inside a sentence.
pub(super) fn misplaced_partial(name: &str) -> String {
    format!("`{{{{> {name}}}}}` is inside a sentence; a partial must be on its own line, below the subject")
}

fn misplaced(tag: &str) -> String {
    format!("`{}` is on its own line, so its other tags must be, too", tag.trim())
}

/// A tag on its own line.
#[derive(Debug, PartialEq, Eq)]
enum LoneTag {
    Begin,
    Else,
    End,
    Partial(String),
    Comment,
}

fn lone_tag(line: &str) -> Option<LoneTag> {
    let inner = line.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    if inner.contains("}}") {
        return None;
    }
    let inner = inner.trim_matches('~').trim();
    match inner.chars().next()? {
        '#' => Some(LoneTag::Begin),
        '/' => Some(LoneTag::End),
        '>' => Some(LoneTag::Partial(inner.get(1..)?.trim().to_owned())),
        '!' => Some(LoneTag::Comment),
        _ if inner == "else" || inner.starts_with("else ") => Some(LoneTag::Else),
        _ => None,
    }
}

type Events<'a> = Peekable<pulldown_cmark::OffsetIter<'a, pulldown_cmark::DefaultBrokenLinkCallback>>;

/// Markdown, and the line of its file where it begins.
struct Source<'a> {
    markdown: &'a str,
    first_line: usize,
}

impl Source<'_> {
    fn line(&self, at: &Range<usize>) -> usize {
        self.first_line + self.markdown[..at.start].matches('\n').count()
    }
}

/// Parses lines that contain no tag on its own line.
fn parse_markdown(markdown: &str, first_line: usize, blocks: &mut Vec<Block>) -> Result<(), Mistake> {
    let source = Source { markdown, first_line };
    let mut events = Parser::new(markdown).into_offset_iter().peekable();
    while let Some((event, at)) = events.next() {
        let line = source.line(&at);
        let unsupported = || Mistake::new(line, UNSUPPORTED);
        let kind = match event {
            Event::Start(Tag::Heading { level: HeadingLevel::H1, .. }) => {
                BlockKind::Headline(inlines(&mut events, line, &source)?)
            }
            Event::Start(Tag::Paragraph) => {
                let sentences = inlines(&mut events, line, &source)?;
                match sentences.as_slice() {
                    [Inline::Link(button)] => BlockKind::Button(button.clone()),
                    _ => BlockKind::Paragraph(sentences),
                }
            }
            Event::Start(Tag::BlockQuote(_)) => {
                let Some((Event::Start(Tag::Paragraph), _)) = events.next() else { return Err(unsupported()) };
                let sentences = inlines(&mut events, line, &source)?;
                let Some((Event::End(TagEnd::BlockQuote(_)), _)) = events.next() else {
                    return Err(Mistake::new(line, "a notice must be one paragraph"));
                };
                BlockKind::Notice(sentences)
            }
            Event::Start(Tag::List(None)) | Event::End(TagEnd::List(_)) => continue,
            Event::Start(Tag::Item) => {
                // With empty lines between them, items contain paragraphs.
                let is_loose = events.next_if(|(event, _)| *event == Event::Start(Tag::Paragraph)).is_some();
                let item = inlines(&mut events, line, &source)?;
                if is_loose && !matches!(events.next(), Some((Event::End(TagEnd::Item), _))) {
                    return Err(unsupported());
                }
                fact(item, line)?
            }
            _ => return Err(unsupported()),
        };
        blocks.push(Block { line, kind });
    }
    Ok(())
}

/// `**label:** value`
fn fact(item: Vec<Inline>, line: usize) -> Result<BlockKind, Mistake> {
    let mut item = item.into_iter();
    match item.next() {
        Some(Inline::Strong(label)) => {
            let mut value: Vec<_> = item.collect();
            if let Some(Inline::Text(text)) = value.first_mut() {
                *text = text.trim_start().to_owned();
            }
            Ok(BlockKind::Fact { label, value })
        }
        _ => Err(Mistake::new(line, "a fact must begin with its label in bold: `- **label:** value`")),
    }
}

/// Parses sentences up to the end of the current element. Each element must be a complete template: if a condition crossed
/// the end of an element, that end would be missing whenever the condition is not met.
fn inlines(events: &mut Events<'_>, begins: usize, source: &Source<'_>) -> Result<Vec<Inline>, Mistake> {
    let mut found: Vec<Inline> = Vec::new();
    while let Some((event, at)) = events.next() {
        let line = source.line(&at);
        match event {
            Event::Text(text) => add_text(&mut found, &text),
            Event::SoftBreak => add_text(&mut found, " "),
            Event::HardBreak => found.push(Inline::LineBreak),
            Event::Start(Tag::Strong) => found.push(Inline::Strong(inlines(events, line, source)?)),
            Event::Start(Tag::Link { dest_url, .. }) => {
                let url = dest_url.to_string();
                if url != PAGE {
                    check_address(&url).map_err(|why| Mistake::new(line, format!("invalid link `{url}`: {why}")))?;
                }
                found.push(Inline::Link(Link { label: inlines(events, line, source)?, url }));
            }
            Event::End(_) => {
                return match mistake_in(&flatten(&found), &source.markdown[at]) {
                    None => Ok(found),
                    Some(message) => Err(Mistake::new(begins, message)),
                };
            }
            _ => return Err(Mistake::new(line, UNSUPPORTED)),
        }
    }
    Ok(found)
}

/// Checks where a link leads. The author of a fact must not choose the host or the addressee.
fn check_address(url: &str) -> Result<(), &'static str> {
    let Some(rest) = ["http://", "https://", "mailto:"].iter().find_map(|start| url.strip_prefix(start)) else {
        return Err("it must begin with https://, http:// or mailto:");
    };
    let target = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if target.contains("{{") {
        return Err("the host or addressee is a fact; write it out, and use facts only after it");
    }
    Ok(())
}

/// What is wrong with a sentence after Markdown has parsed it.
fn mistake_in(sentence: &str, markdown: &str) -> Option<String> {
    let Ok(parsed) = Parsed::compile(sentence) else {
        return Some(format!(
            "a condition must end in the sentence where it begins, or have its tags on their own lines: `{sentence}`"
        ));
    };
    if let Some(partial) = partials(&nodes(&parsed, &|_| None)).first() {
        return Some(misplaced_partial(&partial.name));
    }
    let tags = |text: &str| text.matches("{{").count();
    if tags(sentence) > tags(markdown) {
        return Some(format!("Markdown turns this into a tag: `{sentence}`"));
    }
    sentence
        .contains("](")
        .then(|| format!("a link is written `[label](address)`, with no spaces in the address: `{sentence}`"))
}

fn add_text(found: &mut Vec<Inline>, more: &str) {
    match found.last_mut() {
        Some(Inline::Text(text)) => text.push_str(more),
        _ => found.push(Inline::Text(more.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::design::{ADDRESS, CONTENT, Design, LABEL};
    use super::super::html::to_mjml;
    use super::super::plain::PlainText;
    use super::*;

    fn design() -> Design {
        let part = |name: &str| format!("<{name}>{CONTENT}</{name}>");
        Design {
            headline: part("h"),
            paragraph: part("p"),
            notice: part("n"),
            button: format!("<b to={ADDRESS}>{CONTENT}</b>"),
            facts: part("t"),
            fact: format!("<r>{LABEL}={CONTENT}</r>"),
        }
    }

    #[track_caller]
    fn check(body: &str, text: &str, mjml: &str) {
        let blocks = parse(body, 0).unwrap();
        let plain = PlainText::of(&blocks);
        assert_eq!(plain.text, text, "text of {body:?}");
        assert_eq!(plain.text.lines().count(), plain.lines.len(), "lines of {body:?}");
        assert_eq!(to_mjml(&blocks, &design(), &mut |name| format!("[{name}]")), mjml, "MJML of {body:?}");
    }

    #[test]
    fn both_parts_come_from_the_same_blocks() {
        check("# A\n\nb\nc **d** & e\n", "A\n\nb c d & e\n\n", "<h>A</h><p>b c <strong>d</strong> &amp; e</p>");
        check("> **Now:** decide\n", "Now: decide\n\n", "<n><strong>Now:</strong> decide</n>");
        check("[Open it]({{admin_url}})\n", "Open it\n{{admin_url}}\n\n", "<b to={{admin_url}}>Open it</b>");
        check(
            "See [us](https://a.example/?b=1&c=2) or [x@y.example](mailto:x@y.example).",
            "See us (https://a.example/?b=1&c=2) or x@y.example.\n\n",
            "<p>See <a class=\"link\" href=\"https://a.example/?b=1&amp;c=2\">us</a> or <a class=\"link\" \
             href=\"mailto:x@y.example\">x@y.example</a>.</p>",
        );
        check("a\n{{> facts}}\nb", "a\n\n{{> facts}}\n\nb\n\n", "<p>a</p>[facts]<p>b</p>");
        check("a  \nb", "a\nb\n\n", "<p>a<br />b</p>");
        check("- **a:** b\n\n- **c:** d\n", "a: b\nc: d\n", "<t><r>a=b</r><r>c=d</r></t>");
    }

    #[test]
    fn conditions_surround_blocks_or_parts_of_sentences() {
        check(
            "{{#if a}}\nx{{#if b}} y{{/if}}\n{{else if c}}\n{{! no }}\n{{else}}\nz\n{{/if}}\n",
            "{{#if a}}\nx{{#if b}} y{{/if}}\n\n{{else if c}}\n{{else}}\nz\n\n{{/if}}\n",
            "<mj-raw>{{#if a}}</mj-raw><p>x{{#if b}} y{{/if}}</p><mj-raw>{{else if c}}</mj-raw><mj-raw>{{else}}</mj-raw>\
             <p>z</p><mj-raw>{{/if}}</mj-raw>",
        );
    }

    #[test]
    fn adjacent_facts_share_a_table() {
        check(
            "- **A:** {{a}}\n{{#if b}}\n- **B\u{a0}:** {{b}} c\n{{/if}}\n\nd\n",
            "A: {{a}}\n{{#if b}}\nB\u{a0}: {{b}} c\n{{/if}}\n\nd\n\n",
            "<t><r>A={{a}}</r>{{#if b}}<r>B={{b}} c</r>{{/if}}</t><p>d</p>",
        );
    }

    #[test]
    fn unsupported_syntax_is_reported_by_line() {
        #[track_caller]
        fn check(body: &str, line: usize, message: &str) {
            let found = parse(body, 10).unwrap_err();
            assert_eq!(found.line, 10 + line, "{body:?}: {found:?}");
            assert!(found.message.contains(message), "{body:?}: {found:?}");
        }
        check("a\n\n## b\n", 3, "`# headline`");
        check("a\n\n*b*\n", 3, "are supported");
        check("a <b>b</b>\n", 1, "are supported");
        check("a\n\n\n<div>\n", 4, "are supported");
        check("a `b`\n", 1, "are supported");
        check("![a](https://a.example)\n", 1, "are supported");
        check("[a](https://{{note}})\n", 1, "host or addressee is a fact");
        check("[a](https://b.example{{note}}/c)\n", 1, "host or addressee is a fact");
        check("See [a](mailto:{{note}}).\n", 1, "host or addressee is a fact");
        check("- a\n", 1, "label in bold");
        check("[a](javascript:b)\n", 1, "must begin with");
        check("x\n[a](/b)\n", 2, "must begin with");
        check("x\n\n[a]({{note}})\n", 3, "must begin with");
        check("[a](https://b.example/c d)\n", 1, "no spaces in the address");
        check("a &#123;{b}}\n", 1, "turns this into a tag");
        check("a\n\nb {**{c}**}\n", 3, "turns this into a tag");
        check("> a\n>\n> b\n", 1, "one paragraph");
        check("a {{#if b}}c\n\nd{{/if}}\n", 1, "in the sentence where it begins");
        check("**a {{#if b}}c** d{{/if}}\n", 1, "in the sentence where it begins");
        check("{{#if b}}\nc d{{/if}}\n", 2, "in the sentence where it begins");
        check("a\n\nb {{> c}} d\n", 3, "`{{> c}}` is inside a sentence");
        check("- **a:** {{#if b}}{{> c}}{{/if}}\n", 1, "`{{> c}}` is inside a sentence");
        check("{{#if b}}\nc\n", 1, "on its own line");
        check("c\n{{/if}}\n", 2, "on its own line");
        check("c {{#if b}} d\n{{/if}}\n", 1, "in the sentence where it begins");
    }

    #[test]
    fn plain_lines_map_to_the_lines_of_the_file() {
        let blocks = parse("a\n\n[b](https://c.example)\n\n{{#if d}}\n{{d}}\n{{/if}}\n", 2).unwrap();
        let PlainText { text, lines } = PlainText::of(&blocks);
        let of = |wanted: &str| lines[text.lines().position(|line| line == wanted).unwrap()];
        assert_eq!((of("a"), of("https://c.example"), of("{{#if d}}"), of("{{d}}")), (3, 5, 7, 8));
    }
}
