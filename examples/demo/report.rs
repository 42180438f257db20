//! The report: differences between results and story, and tables for people.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bson::Document;
use comfy_table::{Cell, Color, ContentArrangement, LineStyle, Table, TableStyle};
use serde_json::Value;

use crate::mailbox::Received;
use crate::servers::DeadLetter;
use crate::story::{Mail, Outcome, State, Step, Story};

/// The width of the tables when the output is not a terminal.
const WIDTH: u16 = 120;
/// Only a line under the header.
const STYLE: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

/// The observable results.
pub struct Observed {
    pub subscriptions: Vec<Document>,
    pub accounts: Vec<Document>,
    pub events: Vec<Value>,
    pub dead_letters: Vec<DeadLetter>,
    pub emails: Vec<Received>,
}

impl Observed {
    /// Differences between the results and the story.
    pub fn problems(&self, story: &Story) -> Vec<String> {
        let mut problems = Vec::new();
        for (index, step) in story.steps().enumerate() {
            let at = format!("step {}, \"{}\"", index + 1, step.title);
            let outcome = self.outcome(story, index, step);
            if outcome != step.expected.outcome {
                let (expected, found) = (one_line(&step.expected.outcome), one_line(&outcome));
                problems.push(format!("{at}: expected {expected}, found {found}"));
            }
            let change = self.change(step).filter(|_| outcome == Outcome::Applied);
            if change != step.expected.change {
                let [expected, found] = [step.expected.change.as_ref(), change.as_ref()]
                    .map(|state| state.map_or_else(|| "no change".to_owned(), one_line));
                problems.push(format!("{at}: expected {expected}, found {found}"));
            }
        }
        for passing in &story.passing {
            if let Some((id, expected)) = &passing.ended {
                let found = self.ended(id);
                if found.as_ref() != Some(expected) {
                    let found = found.as_ref().map_or_else(|| "nothing".to_owned(), one_line);
                    problems.push(format!("\"{}\": expected {}, found {found}", passing.title, one_line(expected)));
                }
            }
        }
        let expected: Vec<String> = expected_events(story).into_iter().collect();
        let found: Vec<String> = self.events_by_cause().into_iter().collect();
        problems.extend(differences("event", &expected, &found));
        let expected: Vec<String> = story.emails().iter().map(ToString::to_string).collect();
        let mut found: Vec<String> = self.emails.iter().map(|received| received.mail.to_string()).collect();
        found.sort();
        problems.extend(differences("email", &expected, &found));
        problems
    }

    /// The outcome of a step's command, derived from the results.
    fn outcome(&self, story: &Story, index: usize, step: &Step) -> Outcome {
        let id = step.id();
        if let Some(letter) = self.dead_letters.iter().find(|letter| id_of(letter).as_deref() == Some(id)) {
            return Outcome::DeadLetter(letter.reason.clone());
        }
        let is_refusal = |event: &&Value| event["type"] == "command.rejected" && event["causationid"] == id;
        if let Some(refusal) = self.events.iter().find(is_refusal) {
            return Outcome::Rejected(refusal["data"]["reason"].as_str().unwrap_or_default().to_owned());
        }
        let applied = self
            .document(step.document())
            .into_iter()
            .flat_map(|document| list(document, "applied"))
            .filter(|entry| text(entry, "id") == Some(id) && !entry.get_bool("unchanged").unwrap_or(false))
            .count();
        let told_before = story.steps().take(index).filter(|earlier| earlier.id() == id).count();
        if applied > told_before { Outcome::Applied } else { Outcome::Unchanged }
    }

    /// The change by a step's command, from `history`.
    fn change(&self, step: &Step) -> Option<State> {
        let document = self.document(step.document())?;
        let by_command = |entry: &&Document| {
            entry.get_document("command").is_ok_and(|command| text(command, "id") == Some(step.id()))
        };
        let entry = list(document, "history").find(by_command)?;
        Some(State { status: text(entry, "to")?.to_owned(), ends_on: date(entry, "ends_on") })
    }

    fn ended(&self, subscription: &str) -> Option<State> {
        let document = self.document(("subscriptions", subscription))?;
        Some(State { status: text(document, "status")?.to_owned(), ends_on: date(document, "ended_on") })
    }

    fn document(&self, (collection, id): (&str, &str)) -> Option<&Document> {
        let documents = if collection == "accounts" { &self.accounts } else { &self.subscriptions };
        documents.iter().find(|document| text(document, "_id") == Some(id))
    }

    /// The events with their causes, without duplicates.
    fn events_by_cause(&self) -> BTreeSet<String> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let cause = |event: &Value| {
            text(if event["causationid"].is_null() { &event["subject"] } else { &event["causationid"] })
        };
        self.events.iter().map(|event| event_of(&text(&event["type"]), &cause(event))).collect()
    }

    // ------------------------------------------------------------------------------------------------------- tables

    /// The story, step by step.
    pub fn story(&self, story: &Story) -> Table {
        let mut table = table(["", "What happened", "Outcome", "Status, last day", "Emails"]);
        let mut states: HashMap<&str, State> = HashMap::new();
        for (index, step) in story.steps().enumerate() {
            let outcome = self.outcome(story, index, step);
            let (collection, id) = step.document();
            if outcome == Outcome::Applied
                && let Some(change) = self.change(step)
            {
                states.insert(id, change);
            }
            let state = match (collection, states.get(id)) {
                ("accounts", _) => String::new(),
                (_, Some(state)) => state.to_string(),
                (_, None) => "active".to_owned(),
            };
            table.add_row([
                Cell::new(index + 1),
                Cell::new(format!("{}\n{} {id}", step.title, step.kind().trim_start_matches("subscription."))),
                Cell::new(&outcome).fg(color(&outcome)),
                Cell::new(state),
                Cell::new(self.emails_of(&step.expected.emails)),
            ]);
        }
        for passing in &story.passing {
            let (id, state) = passing.ended.as_ref().map_or((GAGNON_CARD, None), |(id, _)| (*id, self.ended(id)));
            table.add_row([
                Cell::new("–"),
                Cell::new(format!("{}\n{id}", passing.title)),
                Cell::new("scheduled change").fg(Color::Cyan),
                Cell::new(state.map(|state| state.to_string()).unwrap_or_default()),
                Cell::new(self.emails_of(&passing.emails)),
            ]);
        }
        table
    }

    /// The template, then the recipients with their languages.
    fn emails_of(&self, emails: &[Mail]) -> String {
        let mut lines: Vec<String> = emails.first().map(|mail| mail.template.clone()).into_iter().collect();
        for mail in emails {
            let received = self.emails.iter().find(|received| received.mail == *mail);
            let language = received.and_then(|received| received.language.split('-').next()).unwrap_or("missing");
            lines.push(format!("→ {} ({language})", mail.to));
        }
        lines.join("\n")
    }

    pub fn dead_letters(&self) -> Table {
        let mut table = table(["Command", "Reason", "Error"]);
        for letter in &self.dead_letters {
            table.add_row([&id_of(letter).unwrap_or_default(), &letter.reason, &letter.error]);
        }
        table
    }

    pub fn events(&self) -> Table {
        let mut about: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        for event in self.events.iter().filter(|event| seen.insert(event["id"].as_str())) {
            let of_type = about.entry(event["type"].as_str().unwrap_or_default()).or_default();
            of_type.push(
                event["data"]["reason"]
                    .as_str()
                    .filter(|_| event["type"] == "command.rejected")
                    .unwrap_or(event["subject"].as_str().unwrap_or_default()),
            );
        }
        let mut table = table(["Event", "", "About"]);
        for (kind, about) in about {
            table.add_row([kind.to_owned(), about.len().to_string(), about.join(", ")]);
        }
        table
    }
}

/// The card of the scheduled notice.
const GAGNON_CARD: &str = "card-5454";

fn table<const COLUMNS: usize>(header: [&str; COLUMNS]) -> Table {
    let mut table = Table::new();
    table.load_style(STYLE).set_content_arrangement(ContentArrangement::Dynamic).set_header(header);
    if !table.is_tty() {
        table.set_width(WIDTH);
    }
    table
}

fn color(outcome: &Outcome) -> Color {
    match outcome {
        Outcome::Applied => Color::Green,
        Outcome::Unchanged => Color::Cyan,
        Outcome::Rejected(_) => Color::Yellow,
        Outcome::DeadLetter(_) => Color::Red,
    }
}

fn expected_events(story: &Story) -> BTreeSet<String> {
    let of_steps = story.steps().filter_map(|step| Some(event_of(step.expected.event?, step.id())));
    let of_time = story.passing.iter().map(|passing| passing.event);
    of_steps.chain(of_time.map(|(kind, about)| event_of(kind, about))).collect()
}

fn event_of(kind: &str, cause: &str) -> String {
    format!("{kind} because of {cause}")
}

/// The differences in number between expected and found items.
fn differences(what: &str, expected: &[String], found: &[String]) -> Vec<String> {
    let count = |list: &[String], item: &String| list.iter().filter(|other| *other == item).count();
    let items: BTreeSet<&String> = expected.iter().chain(found).collect();
    let mut differences = Vec::new();
    for item in items {
        let (wanted, there) = (count(expected, item), count(found, item));
        if wanted != there {
            differences.push(format!("{what} {item}: expected {wanted}, found {there}"));
        }
    }
    differences
}

fn id_of(letter: &DeadLetter) -> Option<String> {
    let command: Value = serde_json::from_slice(&letter.body).ok()?;
    Some(command["id"].as_str()?.to_owned())
}

fn list<'a>(document: &'a Document, field: &str) -> impl Iterator<Item = &'a Document> {
    document.get_array(field).into_iter().flatten().filter_map(|entry| entry.as_document())
}

fn text<'a>(document: &'a Document, field: &str) -> Option<&'a str> {
    document.get_str(field).ok()
}

fn date(document: &Document, field: &str) -> Option<chrono::NaiveDate> {
    text(document, field)?.parse().ok()
}

fn one_line(shown: &impl ToString) -> String {
    shown.to_string().replace('\n', " ")
}
