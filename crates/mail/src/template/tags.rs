//! Handlebars tags in template files.
//!
//! Markdown and MJML would escape the quotes and angle brackets in a tag, or take its asterisks for markup. So each tag is
//! replaced by one private-use character while they are processed, and put back afterwards.

use std::collections::HashMap;

use handlebars::template::Template as Parsed;

use super::problem::Mistake;

/// The characters that stand for tags: the private use area of plane 15.
const FIRST: u32 = 0xF_0000;
const TAGS_MAX: usize = 0xFFFE;

/// What a tag does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TagKind {
    /// `{{name}}`, `{{helper name}}`
    Expression,
    /// `{{#if name}}`, `{{#each names}}`
    Open,
    /// `{{else}}`, `{{else if name}}`, `{{^}}`
    Else,
    /// `{{/if}}`
    Close,
    /// `{{> name}}`
    Partial,
    /// `{{#> name}}`
    OpenPartial,
    /// `{{#*inline "name"}}`
    OpenInline,
    /// `\{{name}}`: braces for the reader.
    Literal,
}

/// A tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    pub(super) kind: TagKind,
    /// With its braces, on one line.
    pub(super) text: String,
}

impl Tag {
    fn new(kind: TagKind, text: &str) -> Self {
        let text = text.replace('\n', " ");
        // One form, so that `{{>content}}` is the place `{{> content}}`.
        let text = match kind {
            TagKind::Partial => format!("{{{{> {}}}}}", inner(&text).trim_start_matches('>').trim()),
            _ => text,
        };
        Self { kind, text }
    }

    /// Without braces, `~` and the character that says what it does: `if name` of `{{~#if name}}`.
    pub(super) fn inner(&self) -> &str {
        inner(&self.text).trim_start_matches(['#', '/', '>', '*', '^']).trim()
    }

    /// Whether it begins with `~`.
    pub(super) fn removes_space_before(&self) -> bool {
        self.text.starts_with("{{~")
    }

    /// Whether it ends with `~`.
    pub(super) fn removes_space_after(&self) -> bool {
        self.text.ends_with("~}}")
    }

    /// The helper of a block: `if` of `{{#if name}}` and of `{{/if}}`.
    fn helper(&self) -> &str {
        self.inner().split_whitespace().next().unwrap_or_default()
    }

    /// The tag for a line of its own, where there is no white space to remove: without `~`.
    fn without_tildes(&self) -> String {
        match self.kind {
            TagKind::Literal => self.text.clone(),
            _ => format!("{{{{{}}}}}", inner(&self.text)),
        }
    }
}

fn inner(tag: &str) -> &str {
    let braces = tag.strip_prefix("{{").and_then(|tag| tag.strip_suffix("}}")).unwrap_or(tag);
    let left = braces.strip_prefix('~').unwrap_or(braces);
    left.strip_suffix('~').unwrap_or(left).trim()
}

/// All tags of all files, and the characters that stand for them.
#[derive(Debug, Default)]
pub(super) struct Tags {
    tags: Vec<Tag>,
    known: HashMap<String, char>,
}

impl Tags {
    /// The character that stands for a tag.
    pub(super) fn hide(&mut self, tag: Tag) -> char {
        if let Some(&known) = self.known.get(&tag.text) {
            return known;
        }
        let index = self.tags.len().min(TAGS_MAX - 1);
        let char = u32::try_from(index).ok().and_then(|index| char::from_u32(FIRST + index)).unwrap_or(' ');
        self.known.insert(tag.text.clone(), char);
        self.tags.push(tag);
        char
    }

    /// The character that stands for `text`, a tag that is written in this program.
    pub(super) fn hide_text(&mut self, kind: TagKind, text: &str) -> char {
        self.hide(Tag::new(kind, text))
    }

    /// The tag that a character stands for.
    pub(super) fn get(&self, char: char) -> Option<&Tag> {
        let index = (char as u32).checked_sub(FIRST)?;
        self.tags.get(usize::try_from(index).ok()?)
    }

    /// A text with its tags put back.
    pub(super) fn reveal(&self, text: &str) -> String {
        let mut revealed = String::with_capacity(2 * text.len());
        for char in text.chars() {
            match self.get(char) {
                Some(tag) => revealed.push_str(&tag.text),
                None => revealed.push(char),
            }
        }
        revealed
    }

    /// The tag that stands alone on a line and structures the text around it.
    pub(super) fn alone(&self, line: &str) -> Option<(TagKind, String)> {
        let mut chars = line.trim().chars();
        let tag = self.get(chars.next()?)?;
        let is_structure = !matches!(tag.kind, TagKind::Expression | TagKind::Literal);
        (chars.next().is_none() && is_structure).then(|| (tag.kind, tag.without_tildes()))
    }

    /// Replaces the tags of a text by characters, removes its comments, and checks that each tag is valid and each block is
    /// closed.
    pub(super) fn hide_all(&mut self, text: &str, lines_before: usize) -> Result<Hidden, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let mut hidden = Hidden { text: String::with_capacity(text.len()), lines: vec![lines_before + 1] };
        let mut open: Vec<(Tag, usize)> = Vec::new();
        let mut rest = text;
        let mut line = lines_before + 1;
        while let Some(at) = rest.find("{{") {
            let escaped = rest[..at].ends_with('\\');
            let before = &rest[..if escaped { at - 1 } else { at }];
            hidden.push_plain(before, &mut line);
            let found = match scan(&rest[before.len()..], at - before.len()) {
                Ok(found) => found,
                Err(message) => {
                    mistakes.push(Mistake::new(line, message));
                    return Err(mistakes);
                }
            };
            let source = &rest[before.len()..before.len() + found.bytes];
            rest = &rest[before.len() + found.bytes..];
            if let Some(kind) = found.kind {
                let tag = Tag::new(kind, source);
                if let Err(message) = check(&tag, &mut open, line) {
                    mistakes.push(Mistake::new(line, message));
                }
                if self.tags.len() == TAGS_MAX {
                    mistakes.push(Mistake::new(line, "there are too many different tags in all files together"));
                    return Err(mistakes);
                }
                hidden.text.push(self.hide(tag));
            }
            line += source.matches('\n').count();
        }
        hidden.push_plain(rest, &mut line);
        for (tag, line) in open {
            mistakes.push(Mistake::new(
                line,
                format!("`{}` is never closed: {{{{/{}}}}} is missing", tag.text, tag.helper()),
            ));
        }
        if mistakes.is_empty() { Ok(hidden) } else { Err(mistakes) }
    }
}

/// A text whose tags are replaced by characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hidden {
    pub(super) text: String,
    /// For each line of `text`, the line of its file. They differ below a tag or a comment of several lines.
    pub(super) lines: Vec<usize>,
}

impl Hidden {
    fn push_plain(&mut self, text: &str, line: &mut usize) {
        for char in text.chars() {
            // No character of a file may be taken for a tag.
            if (FIRST..FIRST + 0xFFFE).contains(&(char as u32)) {
                continue;
            }
            self.text.push(char);
            if char == '\n' {
                *line += 1;
                self.lines.push(*line);
            }
        }
    }
}

/// A tag or a comment at the beginning of a text.
struct Found {
    /// `None`: a comment.
    kind: Option<TagKind>,
    bytes: usize,
}

/// Scans a tag whose braces begin at `at`: after a backslash, or at the beginning.
fn scan(text: &str, at: usize) -> Result<Found, String> {
    let after = &text[at + 2..];
    let inner = after.strip_prefix('~').unwrap_or(after).trim_start();
    if let Some(comment) = inner.strip_prefix('!').filter(|_| at == 0) {
        let end = if comment.starts_with("--") { ["--}}", "--~}}"] } else { ["}}", "}}"] };
        let ends = end.iter().filter_map(|end| comment.find(end).map(|at| at + end.len())).min();
        let begins = text.len() - comment.len();
        return match ends {
            Some(bytes) => Ok(Found { kind: None, bytes: begins + bytes }),
            None => Err(format!("the comment is never closed: `{}` is missing", end[0])),
        };
    }
    if after.starts_with("{{") {
        return Err("raw blocks `{{{{…}}}}` are not supported; to show braces, write \\{{".to_owned());
    }
    if inner.starts_with(['{', '&']) && at == 0 {
        let name = inner.trim_start_matches(['{', '&']).split(['}', '~']).next().unwrap_or_default().trim();
        let end = text.find("}}").map_or(text.len(), |at| text.len() - text[at..].trim_start_matches('}').len());
        return Err(format!("`{}` is not escaped, so a fact could inject HTML: use {{{{{name}}}}}", &text[..end]));
    }
    let Some(end) = end_of_tag(after) else { return Err("`{{` is never closed: `}}` is missing".to_owned()) };
    let kind = if at > 0 {
        TagKind::Literal
    } else {
        match inner.as_bytes().first() {
            Some(b'#') => match inner[1..].trim_start().as_bytes().first() {
                Some(b'>') => TagKind::OpenPartial,
                Some(b'*') => TagKind::OpenInline,
                _ => TagKind::Open,
            },
            Some(b'/') => TagKind::Close,
            Some(b'>') => TagKind::Partial,
            Some(b'^') => TagKind::Else,
            _ if is_else(inner) => TagKind::Else,
            _ => TagKind::Expression,
        }
    };
    Ok(Found { kind: Some(kind), bytes: at + 2 + end })
}

fn is_else(inner: &str) -> bool {
    inner.strip_prefix("else").is_some_and(|rest| rest.starts_with(['}', '~', ' ', '\n', '\t']))
}

/// Where a tag ends, behind its closing braces. Braces in quotes do not close it.
fn end_of_tag(after: &str) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (at, char) in after.char_indices() {
        match (quote, char) {
            (Some(_), _) if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(open), _) if char == open => quote = None,
            (None, '"' | '\'') => quote = Some(char),
            (None, '}') if after[at..].starts_with("}}") => return Some(at + 2),
            (_, _) => {}
        }
    }
    // An apostrophe, perhaps.
    after.find("}}").map(|at| at + 2)
}

/// Checks a tag, and whether it fits the blocks that are open.
fn check(tag: &Tag, open: &mut Vec<(Tag, usize)>, line: usize) -> Result<(), String> {
    let Tag { kind, text } = tag;
    match kind {
        TagKind::Literal => return Ok(()),
        TagKind::Open | TagKind::OpenPartial | TagKind::OpenInline => {
            open.push((tag.clone(), line));
            compiles(tag, &format!("{}{{{{/{}}}}}", tag.without_tildes(), closing(tag)))?;
        }
        TagKind::Else if inner(text).starts_with('^') && !tag.inner().is_empty() => {
            let name = tag.inner();
            if open.is_empty() {
                open.push((Tag::new(TagKind::Open, &format!("{{{{#{name}}}}}")), line));
            }
            return Err(format!("`{text}`: write {{{{#unless {name}}}}}…{{{{/unless}}}}"));
        }
        TagKind::Else => {
            if open.is_empty() {
                return Err(format!("`{text}` is outside of a block such as {{{{#if …}}}}"));
            }
            compiles(tag, &format!("{{{{#if x}}}}{}{{{{/if}}}}", tag.without_tildes()))?;
        }
        TagKind::Close => match open.pop() {
            None => return Err(format!("`{text}` closes nothing: no block is open")),
            Some((opened, _)) if closing(&opened) == tag.inner() => {}
            Some((opened, opened_at)) => {
                return Err(format!("`{text}` does not close `{}` of line {opened_at}", opened.text));
            }
        },
        TagKind::Expression | TagKind::Partial => compiles(tag, &tag.without_tildes())?,
    }
    Ok(())
}

/// What the closing tag of a block names.
fn closing(tag: &Tag) -> &str {
    match tag.kind {
        TagKind::OpenInline => "inline",
        _ => tag.helper(),
    }
}

/// Whether Handlebars accepts a tag.
fn compiles(tag: &Tag, template: &str) -> Result<(), String> {
    if Parsed::compile(template).is_ok() {
        return Ok(());
    }
    let inner = tag.inner();
    let is_comparison = inner.split_whitespace().any(|word| {
        matches!(word, "=" | "==" | "===" | "!=" | "!==" | "<" | "<=" | ">" | ">=" | "&&" | "||")
            || word.starts_with('!')
    });
    Err(if is_comparison {
        format!(
            "`{}`: comparisons are written as helpers: (eq a \"b\"), (ne a b), (gt a 1), (gte a 1), (lt a 1), (lte a 1), \
             (and a b), (or a b), (not a)",
            tag.text
        )
    } else {
        format!("`{}` is not a valid tag", tag.text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hidden(text: &str) -> (String, Vec<usize>, Tags) {
        let mut tags = Tags::default();
        let Hidden { text, lines } = tags.hide_all(text, 10).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
        (text, lines, tags)
    }

    #[test]
    fn tags_become_one_character_each_and_come_back() {
        for (text, chars) in [
            ("a {{b}} c", 5),
            ("{{#if (eq a \"}}\")}}b{{else if c}}d{{/if}}", 5),
            ("{{~#each a as |b i|~}}{{b.c}}{{@index}}{{/each}}", 4),
            ("\\{{a}} {{> b c=\"d e\" f=g}}", 3),
            ("{{#> a}}{{#*inline \"b\"}}c{{/inline}}{{/a}}", 5),
            ("{{#if a}}b{{^}}c{{/if}}", 5),
            ("{{#if a}}b{{else if (eq a \"c^d\")}}e{{/if}}", 5),
        ] {
            let (hidden, _, tags) = hidden(text);
            assert_eq!(hidden.chars().count(), chars, "{text}");
            assert_eq!(tags.reveal(&hidden), text);
        }
    }

    #[test]
    fn comments_disappear_and_lines_stay_known() {
        let (text, lines, tags) = hidden("a\n{{!-- b }}\n{{c}} --}}\nd {{! e }}f\n{{#if\n  g}}h{{/if}}\ni");
        assert_eq!(tags.reveal(&text), "a\n\nd f\n{{#if   g}}h{{/if}}\ni");
        assert_eq!(lines, [11, 12, 14, 15, 17]);
    }

    #[test]
    fn mistakes_say_what_to_do() {
        #[track_caller]
        fn check(text: &str, line: usize, message: &str) {
            let mistakes = Tags::default().hide_all(text, 10).unwrap_err();
            assert!(
                mistakes.iter().any(|mistake| mistake.line == line && mistake.message.contains(message)),
                "{text}: {mistakes:?}"
            );
        }
        check("a\n{{#if note}}\nabc", 12, "`{{#if note}}` is never closed: {{/if}} is missing");
        check("a\n\n{{/if}}", 13, "`{{/if}}` closes nothing");
        check("{{#if a}}\n{{/unless}}", 12, "`{{/unless}}` does not close `{{#if a}}` of line 11");
        check("{{^note}}a{{/note}}", 11, "write {{#unless note}}…{{/unless}}");
        check("{{#if a > 1}}b{{/if}}", 11, "(gt a 1)");
        check("{{#if !a}}b{{/if}}", 11, "(not a)");
        check("{{else}}", 11, "outside of a block");
        check("a\n{{b\n", 12, "`{{` is never closed");
        check("{{!-- a }}", 11, "the comment is never closed: `--}}` is missing");
        check("{{{a}}}", 11, "`{{{a}}}` is not escaped, so a fact could inject HTML: use {{a}}");
        check("{{&a}}", 11, "use {{a}}");
        check("{{{{a}}}}b{{{{/a}}}}", 11, "raw blocks");
        check("{{a b c=}}", 11, "`{{a b c=}}` is not a valid tag");
    }
}
