//! Templates as mails are made of them: text, facts and conditions, in the order in which they stand.
//!
//! Handlebars reads templates. Of what it can do, [`lint`](super::lint) allows names, conditions and partials, and these
//! need none of the scopes, helpers and parameters that its engine prepares at each of them. Filled in here, a mail takes
//! about half of the time.

use handlebars::template::{Parameter, Template as Parsed, TemplateElement};

use crate::view::{Shown, View};

/// A part of a template.
#[derive(Clone, Debug)]
pub(super) enum Piece {
    /// What stands there for every reader.
    Text(String),
    /// `{{name}}`
    Fact(Name),
    /// `{{#if name}}met{{else}}unmet{{/if}}`; in `{{#unless}}` they have changed places.
    Condition { name: String, met: Vec<Piece>, unmet: Vec<Piece> },
    /// `{{> name}}`. The loader puts pieces in its place.
    Partial(Name),
}

/// A name in a template.
#[derive(Clone, Debug)]
pub(super) struct Name {
    pub(super) name: String,
    /// Where it stands in the files, where that is known.
    pub(super) position: Option<Position>,
}

/// A place in the files.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    /// The number of the file.
    pub(super) file: usize,
    /// The line, from 1; of words below the subject, that where their paragraph begins.
    pub(super) line: usize,
}

/// Takes the pieces out of what was parsed. What [`lint`](super::lint) does not allow is left out; `position` says where a
/// line of it comes from.
pub(super) fn pieces(parsed: &Parsed, position: &dyn Fn(usize) -> Option<Position>) -> Vec<Piece> {
    pieces_within(parsed, None, position)
}

fn pieces_within(
    parsed: &Parsed,
    position_of_block: Option<Position>,
    position: &dyn Fn(usize) -> Option<Position>,
) -> Vec<Piece> {
    let mut pieces = Vec::with_capacity(parsed.elements.len());
    for (index, element) in parsed.elements.iter().enumerate() {
        // The parser gives `{{else if}}` no position: it stands where its block does.
        let position_here = parsed.mapping.get(index).map_or(position_of_block, |at| position(at.0));
        let named =
            |name: &Parameter| Name { name: name.as_name().unwrap_or_default().to_owned(), position: position_here };
        match element {
            TemplateElement::RawString(text) => pieces.push(Piece::Text(text.clone())),
            TemplateElement::Expression(value) => pieces.push(Piece::Fact(named(&value.name))),
            TemplateElement::PartialExpression(partial) => pieces.push(Piece::Partial(named(&partial.name))),
            TemplateElement::HelperBlock(block) => {
                let within = |inner: &Option<Parsed>| {
                    inner.as_ref().map(|inner| pieces_within(inner, position_here, position)).unwrap_or_default()
                };
                let (mut met, mut unmet) = (within(&block.template), within(&block.inverse));
                if block.name.as_name() == Some("unless") {
                    std::mem::swap(&mut met, &mut unmet);
                }
                let name = block.params.first().and_then(Parameter::as_name).unwrap_or_default().to_owned();
                pieces.push(Piece::Condition { name, met, unmet });
            }
            _ => {}
        }
    }
    pieces
}

/// The partials in what was parsed, also those in conditions.
pub(super) fn partials_in(pieces: &[Piece]) -> Vec<&Name> {
    pieces
        .iter()
        .flat_map(|piece| match piece {
            Piece::Partial(name) => vec![name],
            Piece::Condition { met, unmet, .. } => [partials_in(met), partials_in(unmet)].concat(),
            Piece::Text(_) | Piece::Fact(_) => vec![],
        })
        .collect()
}

/// Puts what `replacement` gives in the place of every partial, also of those in conditions.
pub(super) fn replace_partials(pieces: &[Piece], replacement: &mut dyn FnMut(&Name) -> Vec<Piece>) -> Vec<Piece> {
    let mut replaced = Vec::with_capacity(pieces.len());
    for piece in pieces {
        match piece {
            Piece::Partial(name) => replaced.extend(replacement(name)),
            Piece::Condition { name, met, unmet } => replaced.push(Piece::Condition {
                name: name.clone(),
                met: replace_partials(met, replacement),
                unmet: replace_partials(unmet, replacement),
            }),
            Piece::Text(_) | Piece::Fact(_) => replaced.push(piece.clone()),
        }
    }
    replaced
}

/// Fills in a template with a mail's facts, which `write` puts at the end of what is there already.
///
/// # Errors
/// The first name that the mail has no words for.
pub(super) fn fill<'a>(
    pieces: &'a [Piece],
    facts: &View,
    write: fn(&mut String, &str),
    filled: &mut String,
) -> Result<(), &'a Name> {
    for piece in pieces {
        match piece {
            Piece::Text(text) => filled.push_str(text),
            Piece::Fact(name) => match facts.get(name.name.as_str()) {
                Some(Shown::Words(words)) => write(filled, words),
                Some(Shown::Yes) | None => return Err(name),
            },
            Piece::Condition { name, met, unmet } => {
                let chosen = if facts.get(name.as_str()).is_some_and(Shown::is_there) { met } else { unmet };
                fill(chosen, facts, write, filled)?;
            }
            Piece::Partial(name) => return Err(name),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(template: &str) -> Result<String, String> {
        let facts = View::from([
            ("plan", Shown::Words("<Swim>".to_owned())),
            ("card", Shown::Yes),
            ("card.brand", Shown::Words(String::new())),
        ]);
        let pieces = pieces(&Parsed::compile(template).unwrap(), &|line| Some(Position { file: 7, line }));
        let mut filled = String::new();
        match fill(&pieces, &facts, |filled, words| filled.extend(words.chars().filter(|c| *c != '<')), &mut filled) {
            Ok(()) => Ok(filled),
            Err(Name { name, position: Some(Position { file: 7, line }) }) => Err(format!("{line}: {name}")),
            Err(name) => panic!("{name:?}"),
        }
    }

    #[test]
    fn conditions_ask_whether_there_is_something_to_show() {
        for (template, expected) in [
            ("a {{plan}} <b", "a Swim> <b"),
            ("{{#if plan}}a{{else}}b{{/if}}", "a"),
            ("{{#unless plan}}a{{else}}b{{/unless}}", "b"),
            ("{{#unless note}}a{{/unless}}{{#if note}}b{{/if}}", "a"),
            ("{{#if card}}a{{/if}}{{#if card.brand}}b{{/if}}", "a"),
            ("{{#if note}}a{{else if card}}b{{else}}c{{/if}}", "b"),
            ("{{#if note}}a{{else if reason}}b{{else}}c{{/if}}", "c"),
            ("{{#if note}}a{{else unless reason}}b{{else}}c{{/if}}", "b"),
            ("{{#if note}}a{{^}}b{{/if}}", "b"),
            ("a {{~#if plan~}} b {{~/if~}} c", "abc"),
            ("{{#if plan}}\na\n{{! no }}\n{{/if}}\nb", "a\nb"),
            ("{{card.brand}}{{#if note}}{{note}}{{/if}}", ""),
        ] {
            assert_eq!(filled(template).as_deref(), Ok(expected), "{template}");
        }
    }

    #[test]
    fn what_is_not_there_is_told_by_its_line() {
        assert_eq!(filled("a\n{{note}}"), Err("2: note".to_owned()));
        assert_eq!(filled("{{card}}"), Err("1: card".to_owned()));
        assert_eq!(filled("{{#if plan}}\n\n{{#if card}}{{note}}{{/if}}{{/if}}"), Err("3: note".to_owned()));
        assert_eq!(filled("\n{{#if note}}\n{{else if plan}}\n{{note}}\n{{/if}}"), Err("4: note".to_owned()));
    }
}
