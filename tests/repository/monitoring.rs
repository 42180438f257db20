//! Alerts and dashboard ask for metrics that the worker has, and lead to runbooks that exist. `make lint` runs `promtool` on the rules.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use offramp::metrics::{ALL, Kind, PROCESS};
use serde_json::Value;

use crate::promql::{grouping_labels, selectors};
use crate::{files, read, repository, yaml};

const RULES: &str = "deploy/prometheus/rules.yml";
const DASHBOARD: &str = "deploy/grafana/offramp.json";
const RUNBOOKS: &str = "docs/operate/alerts.md";
const PROMETHEUS_RULE: &str = "deploy/kubernetes/components/prometheus-rule/prometheus-rule.yaml";

/// Labels that Prometheus adds to every series.
const TARGET_LABELS: [&str; 2] = ["job", "instance"];

/// The labels and their known values of a series of Offramp, by its name. No values: any.
fn series() -> BTreeMap<String, BTreeMap<&'static str, BTreeSet<&'static str>>> {
    let mut series = BTreeMap::new();
    for metric in ALL {
        let values = (metric.label_values)().into_iter().map(BTreeSet::from_iter);
        let mut labels: BTreeMap<_, BTreeSet<_>> = metric.labels.iter().copied().zip(values).collect();
        assert_eq!(labels.len(), metric.labels.len(), "{}", metric.name);
        if metric.kind == Kind::Histogram {
            for suffix in ["_sum", "_count"] {
                series.insert(format!("{}{suffix}", metric.name), labels.clone());
            }
            labels.insert("le", BTreeSet::new());
            series.insert(format!("{}_bucket", metric.name), labels);
        } else {
            series.insert(metric.name.to_owned(), labels);
        }
    }
    series.extend(PROCESS.iter().map(|metric| (metric.name.to_owned(), BTreeMap::new())));
    series.insert("up".to_owned(), BTreeMap::new());
    series
}

/// What an expression asks for and no worker has.
fn unknown(expression: &str) -> Vec<String> {
    let series = series();
    let mut unknown = Vec::new();
    let mut labels: BTreeSet<&str> = TARGET_LABELS.into();
    let selectors = selectors(expression);
    for selector in &selectors {
        let Some(known) = series.get(&selector.metric) else {
            unknown.push(format!("metric {}", selector.metric));
            continue;
        };
        labels.extend(known.keys());
        for (label, value) in &selector.matchers {
            match known.get(label.as_str()) {
                Some(values) if !values.is_empty() => {
                    let is_unknown = |value: &&str| !value.contains('$') && !values.contains(value);
                    unknown.extend(value.split('|').filter(is_unknown).map(|value| format!("{label} {value}")));
                }
                Some(_) => {}
                None if TARGET_LABELS.contains(&label.as_str()) => {}
                None => unknown.push(format!("label {label} of {}", selector.metric)),
            }
        }
    }
    unknown.extend(grouping_labels(expression).into_iter().filter(|label| !labels.contains(label.as_str())));
    if selectors.is_empty() {
        unknown.push("no metric".to_owned());
    }
    unknown
}

/// Every alert's rule.
fn alerts() -> Vec<Value> {
    let rules = yaml(RULES).remove(0);
    let groups = rules["groups"].as_array().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} is missing in {value}"))
}

fn alert_names() -> BTreeSet<String> {
    alerts().iter().map(|alert| text(alert, "alert").to_owned()).collect()
}

#[test]
fn unknown_metrics_labels_and_values_are_detected() {
    assert_eq!(unknown(r#"sum by (job, kind) (offramp_outbox_entries{state="failed"}) > 0"#), [""; 0]);
    assert_eq!(unknown("offramp_outbox_entry"), ["metric offramp_outbox_entry"]);
    assert_eq!(unknown(r#"offramp_outbox_entries{kind="emails"}"#), ["kind emails"]);
    assert_eq!(unknown(r#"offramp_dead_letters{queue="a"}"#), ["label queue of offramp_dead_letters"]);
    assert_eq!(unknown("max by (lane) (offramp_dead_letters)"), ["lane"]);
}

#[test]
fn alerts_ask_for_what_workers_measure() {
    let wrong: Vec<_> = alerts()
        .iter()
        .flat_map(|alert| unknown(text(alert, "expr")).into_iter().map(|it| format!("{}: {it}", text(alert, "alert"))))
        .collect();
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn alerts_say_what_happened_and_lead_to_a_runbook() {
    for alert in alerts() {
        let (name, annotations) = (text(&alert, "alert"), &alert["annotations"]);
        assert!(["critical", "warning"].contains(&text(&alert["labels"], "severity")), "{name}: severity");
        let runbook = text(annotations, "runbook_url");
        assert!(runbook.ends_with(&format!("/{RUNBOOKS}#{}", name.to_lowercase())), "{name}: {runbook}");
        // A label that the expression drops would be empty.
        let grouped = grouping_labels(text(&alert, "expr"));
        let description = format!("{} {}", text(annotations, "summary"), text(annotations, "description"));
        for label in description.split("$labels.").skip(1).map(|rest| rest.split(' ').next().unwrap()) {
            let has = if grouped.is_empty() {
                selectors(text(&alert, "expr"))
                    .iter()
                    .any(|selector| TARGET_LABELS.contains(&label) || series()[&selector.metric].contains_key(label))
            } else {
                grouped.iter().any(|grouped| grouped == label)
            };
            assert!(has, "{name}: there is no label {label}");
        }
    }
}

#[test]
fn every_alert_has_a_runbook_and_a_test() {
    let runbooks: BTreeSet<String> = read(RUNBOOKS)
        .lines()
        .filter_map(|line| line.strip_prefix("## Offramp"))
        .map(|it| format!("Offramp{it}"))
        .collect();
    assert_eq!(alert_names(), runbooks);
    let tests = read("deploy/prometheus/rules_test.yml");
    for alert in alert_names() {
        let is_tested = |outcome: &str| {
            tests
                .split("- expr: ")
                .any(|test| test.contains(&format!("alertname=\"{alert}\"")) && test.contains(outcome))
        };
        assert!(is_tested("exp_samples: []") && is_tested("value: 1"), "{alert} is tested in one direction only");
    }
}

#[test]
fn the_generated_documentation_of_alerts_for_kubernetes_is_up_to_date() {
    let rules = read(RULES);
    let groups = &rules[rules.find("groups:").unwrap()..];
    let indented: String =
        groups.lines().map(|line| if line.is_empty() { "\n".to_owned() } else { format!("  {line}\n") }).collect();
    let resource = format!(
        "# Generated from {RULES} by `make docs`.\napiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  \
         name: offramp\n  labels:\n    app.kubernetes.io/name: offramp\nspec:\n{indented}"
    );
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(repository().join(PROMETHEUS_RULE), &resource).unwrap();
    }
    assert!(read(PROMETHEUS_RULE) == resource, "{PROMETHEUS_RULE} is out of date; run `make docs`");
}

fn dashboard() -> Value {
    serde_json::from_str(&read(DASHBOARD)).unwrap()
}

/// Every query of the dashboard, with the title of its panel.
fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            queries.push((text(panel, "title").to_owned(), text(target, "expr").to_owned()));
        }
    }
    for annotation in dashboard["annotations"]["list"].as_array().unwrap() {
        queries.extend(annotation["expr"].as_str().map(|it| (text(annotation, "name").to_owned(), it.to_owned())));
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if let Some((selector, label)) = variable["query"]["query"]
            .as_str()
            .and_then(|it| it.strip_prefix("label_values(")?.strip_suffix(')')?.rsplit_once(", "))
        {
            queries.push((text(variable, "name").to_owned(), format!("count by ({label}) ({selector})")));
        }
    }
    queries
}

#[test]
fn the_dashboard_asks_for_what_workers_measure() {
    let queries = queries(&dashboard());
    assert!(queries.len() > 40, "only {} queries were found", queries.len());
    let wrong: Vec<_> = queries
        .iter()
        .flat_map(|(title, query)| unknown(query).into_iter().map(move |it| format!("{title}: {it}")))
        .collect();
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn the_dashboard_shows_every_metric() {
    let queries: String = queries(&dashboard()).into_iter().map(|(_, query)| query).collect();
    let missing: Vec<_> = ALL.iter().map(|metric| metric.name).filter(|name| !queries.contains(name)).collect();
    assert_eq!(missing, [""; 0]);
}

#[test]
fn panels_are_explained_lead_to_runbooks_and_do_not_overlap() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().unwrap();
    let anchors: BTreeSet<String> = alert_names().iter().map(|name| name.to_lowercase()).collect();
    let (mut ids, mut taken) = (BTreeSet::new(), BTreeMap::new());
    for panel in panels {
        let title = text(panel, "title");
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id is taken");
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        for (x, y) in (place("x")..place("x") + place("w"))
            .flat_map(|x| (place("y")..place("y") + place("h")).map(move |y| (x, y)))
        {
            assert!(x < 24, "{title} is too wide");
            assert_eq!(taken.insert((x, y), title), None, "{title} overlaps");
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(text(panel, "description").ends_with('.'), "{title} is not explained");
        for link in panel["links"].as_array().into_iter().flatten() {
            let (page, anchor) = text(link, "url").split_once('#').unwrap_or((text(link, "url"), ""));
            assert!(page.ends_with(RUNBOOKS) && (anchor.is_empty() || anchors.contains(anchor)), "{title}: {link}");
        }
    }
}

#[test]
fn pages_name_existing_alerts() {
    let names = alert_names();
    let mut unknown = Vec::new();
    for page in files(&repository().join("docs"), "md") {
        let text = fs::read_to_string(&page).unwrap();
        for code in text.split('`').filter(|it| it.starts_with("Offramp") && it.chars().all(char::is_alphanumeric)) {
            if !names.contains(code) {
                unknown.push(format!(
                    "{}: {code}",
                    page.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap().display()
                ));
            }
        }
    }
    assert_eq!(unknown, [""; 0]);
}
