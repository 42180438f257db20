//! The elements and the visible text of an HTML part, without a browser. Includes Outlook's conditional comments.

use std::collections::BTreeMap;

use html5gum::{DefaultEmitter, Token, Tokenizer};

/// A parsed HTML part.
#[derive(Default)]
pub struct Html {
    pub elements: Vec<Element>,
    /// The visible text, with each block on a line of its own.
    pub text: String,
    /// The content of `<style>`.
    pub styles: String,
}

/// A start tag.
pub struct Element {
    pub name: String,
    pub attributes: BTreeMap<String, String>,
}

impl Element {
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.get(name).map(String::as_str)
    }
}

/// Elements that do not start a new line.
const INLINE: [&str; 9] = ["a", "b", "bdi", "em", "i", "small", "span", "strong", "u"];

/// Elements without an end tag.
const VOID: [&str; 6] = ["br", "col", "hr", "img", "link", "meta"];

impl Html {
    pub fn parse(html: &str) -> Self {
        let mut parsed = Self::default();
        // The outermost hidden element, and the nesting depth of elements with its name.
        let mut hidden: Option<(String, usize)> = None;
        let mut in_style = false;
        let mut emitter = DefaultEmitter::default();
        emitter.naively_switch_states(true);
        for token in Tokenizer::new_with_emitter(html, emitter).map(Result::unwrap) {
            match token {
                Token::StartTag(tag) => {
                    let attributes =
                        tag.attributes.iter().map(|(name, value)| (string(name), string(&value.value))).collect();
                    let element = Element { name: string(&tag.name), attributes };
                    if !INLINE.contains(&element.name.as_str()) {
                        parsed.text.push('\n');
                    }
                    in_style = element.name == "style";
                    match &mut hidden {
                        Some((name, depth)) if *name == element.name => *depth += 1,
                        None if element.does_not_show() && !VOID.contains(&element.name.as_str()) => {
                            hidden = Some((element.name.clone(), 1));
                        }
                        _ => {}
                    }
                    parsed.elements.push(element);
                }
                Token::EndTag(tag) => {
                    let name = string(&tag.name);
                    in_style = false;
                    if !INLINE.contains(&name.as_str()) {
                        parsed.text.push('\n');
                    }
                    if let Some((of, depth)) = &mut hidden
                        && *of == name
                    {
                        *depth -= 1;
                        if *depth == 0 {
                            hidden = None;
                        }
                    }
                }
                Token::String(text) if in_style => parsed.styles += &string(&text.value),
                Token::String(text) if hidden.is_none() => parsed.text += &string(&text.value),
                Token::Comment(comment) => {
                    // Only Outlook reads <!--[if mso]> … <![endif]-->.
                    let comment = string(&comment.value);
                    if let Some((_, for_outlook)) =
                        comment.strip_prefix("[if").and_then(|condition| condition.split_once("]>"))
                    {
                        let for_outlook = Self::parse(for_outlook.trim_end_matches("<![endif]"));
                        parsed.elements.extend(for_outlook.elements);
                        parsed.styles += &for_outlook.styles;
                    }
                }
                Token::String(_) | Token::Doctype(_) | Token::Error(_) => {}
            }
        }
        parsed
    }
}

impl Element {
    fn does_not_show(&self) -> bool {
        let style = self.attribute("style").unwrap_or_default().replace(' ', "");
        matches!(self.name.as_str(), "head" | "style" | "script" | "title" | "template")
            || style.contains("display:none")
            || style.contains("visibility:hidden")
    }
}

fn string(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
