//! The helpers that templates can use besides Handlebars' own `if`, `unless`, `each`, `with` and `lookup`.
//!
//! In strict mode, Handlebars' own comparisons fail when a fact is missing. A template asks for the reason of a failed payment
//! with `(eq failure_code "expired_card")` whether there is one or not, so here a missing fact equals nothing.

use std::cmp::Ordering;
use std::sync::LazyLock;

use handlebars::{
    BlockContext, Context, Handlebars, Helper, HelperDef, HelperResult, JsonTruthy, JsonValue as Json, Output,
    RenderContext, RenderError, RenderErrorReason, Renderable, ScopedJson, no_escape,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::escape::escape_html;

/// Renders plain text: subjects and plain parts.
pub(super) static PLAIN: LazyLock<Handlebars<'static>> = LazyLock::new(|| {
    let mut engine = engine();
    engine.register_escape_fn(no_escape);
    engine
});

/// Renders HTML.
pub(super) static HTML: LazyLock<Handlebars<'static>> = LazyLock::new(|| {
    let mut engine = engine();
    engine.register_escape_fn(escape_html);
    engine
});

/// The block that stands for a partial with arguments: assembling an email replaces each partial by its content.
pub(super) const PARTIAL_SCOPE: &str = "partial";

/// Makes a value of the values of its parameters.
type Value = fn(&[&Json]) -> Json;
/// Changes a text.
type Change = fn(&str) -> String;

/// Helpers that return a value, for expressions and for conditions.
const VALUES: [(&str, Value); 9] = [
    ("eq", |it| pair(it, |a, b| a == b)),
    ("ne", |it| pair(it, |a, b| a != b)),
    ("gt", |it| pair(it, |a, b| compare(a, b) == Some(Ordering::Greater))),
    ("gte", |it| pair(it, |a, b| compare(a, b).is_some_and(Ordering::is_ge))),
    ("lt", |it| pair(it, |a, b| compare(a, b) == Some(Ordering::Less))),
    ("lte", |it| pair(it, |a, b| compare(a, b).is_some_and(Ordering::is_le))),
    ("and", |it| Json::Bool(it.iter().all(|value| value.is_truthy(false)))),
    ("or", |it| Json::Bool(it.iter().any(|value| value.is_truthy(false)))),
    ("not", |it| Json::Bool(!it.first().is_some_and(|value| value.is_truthy(false)))),
];

/// Helpers that change the text of one fact, which must not be missing.
const TEXTS: [(&str, Change); 3] = [
    ("url_encoded", |text| utf8_percent_encode(text, &NOT_IN_URLS).to_string()),
    ("phone_digits", phone_digits),
    ("without_full_stop", |text| text.strip_suffix('.').unwrap_or(text).to_owned()),
];

/// All characters but those that never change what a URL means (RFC 3986 §2.3), and `@`.
const NOT_IN_URLS: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'@');

/// How many parameters a helper takes, at least and at most. `None`: there is no such helper.
pub(super) fn parameters(helper: &str) -> Option<(usize, usize)> {
    Some(match helper {
        "if" | "unless" | "each" | "with" | "not" | "len" => (1, 1),
        "eq" | "ne" | "gt" | "gte" | "lt" | "lte" => (2, 2),
        "and" | "or" | "lookup" => (2, usize::MAX),
        PARTIAL_SCOPE => (0, 1),
        _ if TEXTS.iter().any(|(name, _)| *name == helper) => (1, 1),
        _ => return None,
    })
}

/// The helpers that authors may use, for messages.
pub(super) const FOR_AUTHORS: &str = "if, unless, each, with, lookup, len, eq, ne, gt, gte, lt, lte, and, or, not";

fn engine() -> Handlebars<'static> {
    let mut engine = Handlebars::new();
    engine.set_strict_mode(true);
    for (name, value) in VALUES {
        engine.register_helper(name, Box::new(ValueHelper(value)));
    }
    for (name, text) in TEXTS {
        engine.register_helper(name, Box::new(TextHelper(text)));
    }
    engine.register_helper("len", Box::new(ValueHelper(length)));
    engine.register_helper(PARTIAL_SCOPE, Box::new(PartialScope));
    engine
}

/// The number to dial: without the `(0)` of international numbers, and without an extension or a second number.
fn phone_digits(text: &str) -> String {
    let number = text.replace("(0)", "");
    let is_number = |char: &char| char.is_ascii_digit() || matches!(char, '+' | ' ' | '\u{a0}' | '.' | '-' | '(' | ')');
    number.chars().take_while(is_number).filter(|char| char.is_ascii_digit() || *char == '+').collect()
}

fn pair(values: &[&Json], holds: fn(&Json, &Json) -> bool) -> Json {
    let value = |index: usize| values.get(index).copied().unwrap_or(&Json::Null);
    Json::Bool(holds(value(0), value(1)))
}

/// Numbers by size, texts alphabetically (so ISO dates by time); a number in a text counts as a number beside one.
fn compare(a: &Json, b: &Json) -> Option<Ordering> {
    let number = |value: &Json| value.as_f64().or_else(|| value.as_str()?.parse().ok());
    match (a, b) {
        (Json::String(a), Json::String(b)) => Some(a.cmp(b)),
        _ => number(a)?.partial_cmp(&number(b)?),
    }
}

fn length(values: &[&Json]) -> Json {
    Json::from(match values.first() {
        Some(Json::Array(list)) => list.len(),
        Some(Json::Object(map)) => map.len(),
        Some(Json::String(text)) => text.chars().count(),
        _ => 0,
    })
}

struct ValueHelper(Value);

impl HelperDef for ValueHelper {
    fn call_inner<'reg: 'rc, 'rc>(
        &self,
        helper: &Helper<'rc>,
        _: &'reg Handlebars<'reg>,
        _: &'rc Context,
        _: &mut RenderContext<'reg, 'rc>,
    ) -> Result<ScopedJson<'rc>, RenderError> {
        let values: Vec<&Json> = helper.params().iter().map(handlebars::PathAndJson::value).collect();
        Ok(ScopedJson::Derived((self.0)(&values)))
    }
}

struct TextHelper(Change);

impl HelperDef for TextHelper {
    fn call_inner<'reg: 'rc, 'rc>(
        &self,
        helper: &Helper<'rc>,
        _: &'reg Handlebars<'reg>,
        _: &'rc Context,
        _: &mut RenderContext<'reg, 'rc>,
    ) -> Result<ScopedJson<'rc>, RenderError> {
        let Some(parameter) = helper.param(0).filter(|parameter| !parameter.is_value_missing()) else {
            let name = helper.param(0).and_then(|parameter| parameter.relative_path().cloned());
            return Err(RenderErrorReason::MissingVariable(name).into());
        };
        Ok(ScopedJson::Derived(Json::String((self.0)(&parameter.render()))))
    }
}

/// `{{#partial context name=value}}…{{/partial}}`: the content of a partial, with its context and parameters.
struct PartialScope;

impl HelperDef for PartialScope {
    fn call<'reg: 'rc, 'rc>(
        &self,
        helper: &Helper<'rc>,
        engine: &'reg Handlebars<'reg>,
        context: &'rc Context,
        rc: &mut RenderContext<'reg, 'rc>,
        out: &mut dyn Output,
    ) -> HelperResult {
        let Some(partial) = helper.template() else { return Ok(()) };
        let base = match helper.param(0) {
            Some(parameter) => parameter.value().clone(),
            None => rc.evaluate(context, "this")?.as_json().clone(),
        };
        let mut names = match base {
            Json::Object(names) => names,
            other => serde_json::Map::from_iter([("this".to_owned(), other)]),
        };
        for (name, value) in helper.hash() {
            // A fact that is missing here is missing in the partial, too.
            if value.is_value_missing() {
                names.remove(*name);
            } else {
                names.insert((*name).to_owned(), value.value().clone());
            }
        }
        let mut scope = BlockContext::new();
        if let Some(parent) = rc.block() {
            scope.local_variables_mut().clone_from(parent.local_variables());
        }
        scope.set_base_value(Json::Object(names));
        rc.push_block(scope);
        let result = partial.render(engine, context, rc, out);
        rc.pop_block();
        result
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rendered(template: &str) -> Result<String, String> {
        let facts = json!({
            "plan": "Swim Co.", "card": { "brand": "Visa" }, "attempt": 2, "on": "2026-06-14", "refund": false,
            "requests": [{ "who": "a" }, { "who": "b" }],
        });
        PLAIN.render_template(template, &facts).map_err(|error| error.reason().to_string())
    }

    #[test]
    fn comparisons_accept_missing_facts() {
        for (template, expected) in [
            ("{{#if (eq card.brand \"Visa\")}}a{{else}}b{{/if}}", "a"),
            ("{{#if (eq nothing \"Visa\")}}a{{else}}b{{/if}}", "b"),
            ("{{#if (eq refund false)}}a{{/if}}{{#if (eq nothing false)}}b{{/if}}", "a"),
            ("{{#if (gt attempt 1)}}a{{/if}}{{#if (lt attempt 2)}}b{{/if}}{{#if (gt nothing 1)}}c{{/if}}", "a"),
            ("{{#if (and (gte on \"2026-06-14\") (lte on \"2026-12-31\") plan)}}a{{/if}}", "a"),
            ("{{#if (or nothing refund)}}a{{else if (not nothing)}}b{{/if}}", "b"),
            ("{{#if (gt (len requests) 1)}}a{{/if}}{{len requests}}", "a2"),
        ] {
            assert_eq!(rendered(template).as_deref(), Ok(expected), "{template}");
        }
    }

    #[test]
    fn texts_are_changed_for_where_they_stand() {
        assert_eq!(rendered("{{without_full_stop plan}}.").as_deref(), Ok("Swim Co."));
        assert_eq!(rendered("{{url_encoded plan}}").as_deref(), Ok("Swim%20Co."));
        assert_eq!(rendered("{{phone_digits \"+1 (514) 555-0199\"}}").as_deref(), Ok("+15145550199"));
        for (number, digits) in [
            ("514 555-0199 poste 12", "5145550199"),
            ("+33 (0)1 23 45 67 89", "+33123456789"),
            ("514 555-0199 / 514 555-0198", "5145550199"),
        ] {
            assert_eq!(phone_digits(number), digits);
        }
        assert!(rendered("{{url_encoded nothing}}").unwrap_err().contains("nothing"));
    }

    #[test]
    fn partials_see_their_parameters_and_context() {
        for (template, expected) in [
            ("{{#partial label=\"a\" value=plan}}{{label}}: {{value}} {{attempt}}{{/partial}}", "a: Swim Co. 2"),
            ("{{#partial card x=attempt}}{{brand}} {{x}}{{/partial}}", "Visa 2"),
            ("{{#each requests}}{{#partial x=who}}{{@index}}{{x}}{{/partial}}{{/each}}", "0a1b"),
            ("{{#partial plan=nothing}}{{#if plan}}a{{else}}b{{/if}}{{/partial}}{{plan}}", "bSwim Co."),
        ] {
            assert_eq!(rendered(template).as_deref(), Ok(expected), "{template}");
        }
    }
}
