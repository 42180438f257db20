//! The metrics and labels that an expression of Prometheus names. Not a parser: `promtool` checks the syntax (`make lint`).

/// A metric with the labels that select its series: `up{job="offramp"}`.
#[derive(Debug, PartialEq)]
pub struct Selector {
    pub metric: String,
    /// Label, and the value or regular expression beside it.
    pub matchers: Vec<(String, String)>,
}

/// Words that are followed by a list of labels.
const GROUPINGS: [&str; 5] = ["by", "without", "on", "ignoring", "group_left"];

/// What follows a function: its arguments, or how an aggregation groups.
const FUNCTION_ENDS: [&str; 3] = ["(", "by ", "without "];

const OPERATORS: [&str; 5] = ["and", "or", "unless", "bool", "offset"];

/// The metrics that an expression selects.
pub fn selectors(expression: &str) -> Vec<Selector> {
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some((word, after)) = next_word(rest) {
        rest = after.trim_start();
        if GROUPINGS.contains(&word) {
            rest = rest.split_once(')').map_or("", |(_, after)| after);
        } else if let Some(inside) = rest.strip_prefix('{') {
            let (matchers, after) = matchers(inside);
            found.push(Selector { metric: word.to_owned(), matchers });
            rest = after;
        } else if !FUNCTION_ENDS.iter().any(|end| rest.starts_with(end)) && !OPERATORS.contains(&word) {
            found.push(Selector { metric: word.to_owned(), matchers: Vec::new() });
        }
    }
    found
}

/// The labels that an expression groups by: of `sum by (job, le) (…)`, `job` and `le`.
pub fn grouping_labels(expression: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some((word, after)) = next_word(rest) {
        rest = after.trim_start();
        if GROUPINGS.contains(&word)
            && let Some((labels, _)) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')'))
        {
            found.extend(labels.split(',').map(|label| label.trim().to_owned()));
        }
    }
    found
}

/// The next name outside quotes, brackets and numbers, and what follows it.
fn next_word(text: &str) -> Option<(&str, &str)> {
    let mut rest = text;
    loop {
        let start = rest.find(|c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '"' | '['))?;
        rest = &rest[start..];
        let end_of_word = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        match rest.as_bytes()[0] {
            b'"' => rest = rest[1..].split_once('"')?.1,
            b'[' => rest = rest.split_once(']')?.1,
            // A number, with its unit.
            b'0'..=b'9' => rest = &rest[end_of_word..],
            _ => return Some(rest.split_at(end_of_word)),
        }
    }
}

/// `job=~"a|b", le="1"} > 0` → the matchers, and what follows the bracket.
fn matchers(inside: &str) -> (Vec<(String, String)>, &str) {
    let mut matchers = Vec::new();
    let mut rest = inside.trim_start();
    while !rest.starts_with('}') {
        let (label, after) = next_word(rest).unwrap_or_else(|| panic!("{inside}: a label is missing"));
        let (_, after) = after.split_once('"').unwrap_or_else(|| panic!("{inside}: a value is missing"));
        let (value, after) = after.split_once('"').unwrap_or_else(|| panic!("{inside}: a quote is missing"));
        matchers.push((label.to_owned(), value.to_owned()));
        rest = after.trim_start_matches([',', ' ', '\n']);
    }
    (matchers, &rest[1..])
}

#[test]
fn metrics_and_labels_are_found() {
    let expression = r#"sum by (job, lane) (rate(a_total{x="1", y!~"b{c}"}[5m])) / 2 > 0 unless max by (z) (b) == 1e3"#;
    let selector = |metric: &str, matchers: &[(&str, &str)]| Selector {
        metric: metric.to_owned(),
        matchers: matchers.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect(),
    };
    assert_eq!(selectors(expression), [selector("a_total", &[("x", "1"), ("y", "b{c}")]), selector("b", &[])]);
    assert_eq!(grouping_labels(expression), ["job", "lane", "z"]);
    assert_eq!(selectors("absent(up{job=~\".*x.*\"} == 1)"), [selector("up", &[("job", ".*x.*")])]);
}
