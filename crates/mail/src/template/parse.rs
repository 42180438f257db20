//! Template files are written in a little Markdown, with Handlebars in it. This module parses them into blocks.
//!
//! A helper around whole blocks, such as `{{#if …}}`, has each of its tags on its own line. A helper within a sentence
//! begins and ends in that sentence.

use std::iter::Peekable;
use std::ops::Range;

use pulldown_cmark::{Event, HeadingLevel, Parser, Tag as Markup, TagEnd};

use super::block::{Block, BlockKind, Branch, Inline, Link, PartialCall, Position};
use super::facts_view::is_prose;
use super::helpers::PARTIAL_SCOPE;
use super::link::{Address, link_address};
use super::plain::flatten;
use super::problem::Mistake;
use super::tags::{Hidden, TagKind, Tags};

const UNSUPPORTED: &str = "only paragraphs, `# headline`, `> notice`, `- **label:** fact`, `**bold**` and \
                           `[label](address)` are supported";

/// Parses a body.
pub(super) fn parse(body: &Hidden, file: usize, tags: &mut Tags) -> Result<Vec<Block>, Mistake> {
    let lines = body.text.lines().zip(body.lines.iter().copied()).collect();
    let mut parser = BodyParser { lines, next: 0, file, tags };
    let (blocks, tag) = parser.blocks()?;
    match tag {
        // Its other tag is inside a sentence.
        Some(LoneTag { text, line, .. }) => Err(Mistake::new(line, misplaced(&text))),
        None => Ok(blocks),
    }
}

/// The message about a partial inside a sentence.
pub(super) fn misplaced_partial(tag: &str) -> String {
    format!("`{tag}` is inside a sentence; a partial must be on its own line, below the subject")
}

fn misplaced(tag: &str) -> String {
    format!("`{tag}` is on its own line, so its other tags must be, too")
}

/// A tag on its own line.
struct LoneTag {
    kind: TagKind,
    text: String,
    line: usize,
}

struct BodyParser<'a> {
    lines: Vec<(&'a str, usize)>,
    next: usize,
    file: usize,
    tags: &'a mut Tags,
}

impl BodyParser<'_> {
    /// Parses blocks up to an `{{else}}` or a closing tag, which is returned, or to the end.
    fn blocks(&mut self) -> Result<(Vec<Block>, Option<LoneTag>), Mistake> {
        let mut blocks = Vec::new();
        let mut markdown = Vec::new();
        loop {
            let line = self.lines.get(self.next).copied();
            self.next += 1;
            let tag = match line {
                Some((text, line)) => {
                    let Some((kind, text)) = self.tags.alone(text) else {
                        markdown.push((text, line));
                        continue;
                    };
                    Some(LoneTag { kind, text, line })
                }
                None => None,
            };
            self.markdown(&std::mem::take(&mut markdown), &mut blocks)?;
            let Some(tag) = tag else { return Ok((blocks, None)) };
            if matches!(tag.kind, TagKind::Else | TagKind::Close) {
                return Ok((blocks, Some(tag)));
            }
            let position = Position { file: self.file, line: tag.line };
            blocks.push(Block { position, kind: self.structure(&tag)? });
        }
    }

    /// Parses what a tag on its own line begins.
    fn structure(&mut self, tag: &LoneTag) -> Result<BlockKind, Mistake> {
        Ok(match tag.kind {
            TagKind::Partial => BlockKind::Partial(self.partial_call(&tag.text, ">", None)),
            TagKind::OpenPartial => {
                let content = self.closed(tag)?;
                BlockKind::Partial(self.partial_call(&tag.text, "#>", Some(content)))
            }
            TagKind::OpenInline => {
                let blocks = self.closed(tag)?;
                let name = tag.text.split(['"', '\'']).nth(1).unwrap_or_default().to_owned();
                if name.is_empty() {
                    return Err(Mistake::new(tag.line, "write {{#*inline \"name\"}}…{{/inline}}"));
                }
                BlockKind::InlinePartial { name, blocks }
            }
            _ => self.helper(tag)?,
        })
    }

    /// `{{> name arguments}}`
    fn partial_call(&mut self, tag: &str, sign: &str, content: Option<Vec<Block>>) -> PartialCall {
        let inner = tag.trim_start_matches('{').trim_end_matches('}').trim();
        let inner = inner.strip_prefix(sign).unwrap_or(inner).trim();
        let (name, arguments) = inner.split_once(char::is_whitespace).unwrap_or((inner, ""));
        let scope = (!arguments.trim().is_empty()).then(|| {
            let begins = format!("{{{{#{PARTIAL_SCOPE} {}}}}}", arguments.trim());
            (self.hidden(TagKind::Open, &begins), self.hidden(TagKind::Close, &format!("{{{{/{PARTIAL_SCOPE}}}}}")))
        });
        PartialCall { name: name.trim_matches(['"', '\'']).to_owned(), scope, content }
    }

    fn hidden(&mut self, kind: TagKind, tag: &str) -> String {
        self.tags.hide_text(kind, tag).to_string()
    }

    /// The blocks up to the closing tag of `tag`, without branches.
    fn closed(&mut self, tag: &LoneTag) -> Result<Vec<Block>, Mistake> {
        match self.blocks()? {
            (blocks, Some(LoneTag { kind: TagKind::Close, .. })) => Ok(blocks),
            (_, Some(LoneTag { text, line, .. })) => {
                Err(Mistake::new(line, format!("`{text}` does not belong into `{}`", tag.text)))
            }
            (_, None) => Err(Mistake::new(tag.line, misplaced(&tag.text))),
        }
    }

    fn helper(&mut self, first: &LoneTag) -> Result<BlockKind, Mistake> {
        let mut branches = Vec::new();
        let mut next = Some((first.line, self.hidden(TagKind::Open, &first.text)));
        while let Some((line, tag)) = next {
            let (blocks, after) = self.blocks()?;
            let position = Position { file: self.file, line };
            branches.push(Branch { position, tag, blocks });
            next = match after {
                Some(LoneTag { kind: TagKind::Close, text, .. }) => {
                    return Ok(BlockKind::Helper { branches, end: self.hidden(TagKind::Close, &text) });
                }
                Some(LoneTag { text, line, .. }) => Some((line, self.hidden(TagKind::Else, &text))),
                None => None,
            };
        }
        Err(Mistake::new(first.line, misplaced(&first.text)))
    }

    /// Parses lines that contain no tag on its own line.
    fn markdown(&mut self, lines: &[(&str, usize)], blocks: &mut Vec<Block>) -> Result<(), Mistake> {
        let text: String = lines.iter().flat_map(|(text, _)| [*text, "\n"]).collect();
        let mut source = Source {
            markdown: &text,
            lines,
            events: Parser::new(&text).into_offset_iter().peekable(),
            tags: &mut *self.tags,
        };
        while let Some((event, at)) = source.events.next() {
            let line = source.line(&at);
            let unsupported = || Mistake::new(line, UNSUPPORTED);
            let kind = match event {
                Event::Start(Markup::Heading { level: HeadingLevel::H1, .. }) => {
                    BlockKind::Headline(source.inlines(line)?)
                }
                Event::Start(Markup::Paragraph) => {
                    let sentences = source.inlines(line)?;
                    match sentences.as_slice() {
                        [Inline::Link(button)] => BlockKind::Button(button.clone()),
                        _ => BlockKind::Paragraph(sentences),
                    }
                }
                Event::Start(Markup::BlockQuote(_)) => {
                    let Some((Event::Start(Markup::Paragraph), _)) = source.events.next() else {
                        return Err(unsupported());
                    };
                    let sentences = source.inlines(line)?;
                    let Some((Event::End(TagEnd::BlockQuote(_)), _)) = source.events.next() else {
                        return Err(Mistake::new(line, "a notice must be one paragraph"));
                    };
                    BlockKind::Notice(sentences)
                }
                Event::Start(Markup::List(None)) | Event::End(TagEnd::List(_)) => continue,
                Event::Start(Markup::Item) => {
                    // With empty lines between them, items contain paragraphs.
                    let paragraph = |(event, _): &(Event<'_>, _)| *event == Event::Start(Markup::Paragraph);
                    let is_loose = source.events.next_if(paragraph).is_some();
                    let item = source.inlines(line)?;
                    if is_loose && !matches!(source.events.next(), Some((Event::End(TagEnd::Item), _))) {
                        return Err(unsupported());
                    }
                    source.fact(item, line)?
                }
                _ => return Err(unsupported()),
            };
            blocks.push(Block { position: Position { file: self.file, line }, kind });
        }
        Ok(())
    }
}

/// Markdown, and where its lines come from.
struct Source<'a, 't> {
    markdown: &'a str,
    lines: &'a [(&'a str, usize)],
    events: Peekable<pulldown_cmark::OffsetIter<'a, pulldown_cmark::DefaultBrokenLinkCallback>>,
    tags: &'t mut Tags,
}

impl Source<'_, '_> {
    fn line(&self, at: &Range<usize>) -> usize {
        let index = self.markdown[..at.start].matches('\n').count();
        self.lines.get(index).map_or(0, |(_, line)| *line)
    }

    /// `**label:** value`
    fn fact(&self, item: Vec<Inline>, line: usize) -> Result<BlockKind, Mistake> {
        let mut item = item.into_iter();
        let Some(Inline::Strong(label)) = item.next() else {
            return Err(Mistake::new(line, "a fact must begin with its label in bold: `- **label:** value`"));
        };
        let mut value: Vec<_> = item.collect();
        if let Some(Inline::Text(text)) = value.first_mut() {
            *text = text.trim_start().to_owned();
        }
        if flatten(&value).trim().is_empty() {
            return Err(Mistake::new(line, "this fact has no value: `- **label:** value`"));
        }
        if let [Inline::Text(text)] = value.as_slice() {
            let mut chars = text.trim().chars();
            if let (Some(fact), None) = (chars.next(), chars.next())
                && self.tags.get(fact).is_some_and(|tag| tag.kind == TagKind::Expression && is_prose(tag.inner()))
            {
                return Ok(BlockKind::Quote { label, fact });
            }
        }
        Ok(BlockKind::Fact { label, value })
    }

    /// Parses sentences up to the end of the current element. Each element must be a complete template: if a helper crossed
    /// the end of an element, that end would be missing whenever the helper leaves it out.
    fn inlines(&mut self, begins: usize) -> Result<Vec<Inline>, Mistake> {
        let mut found: Vec<Inline> = Vec::new();
        while let Some((event, at)) = self.events.next() {
            let line = self.line(&at);
            match event {
                Event::Text(text) => add_text(&mut found, &text),
                Event::SoftBreak => add_text(&mut found, " "),
                Event::HardBreak => found.push(Inline::LineBreak),
                Event::Start(Markup::Strong) => found.push(Inline::Strong(self.inlines(line)?)),
                Event::Start(Markup::Link { dest_url, .. }) => {
                    let Address { url, shown } = link_address(&dest_url, self.tags).map_err(|why| {
                        Mistake::new(line, format!("invalid link `{}`: {why}", self.tags.reveal(&dest_url)))
                    })?;
                    if let Some(message) = self.mistake_in(&shown) {
                        return Err(Mistake::new(line, message));
                    }
                    found.push(Inline::Link(Link { label: self.inlines(line)?, url, shown }));
                }
                Event::End(_) => {
                    return match self.mistake_in(&flatten(&found)) {
                        None => Ok(found),
                        Some(message) => Err(Mistake::new(begins, message)),
                    };
                }
                _ => return Err(Mistake::new(line, UNSUPPORTED)),
            }
        }
        Ok(found)
    }

    /// What is wrong with a sentence after Markdown has parsed it.
    fn mistake_in(&self, sentence: &str) -> Option<String> {
        let mut before = ' ';
        for char in sentence.chars() {
            if matches!(before, '{' | '\\') && (char == '{' && before == '{' || self.tags.get(char).is_some()) {
                return Some(format!("Markdown turns this into a tag: `{}`", self.tags.reveal(sentence)));
            }
            before = char;
        }
        let mut depth = 0_i32;
        for tag in sentence.chars().filter_map(|char| self.tags.get(char)) {
            match tag.kind {
                TagKind::Open => depth += 1,
                TagKind::Close => depth -= 1,
                TagKind::Partial | TagKind::OpenPartial | TagKind::OpenInline => {
                    return Some(misplaced_partial(&tag.text));
                }
                TagKind::Else if depth == 0 => depth = -1,
                _ => {}
            }
            if depth < 0 {
                break;
            }
        }
        if depth != 0 {
            return Some(format!(
                "a block such as {{{{#if …}}}} must end in the sentence where it begins, or have its tags on their own \
                 lines: `{}`",
                self.tags.reveal(sentence)
            ));
        }
        sentence.contains("](").then(|| {
            format!(
                "a link is written `[label](address)`, with no spaces in the address: `{}`",
                self.tags.reveal(sentence)
            )
        })
    }
}

fn add_text(found: &mut Vec<Inline>, more: &str) {
    match found.last_mut() {
        Some(Inline::Text(text)) => text.push_str(more),
        _ => found.push(Inline::Text(more.to_owned())),
    }
}

#[cfg(test)]
mod tests;
