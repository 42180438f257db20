//! The syntax tree of a template: text, facts, conditions and partials.
//!
//! Handlebars parses templates. [`lint`](super::lint) allows only names, conditions and partials, which need none of the
//! scopes, helpers and parameters that the Handlebars engine prepares for each of them. Rendering here takes about half the
//! time.

use handlebars::template::{Parameter, Template as Parsed, TemplateElement};

use super::facts_view::{FactsView, Value};

/// A node of a template.
#[derive(Clone, Debug)]
pub(super) enum Node {
    /// The same for every reader.
    Text(String),
    /// `{{name}}`
    Fact(Name),
    /// `{{#if name}}met{{else}}unmet{{/if}}`; in `{{#unless}}` the other way round.
    Condition { name: String, met: Vec<Node>, unmet: Vec<Node> },
    /// `{{> name}}`. Assembling an email replaces it.
    Partial(Name),
}

/// A name in a template.
#[derive(Clone, Debug)]
pub(super) struct Name {
    pub(super) name: String,
    /// Its position in the files, if known.
    pub(super) position: Option<Position>,
}

/// A position in the files.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    /// The index of the file.
    pub(super) file: usize,
    /// The line, from 1. In a body, the line where the paragraph begins.
    pub(super) line: usize,
}

/// The nodes of a parsed template. Anything that [`lint`](super::lint) does not allow is left out. `position` maps a line of
/// the template to the files.
pub(super) fn nodes(parsed: &Parsed, position: &dyn Fn(usize) -> Option<Position>) -> Vec<Node> {
    nodes_within(parsed, None, position)
}

fn nodes_within(
    parsed: &Parsed,
    position_of_block: Option<Position>,
    position: &dyn Fn(usize) -> Option<Position>,
) -> Vec<Node> {
    let mut nodes = Vec::with_capacity(parsed.elements.len());
    for (index, element) in parsed.elements.iter().enumerate() {
        // The parser gives `{{else if}}` no position; use that of its block.
        let position_here = parsed.mapping.get(index).map_or(position_of_block, |at| position(at.0));
        let named =
            |name: &Parameter| Name { name: name.as_name().unwrap_or_default().to_owned(), position: position_here };
        match element {
            TemplateElement::RawString(text) => nodes.push(Node::Text(text.clone())),
            TemplateElement::Expression(value) => nodes.push(Node::Fact(named(&value.name))),
            TemplateElement::PartialExpression(partial) => nodes.push(Node::Partial(named(&partial.name))),
            TemplateElement::HelperBlock(block) => {
                let within = |inner: &Option<Parsed>| {
                    inner.as_ref().map(|inner| nodes_within(inner, position_here, position)).unwrap_or_default()
                };
                let (mut met, mut unmet) = (within(&block.template), within(&block.inverse));
                if block.name.as_name() == Some("unless") {
                    std::mem::swap(&mut met, &mut unmet);
                }
                let name = block.params.first().and_then(Parameter::as_name).unwrap_or_default().to_owned();
                nodes.push(Node::Condition { name, met, unmet });
            }
            _ => {}
        }
    }
    nodes
}

/// All partials, also those in conditions.
pub(super) fn partials(nodes: &[Node]) -> Vec<&Name> {
    nodes
        .iter()
        .flat_map(|node| match node {
            Node::Partial(name) => vec![name],
            Node::Condition { met, unmet, .. } => [partials(met), partials(unmet)].concat(),
            Node::Text(_) | Node::Fact(_) => vec![],
        })
        .collect()
}

/// Replaces all partials, also those in conditions.
pub(super) fn replace_partials(nodes: &[Node], replacement: &mut dyn FnMut(&Name) -> Vec<Node>) -> Vec<Node> {
    let mut replaced = Vec::with_capacity(nodes.len());
    for node in nodes {
        match node {
            Node::Partial(name) => replaced.extend(replacement(name)),
            Node::Condition { name, met, unmet } => replaced.push(Node::Condition {
                name: name.clone(),
                met: replace_partials(met, replacement),
                unmet: replace_partials(unmet, replacement),
            }),
            Node::Text(_) | Node::Fact(_) => replaced.push(node.clone()),
        }
    }
    replaced
}

/// Appends a template with its facts to `out`. `write` appends a fact.
///
/// # Errors
/// The first missing fact.
pub(super) fn render<'a>(
    nodes: &'a [Node],
    facts: &FactsView,
    write: fn(&mut String, &str),
    out: &mut String,
) -> Result<(), &'a Name> {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Fact(name) => match facts.get(name.name.as_str()) {
                Some(Value::Text(text)) => write(out, text),
                Some(Value::True) | None => return Err(name),
            },
            Node::Condition { name, met, unmet } => {
                let chosen = if facts.get(name.as_str()).is_some_and(Value::is_truthy) { met } else { unmet };
                render(chosen, facts, write, out)?;
            }
            Node::Partial(name) => return Err(name),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(template: &str) -> Result<String, String> {
        let facts = FactsView::from([
            ("plan", Value::Text("<Swim>".to_owned())),
            ("card", Value::True),
            ("card.brand", Value::Text(String::new())),
        ]);
        let nodes = nodes(&Parsed::compile(template).unwrap(), &|line| Some(Position { file: 7, line }));
        let mut out = String::new();
        match render(&nodes, &facts, |out, text| out.extend(text.chars().filter(|c| *c != '<')), &mut out) {
            Ok(()) => Ok(out),
            Err(Name { name, position: Some(Position { file: 7, line }) }) => Err(format!("{line}: {name}")),
            Err(name) => panic!("{name:?}"),
        }
    }

    #[test]
    fn conditions_are_met_by_flags_and_nonempty_texts() {
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
            assert_eq!(rendered(template).as_deref(), Ok(expected), "{template}");
        }
    }

    #[test]
    fn missing_facts_are_reported_by_line() {
        assert_eq!(rendered("a\n{{note}}"), Err("2: note".to_owned()));
        assert_eq!(rendered("{{card}}"), Err("1: card".to_owned()));
        assert_eq!(rendered("{{#if plan}}\n\n{{#if card}}{{note}}{{/if}}{{/if}}"), Err("3: note".to_owned()));
        assert_eq!(rendered("\n{{#if note}}\n{{else if plan}}\n{{note}}\n{{/if}}"), Err("4: note".to_owned()));
    }
}
