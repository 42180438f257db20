//! How template files are written: Markdown, of which mails need little, with Handlebars in it. Both parts of a mail are made
//! of the same blocks, so they say the same: [`to_text`] makes the plain part's template, [`to_mjml`] the HTML part's.
//!
//! A condition around whole blocks has each of its tags on a line of its own; one within a sentence begins and ends in it.
//! Everything is still a template here: no fact is known yet, so none can be taken for markup.

use std::iter::{Peekable, Zip};
use std::ops::{Range, RangeFrom};

use handlebars::template::Template as Parsed;
use pulldown_cmark::{Event, HeadingLevel, Parser, Tag, TagEnd};

use super::escape_html;
use super::pieces::{partials_in, pieces};

/// A part of a body: what stands between empty lines, or between the tags of a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// The line in its file where it begins, from 1.
    pub(super) line: usize,
    pub(super) kind: Kind,
}

/// What a block is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `# …`: what the mail is about.
    Headline(Vec<Inline>),
    /// Plain sentences.
    Paragraph(Vec<Inline>),
    /// `> …`: what must not be overlooked.
    Notice(Vec<Inline>),
    /// `[label](address)` alone.
    Button(Link),
    /// `- **label:** value`
    Fact { label: Vec<Inline>, value: Vec<Inline> },
    /// `{{> name}}`
    Partial(String),
    /// `{{#if …}}`, the `{{else}}`s and what stands between them, up to `{{/if}}`.
    Condition { branches: Vec<Branch>, end: String },
}

/// What a condition chooses from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Branch {
    line: usize,
    /// `{{#if note}}`, `{{else}}`
    tag: String,
    blocks: Vec<Block>,
}

/// A part of a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Inline {
    Text(String),
    Strong(Vec<Inline>),
    Link(Link),
    LineBreak,
}

/// A link, in a sentence or as a button.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    label: Vec<Inline>,
    url: String,
}

/// What is wrong with a file, and in which line.
pub(super) type Mistake = (usize, String);

/// The one fact that is an address. What else a fact says, somebody wrote, and it could lead anywhere.
const PAGE: &str = "{{admin_url}}";

const WHAT_THERE_IS: &str = "there are paragraphs, `# headline`, `> notice`, `- **label:** fact`, `**bold**` and \
                             `[label](address)`, and nothing else";

// ---- reading ----

/// Reads a body that begins `lines_before` lines into its file.
pub(super) fn parse(body: &str, lines_before: usize) -> Result<Vec<Block>, Mistake> {
    let mut lines = body.lines().zip(lines_before + 1..).peekable();
    let blocks = parse_until_tag(&mut lines)?;
    match lines.next() {
        // The other end stands in a sentence.
        Some((tag, line)) => Err((line, misplaced(tag))),
        None => Ok(blocks),
    }
}

/// Lines and their numbers.
type Lines<'a> = Peekable<Zip<std::str::Lines<'a>, RangeFrom<usize>>>;

/// Blocks up to an `{{else}}` or a closing tag, which stays, or to the end.
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
                Kind::Partial(name)
            }
            LoneTag::Begin => parse_condition(lines, line)?,
        };
        blocks.push(Block { line, kind });
    }
}

fn parse_condition(lines: &mut Lines<'_>, begins: usize) -> Result<Kind, Mistake> {
    let mut branches = Vec::new();
    while let Some((text, line)) = lines.next() {
        let tag = text.trim().to_owned();
        if lone_tag(text) == Some(LoneTag::End) {
            return Ok(Kind::Condition { branches, end: tag });
        }
        branches.push(Branch { line, tag, blocks: parse_until_tag(lines)? });
    }
    Err((begins, misplaced("{{#if …}}")))
}

/// What to say of a partial in a sentence.
pub(super) fn misplaced_partial(name: &str) -> String {
    format!("`{{{{> {name}}}}}` stands in a sentence; a partial has a line of its own, below the subject")
}

fn misplaced(tag: &str) -> String {
    format!("`{}` stands on a line of its own, so the tags that belong to it must do so, too", tag.trim())
}

/// A tag that has a line to itself.
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

/// What is read, and where in its file it begins.
struct Source<'a> {
    markdown: &'a str,
    first_line: usize,
}

impl Source<'_> {
    fn line(&self, at: &Range<usize>) -> usize {
        self.first_line + self.markdown[..at.start].matches('\n').count()
    }
}

/// Reads lines without tags of their own.
fn parse_markdown(markdown: &str, first_line: usize, blocks: &mut Vec<Block>) -> Result<(), Mistake> {
    let source = Source { markdown, first_line };
    let mut events = Parser::new(markdown).into_offset_iter().peekable();
    while let Some((event, at)) = events.next() {
        let line = source.line(&at);
        let unknown = || (line, WHAT_THERE_IS.to_owned());
        let kind = match event {
            Event::Start(Tag::Heading { level: HeadingLevel::H1, .. }) => {
                Kind::Headline(inlines(&mut events, line, &source)?)
            }
            Event::Start(Tag::Paragraph) => {
                let sentences = inlines(&mut events, line, &source)?;
                match sentences.as_slice() {
                    [Inline::Link(button)] => Kind::Button(button.clone()),
                    _ => Kind::Paragraph(sentences),
                }
            }
            Event::Start(Tag::BlockQuote(_)) => {
                let Some((Event::Start(Tag::Paragraph), _)) = events.next() else { return Err(unknown()) };
                let sentences = inlines(&mut events, line, &source)?;
                let Some((Event::End(TagEnd::BlockQuote(_)), _)) = events.next() else {
                    return Err((line, "a notice has one paragraph".to_owned()));
                };
                Kind::Notice(sentences)
            }
            Event::Start(Tag::List(None)) | Event::End(TagEnd::List(_)) => continue,
            Event::Start(Tag::Item) => {
                // With empty lines between them, items hold paragraphs.
                let is_loose = events.next_if(|(event, _)| *event == Event::Start(Tag::Paragraph)).is_some();
                let item = inlines(&mut events, line, &source)?;
                if is_loose && !matches!(events.next(), Some((Event::End(TagEnd::Item), _))) {
                    return Err(unknown());
                }
                fact(item, line)?
            }
            _ => return Err(unknown()),
        };
        blocks.push(Block { line, kind });
    }
    Ok(())
}

/// `**label:** value`
fn fact(item: Vec<Inline>, line: usize) -> Result<Kind, Mistake> {
    let mut item = item.into_iter();
    match item.next() {
        Some(Inline::Strong(label)) => {
            let mut value: Vec<_> = item.collect();
            if let Some(Inline::Text(text)) = value.first_mut() {
                *text = text.trim_start().to_owned();
            }
            Ok(Kind::Fact { label, value })
        }
        _ => Err((line, "a fact begins with its label in bold: `- **label:** value`".to_owned())),
    }
}

/// Sentences up to the end of what has begun. Each part of them is a whole template: else, where a condition is not met,
/// its end would be missing.
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
                    check_address(&url).map_err(|why| (line, format!("the link leads to `{url}`, {why}")))?;
                }
                found.push(Inline::Link(Link { label: inlines(events, line, source)?, url }));
            }
            Event::End(_) => {
                return match mistake_in(&flatten(&found), &source.markdown[at]) {
                    None => Ok(found),
                    Some(message) => Err((begins, message)),
                };
            }
            _ => return Err((line, WHAT_THERE_IS.to_owned())),
        }
    }
    Ok(found)
}

/// Whether a link may lead there. Whoever wrote a fact must not choose the host or the addressee.
fn check_address(url: &str) -> Result<(), &'static str> {
    let Some(rest) = ["http://", "https://", "mailto:"].iter().find_map(|start| url.strip_prefix(start)) else {
        return Err("which is no address of the web");
    };
    let whom = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if whom.contains("{{") {
        return Err("whose host or addressee is a fact; write it out, and use facts only behind it");
    }
    Ok(())
}

/// What is wrong with a sentence as Markdown has read it.
fn mistake_in(sentence: &str, markdown: &str) -> Option<String> {
    let Ok(parsed) = Parsed::compile(sentence) else {
        return Some(format!(
            "a condition ends in the sentence where it begins, or has lines for its tags alone: `{sentence}`"
        ));
    };
    if let Some(partial) = partials_in(&pieces(&parsed, &|_| None)).first() {
        return Some(misplaced_partial(&partial.name));
    }
    let tags = |text: &str| text.matches("{{").count();
    if tags(sentence) > tags(markdown) {
        return Some(format!("Markdown makes a tag of it that was none: `{sentence}`"));
    }
    sentence
        .contains("](")
        .then(|| format!("a link is written `[label](address)`, the address without spaces: `{sentence}`"))
}

fn add_text(found: &mut Vec<Inline>, more: &str) {
    match found.last_mut() {
        Some(Inline::Text(text)) => text.push_str(more),
        _ => found.push(Inline::Text(more.to_owned())),
    }
}

// ---- the plain part ----

/// A template of plain text, and for each of its lines the line of the file that it comes from.
pub(super) fn to_text(blocks: &[Block]) -> (String, Vec<usize>) {
    let mut out = Text::default();
    out.blocks(blocks);
    (out.text, out.lines)
}

#[derive(Default)]
struct Text {
    text: String,
    lines: Vec<usize>,
}

impl Text {
    fn push(&mut self, text: &str, line: usize) {
        for part in text.split('\n') {
            self.text.push_str(part);
            self.text.push('\n');
            self.lines.push(line);
        }
    }

    fn blocks(&mut self, blocks: &[Block]) {
        for (index, block) in blocks.iter().enumerate() {
            let line = block.line;
            match &block.kind {
                Kind::Headline(text) | Kind::Paragraph(text) | Kind::Notice(text) => {
                    self.push(&flatten(text), line);
                    self.push("", line);
                }
                Kind::Button(Link { label, url }) => {
                    self.push(&format!("{}\n{url}\n", flatten(label)), line);
                }
                Kind::Fact { label, value } => {
                    self.push(&format!("{} {}", flatten(label), flatten(value)), line);
                    if blocks.get(index + 1).is_some_and(|next| !is_facts(next)) {
                        self.push("", line);
                    }
                }
                Kind::Partial(name) => {
                    self.push(&format!("{{{{> {name}}}}}\n"), line);
                }
                Kind::Condition { branches, end } => {
                    for branch in branches {
                        self.push(&branch.tag, branch.line);
                        self.blocks(&branch.blocks);
                    }
                    self.push(end, line);
                    if is_facts(block) && blocks.get(index + 1).is_some_and(|next| !is_facts(next)) {
                        self.push("", line);
                    }
                }
            }
        }
    }
}

/// Sentences as plain text.
fn flatten(inlines: &[Inline]) -> String {
    inlines
        .iter()
        .map(|inline| match inline {
            Inline::Text(text) => text.clone(),
            Inline::Strong(inner) => flatten(inner),
            Inline::Link(Link { label, url }) => {
                let label = flatten(label);
                let address = url.strip_prefix("mailto:").unwrap_or(url);
                if label == address { label } else { format!("{label} ({address})") }
            }
            Inline::LineBreak => "\n".to_owned(),
        })
        .collect()
}

// ---- the HTML part ----

/// How blocks look: MJML with places for what they say.
#[derive(Clone, Debug)]
pub(super) struct Design {
    pub(super) headline: String,
    pub(super) paragraph: String,
    pub(super) notice: String,
    pub(super) button: String,
    pub(super) facts: String,
    pub(super) fact: String,
}

/// The places in the design's files that blocks fill: their content, a fact's label, a button's address.
pub(super) const CONTENT: &str = "{{> content}}";
/// See [`CONTENT`].
pub(super) const LABEL: &str = "{{> label}}";
/// See [`CONTENT`].
pub(super) const ADDRESS: &str = "{{> address}}";

/// A template of MJML. `partial` gives that of a partial.
pub(super) fn to_mjml(blocks: &[Block], design: &Design, partial: &mut dyn FnMut(&str) -> String) -> String {
    let mut mjml = String::new();
    let mut rest = blocks;
    while let Some(block) = rest.first() {
        let facts = rest.iter().take_while(|block| is_facts(block)).count();
        if facts > 0 {
            mjml.push_str(&design.facts.replace(CONTENT, &fact_rows(&rest[..facts], design)));
            rest = &rest[facts..];
            continue;
        }
        let with = |design: &str, content: &[Inline]| design.replace(CONTENT, &to_html(content));
        mjml.push_str(&match &block.kind {
            Kind::Headline(text) => with(&design.headline, text),
            Kind::Paragraph(text) => with(&design.paragraph, text),
            Kind::Notice(text) => with(&design.notice, text),
            Kind::Button(Link { label, url }) => with(&design.button, label).replace(ADDRESS, &escape_html(url)),
            Kind::Fact { .. } => String::new(),
            Kind::Partial(name) => partial(name),
            Kind::Condition { branches, end } => {
                let branch = |branch: &Branch| raw(&branch.tag) + &to_mjml(&branch.blocks, design, &mut *partial);
                branches.iter().map(branch).collect::<String>() + &raw(end)
            }
        });
        rest = &rest[1..];
    }
    mjml
}

/// Whether nothing but facts can come of it: they share a table.
fn is_facts(block: &Block) -> bool {
    match &block.kind {
        Kind::Fact { .. } => true,
        Kind::Condition { branches, .. } => branches.iter().all(|branch| branch.blocks.iter().all(is_facts)),
        _ => false,
    }
}

fn fact_rows(blocks: &[Block], design: &Design) -> String {
    let mut rows = String::new();
    for block in blocks {
        match &block.kind {
            Kind::Fact { label, value } => {
                // In a table, cells do what the colon does.
                let label = to_html(label);
                let label = label.trim_end().trim_end_matches(':').trim_end();
                rows.push_str(&design.fact.replace(LABEL, label).replace(CONTENT, &to_html(value)));
            }
            Kind::Condition { branches, end } => {
                for branch in branches {
                    rows.push_str(&branch.tag);
                    rows.push_str(&fact_rows(&branch.blocks, design));
                }
                rows.push_str(end);
            }
            _ => {}
        }
    }
    rows
}

/// A tag between MJML elements.
fn raw(tag: &str) -> String {
    format!("<mj-raw>{tag}</mj-raw>")
}

fn to_html(inlines: &[Inline]) -> String {
    inlines
        .iter()
        .map(|inline| match inline {
            Inline::Text(text) => escape_html(text),
            Inline::Strong(inner) => format!("<strong>{}</strong>", to_html(inner)),
            Inline::Link(link) => {
                format!("<a class=\"link\" href=\"{}\">{}</a>", escape_html(&link.url), to_html(&link.label))
            }
            Inline::LineBreak => "<br />".to_owned(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
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
        let found = to_text(&blocks);
        assert_eq!(found.0, text, "text of {body:?}");
        assert_eq!(found.0.lines().count(), found.1.len(), "lines of {body:?}");
        assert_eq!(to_mjml(&blocks, &design(), &mut |name| format!("[{name}]")), mjml, "MJML of {body:?}");
    }

    #[test]
    fn both_parts_are_made_of_the_same_blocks() {
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
    fn conditions_stand_around_blocks_or_within_sentences() {
        check(
            "{{#if a}}\nx{{#if b}} y{{/if}}\n{{else if c}}\n{{! no }}\n{{else}}\nz\n{{/if}}\n",
            "{{#if a}}\nx{{#if b}} y{{/if}}\n\n{{else if c}}\n{{else}}\nz\n\n{{/if}}\n",
            "<mj-raw>{{#if a}}</mj-raw><p>x{{#if b}} y{{/if}}</p><mj-raw>{{else if c}}</mj-raw><mj-raw>{{else}}</mj-raw>\
             <p>z</p><mj-raw>{{/if}}</mj-raw>",
        );
    }

    #[test]
    fn facts_share_a_table() {
        check(
            "- **A:** {{a}}\n{{#if b}}\n- **B\u{a0}:** {{b}} c\n{{/if}}\n\nd\n",
            "A: {{a}}\n{{#if b}}\nB\u{a0}: {{b}} c\n{{/if}}\n\nd\n\n",
            "<t><r>A={{a}}</r>{{#if b}}<r>B={{b}} c</r>{{/if}}</t><p>d</p>",
        );
    }

    #[test]
    fn what_there_is_not_is_told_by_its_line() {
        #[track_caller]
        fn check(body: &str, line: usize, message: &str) {
            let (found, said) = parse(body, 10).unwrap_err();
            assert_eq!(found, 10 + line, "{body:?}: {said}");
            assert!(said.contains(message), "{body:?}: {said}");
        }
        check("a\n\n## b\n", 3, "`# headline`");
        check("a\n\n*b*\n", 3, "nothing else");
        check("a <b>b</b>\n", 1, "nothing else");
        check("a\n\n\n<div>\n", 4, "nothing else");
        check("a `b`\n", 1, "nothing else");
        check("![a](https://a.example)\n", 1, "nothing else");
        check("[a](https://{{note}})\n", 1, "host or addressee is a fact");
        check("[a](https://b.example{{note}}/c)\n", 1, "host or addressee is a fact");
        check("See [a](mailto:{{note}}).\n", 1, "host or addressee is a fact");
        check("- a\n", 1, "label in bold");
        check("[a](javascript:b)\n", 1, "no address of the web");
        check("x\n[a](/b)\n", 2, "no address of the web");
        check("x\n\n[a]({{note}})\n", 3, "no address of the web");
        check("[a](https://b.example/c d)\n", 1, "the address without spaces");
        check("a &#123;{b}}\n", 1, "makes a tag of it");
        check("a\n\nb {**{c}**}\n", 3, "makes a tag of it");
        check("> a\n>\n> b\n", 1, "one paragraph");
        check("a {{#if b}}c\n\nd{{/if}}\n", 1, "in the sentence where it begins");
        check("**a {{#if b}}c** d{{/if}}\n", 1, "in the sentence where it begins");
        check("{{#if b}}\nc d{{/if}}\n", 2, "in the sentence where it begins");
        check("a\n\nb {{> c}} d\n", 3, "`{{> c}}` stands in a sentence");
        check("- **a:** {{#if b}}{{> c}}{{/if}}\n", 1, "`{{> c}}` stands in a sentence");
        check("{{#if b}}\nc\n", 1, "on a line of its own");
        check("c\n{{/if}}\n", 2, "on a line of its own");
        check("c {{#if b}} d\n{{/if}}\n", 1, "in the sentence where it begins");
    }

    #[test]
    fn each_line_of_the_text_knows_where_it_comes_from() {
        let blocks = parse("a\n\n[b](https://c.example)\n\n{{#if d}}\n{{d}}\n{{/if}}\n", 2).unwrap();
        let (text, lines) = to_text(&blocks);
        let of = |wanted: &str| lines[text.lines().position(|line| line == wanted).unwrap()];
        assert_eq!((of("a"), of("https://c.example"), of("{{#if d}}"), of("{{d}}")), (3, 5, 7, 8));
    }
}
