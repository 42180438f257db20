use super::super::design::{Design, Places};
use super::super::html::MjmlWriter;
use super::super::plain::PlainText;
use super::*;

fn design() -> Design {
    let part = |name: &str| format!("<{name}>{{{{> content}}}}</{name}>");
    Design {
        headline: part("h"),
        paragraph: part("p"),
        notice: part("n"),
        button: "<b to={{> address}}>{{> content}}</b>".to_owned(),
        facts: part("t"),
        fact: "<r>{{> label}}={{> content}}</r>".to_owned(),
        quote: "<q>{{> label}}={{> content}}</q>".to_owned(),
    }
}

fn hidden(design: &Design, tags: &mut Tags) -> Design {
    let mut hide = |text: &str| tags.hide_all(text, 0).unwrap().text;
    Design {
        headline: hide(&design.headline),
        paragraph: hide(&design.paragraph),
        notice: hide(&design.notice),
        button: hide(&design.button),
        facts: hide(&design.facts),
        fact: hide(&design.fact),
        quote: hide(&design.quote),
    }
}

fn blocks(body: &str, lines_before: usize, tags: &mut Tags) -> Result<Vec<Block>, Mistake> {
    let hidden = tags.hide_all(body, lines_before).map_err(|mut mistakes| mistakes.remove(0))?;
    parse(&hidden, 0, tags)
}

#[track_caller]
fn check(body: &str, text: &str, mjml: &str) {
    let mut tags = Tags::default();
    let places = Places::new(&mut tags);
    let design = hidden(&design(), &mut tags);
    let blocks = blocks(body, 0, &mut tags).unwrap();
    let plain = PlainText::of(&blocks);
    assert_eq!(tags.reveal(&plain.text), text, "text of {body:?}");
    assert_eq!(plain.text.lines().count(), plain.lines.len(), "lines of {body:?}");
    let written = MjmlWriter { design: &design, places: &places, tags: &tags }.mjml(&blocks);
    assert_eq!(tags.reveal(&written), mjml, "MJML of {body:?}");
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
        let found = blocks(body, 10, &mut Tags::default()).unwrap_err();
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
    check("[a]({{#if account_url}}{{account_url}}) b{{/if}}\n", 1, "in the sentence where it begins");
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
    check("{{#if b}}\nc\n", 1, "never closed");
    check("c\n{{/if}}\n", 2, "closes nothing");
    check("c {{#if b}} d\n{{/if}}\n", 1, "in the sentence where it begins");
}

#[test]
fn plain_lines_map_to_the_lines_of_the_file() {
    let mut tags = Tags::default();
    let body = "a\n\n[b](https://c.example)\n\n{{!--\n\n--}}\n{{#if d}}\n{{d}}\n{{/if}}\n";
    let blocks = blocks(body, 2, &mut tags).unwrap();
    let PlainText { text, lines } = PlainText::of(&blocks);
    let of = |wanted: &str| lines[text.lines().position(|line| tags.reveal(line) == wanted).unwrap()].line;
    assert_eq!((of("a"), of("https://c.example"), of("{{#if d}}"), of("{{d}}")), (3, 5, 10, 11));
}
