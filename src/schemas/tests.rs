//! `schemas/` is up to date, and its schemas agree with the program.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use jsonschema::Validator;
use serde_json::{Value, json};

use crate::jsonl::{ImportLine, lines};
use crate::store::outbox::entry::{Content, Lease, entries};
use offramp_domain::cloud_event::{CloudEvent, FailedEmail};
use offramp_domain::command::{Command, InvalidCommand};
use offramp_domain::dead_letter::DeadLetterReason;
use offramp_domain::ids::Target;
use offramp_domain::rejection::RejectionReason;
use offramp_domain::trace_context::TraceContext;
use offramp_domain::unit_of_work::{RejectedTask, Task, TaskOutcome, UnitOfWork};

use super::*;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas")
}

fn read(path: &str) -> Value {
    let text = fs::read_to_string(folder().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn validator(name: &str) -> Validator {
    let schema = all().into_iter().find(|file| file.name == name).unwrap_or_else(|| panic!("no schema {name}")).schema;
    jsonschema::draft202012::meta::validate(&schema).unwrap_or_else(|error| panic!("{name}: {error}"));
    jsonschema::draft202012::options().should_validate_formats(true).build(&schema).unwrap()
}

/// The example files of a folder, by name.
fn examples(kind: &str) -> BTreeMap<String, Value> {
    let files = fs::read_dir(folder().join("examples").join(kind)).unwrap();
    files
        .map(|file| {
            let name = file.unwrap().file_name().into_string().unwrap();
            let value = read(&format!("examples/{kind}/{name}"));
            (name.strip_suffix(".json").unwrap().to_owned(), value)
        })
        .collect()
}

#[track_caller]
fn assert_valid(name: &str, value: &Value) {
    let errors: Vec<String> =
        validator(name).iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{name}: {errors:#?}\n{value:#}");
}

fn parse(command: &Value) -> Result<Command, InvalidCommand> {
    Command::parse(command.to_string().as_bytes())
}

#[test]
fn schemas_are_up_to_date() {
    for file in all() {
        let text = fs::read_to_string(folder().join(&file.path)).unwrap_or_default();
        assert!(text == file.text(), "{} is not up to date: run `offramp schemas --write schemas`", file.path);
    }
}

#[test]
fn every_command_has_a_valid_example() {
    let examples = examples("commands");
    for (name, command) in &examples {
        let kind = command["type"].as_str().unwrap();
        assert!(name.starts_with(kind), "{name} holds a {kind}");
        assert_valid(&format!("commands/{kind}"), command);
        parse(command).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    for kind in CommandType::ALL {
        assert!(examples.contains_key(kind.as_str()), "no example of {kind}");
    }
}

/// Changes an example: sets the field at a JSON pointer, or removes it where the value is [`GONE`].
fn changed(example: &Value, pointer: &str, value: &Value) -> Value {
    let mut changed = example.clone();
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    let parent = changed.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    if value == GONE {
        assert!(parent.remove(field).is_some(), "{pointer} is not there");
    } else {
        parent.insert(field.to_owned(), value.clone());
    }
    changed
}

const GONE: &str = "\u{0}gone";

#[test]
fn commands_that_the_program_rejects_as_invalid_fail_validation() {
    let long = |length: usize| json!("x".repeat(length));
    let cancel = "subscription.cancellation";
    let account = "subscription.cancellation.account";
    let invoice = "subscription.cancellation.invoice";
    let request = "subscription.cancellation-request";
    let accept = "subscription.cancellation-confirmation";
    let decline = "subscription.cancellation-confirmation.decline";
    let payment = "payment.failure";
    let card = "card.expiry";
    let bad: Vec<(&str, &str, Value)> = vec![
        // The envelope.
        (cancel, "/specversion", json!("0.3")),
        (cancel, "/specversion", json!(GONE)),
        (cancel, "/id", json!("")),
        (cancel, "/id", long(129)),
        (cancel, "/id", json!(7)),
        (cancel, "/source", long(257)),
        (cancel, "/source", json!(GONE)),
        (cancel, "/type", json!("subscription.cancelation")),
        (cancel, "/type", json!(GONE)),
        (cancel, "/time", json!("yesterday")),
        (cancel, "/time", json!("2026-06-02")),
        (cancel, "/data", json!(GONE)),
        (cancel, "/data", json!("text")),
        // Misspelt, missing, wrong.
        (cancel, "/data/mouth", json!("2026-06")),
        (cancel, "/data/organization_id", json!(GONE)),
        (cancel, "/data/subscription_id", json!("")),
        (cancel, "/data/subscription_id", long(129)),
        (cancel, "/data/actor", json!(GONE)),
        (cancel, "/data/actor/role", json!("owner")),
        (cancel, "/data/actor/id", json!(GONE)),
        (cancel, "/data/actor/account_id", json!("acc-tremblay")),
        (cancel, "/data/actor/naem", json!("Marc")),
        (cancel, "/data/via", json!("phone")),
        (cancel, "/data/via", json!("invoice")),
        (cancel, "/data/via", json!("account")),
        (cancel, "/data/reason", long(2001)),
        (cancel, "/data/month", json!("2026-13")),
        (cancel, "/data/month", json!("2026-6")),
        (cancel, "/data/month", json!("2026-06-01")),
        (cancel, "/data/month", json!("1026-06")),
        (cancel, "/data/month", json!(6)),
        (cancel, "/data/invoice_id", json!("inv")),
        (cancel, "/data/refund", json!(true)),
        (cancel, "/data/message", long(2001)),
        (account, "/data/month", json!("2026-06")),
        (account, "/data/message", json!("Bye")),
        (account, "/data/actor/account_id", json!(GONE)),
        (account, "/data/actor/id", json!("staff-1")),
        (invoice, "/data/invoice_id", json!(GONE)),
        (invoice, "/data/month", json!("2026-06")),
        (invoice, "/data/refund", json!("yes")),
        (request, "/data/via", json!("account")),
        (request, "/data/reason", long(2001)),
        (accept, "/data/decision", json!("maybe")),
        (accept, "/data/decision", json!(GONE)),
        (accept, "/data/final_billing_date", json!("2026-06-31")),
        (accept, "/data/final_billing_date", json!("2026-06")),
        (accept, "/data/note", long(2001)),
        (decline, "/data/final_billing_date", json!("2026-06-30")),
        (payment, "/data/amount/value", json!(49.99)),
        (payment, "/data/amount/value", json!("49,99")),
        (payment, "/data/amount/value", json!("-1.00")),
        (payment, "/data/amount/currency", json!("cad")),
        (payment, "/data/amount/unit", json!("$")),
        (payment, "/data/card/last4", json!("424")),
        (payment, "/data/card/brand", json!("")),
        (payment, "/data/attempt", json!(0)),
        (payment, "/data/attempt", json!("1")),
        (payment, "/data/invoice_id", json!(GONE)),
        (payment, "/data/next_attempt_on", json!("05/06/2026")),
        (payment, "/data/payment_url", json!("http://pay.example/1")),
        (payment, "/data/payment_url", json!("pay.example/1")),
        (payment, "/data/payment_url", json!("")),
        (card, "/data/card/expires", json!("06/26")),
        (card, "/data/card/id", json!(GONE)),
        (card, "/data/subscription_id", json!("sub-1001")),
    ];
    let examples = examples("commands");
    for (name, pointer, value) in bad {
        let message = changed(&examples[name], pointer, &value);
        let kind = examples[name]["type"].as_str().unwrap();
        assert!(parse(&message).is_err(), "{name}: the program takes {pointer} = {value}");
        let is_valid = validator(&format!("commands/{kind}")).is_valid(&message);
        assert!(!is_valid, "{name}: the schema takes {pointer} = {value}");
    }
}

#[test]
fn commands_that_the_program_accepts_pass_validation() {
    let good: Vec<(&str, &str, Value)> = vec![
        ("subscription.cancellation", "/data/month", json!(GONE)),
        ("subscription.cancellation", "/data/month", json!(null)),
        ("subscription.cancellation", "/data/reason", json!("é".repeat(2000))),
        ("subscription.cancellation", "/data/actor/name", json!(GONE)),
        ("subscription.cancellation", "/subject", json!("another attribute")),
        ("subscription.cancellation.invoice", "/data/refund", json!(GONE)),
        ("subscription.cancellation-confirmation", "/data/final_billing_date", json!(GONE)),
        ("subscription.cancellation-confirmation", "/data/note", json!(GONE)),
        ("subscription.cancellation.invoice", "/data/message", json!("Désolés.")),
        ("payment.failure", "/data/next_attempt_on", json!(GONE)),
        ("payment.failure", "/data/failure_code", json!("do_not_honor")),
        ("payment.failure", "/data/failure_code", json!(51)),
        ("payment.failure", "/data/failure_code", json!(null)),
        ("payment.failure", "/data/payment_url", json!(null)),
        ("payment.failure", "/data/amount/value", json!("50")),
    ];
    let examples = examples("commands");
    for (name, pointer, value) in good {
        let message = changed(&examples[name], pointer, &value);
        parse(&message).unwrap_or_else(|error| panic!("{name} {pointer}: {error}"));
        assert_valid(&format!("commands/{}", message["type"].as_str().unwrap()), &message);
    }
}

/// The example documents: as they are read, and as the file has them.
fn example_documents() -> Vec<(ImportLine, Value)> {
    let text = fs::read_to_string(folder().join("examples/documents.jsonl")).unwrap();
    lines(text.as_bytes())
        .map(|line| {
            let line = line.unwrap();
            let mut json: Value = serde_json::from_slice(&line.bytes).unwrap();
            (ImportLine::parse(&line).unwrap(), json["document"].take())
        })
        .collect()
}

#[test]
fn example_documents_are_valid() {
    for (document, json) in example_documents() {
        assert_eq!(document.parsed().error(), None);
        assert_valid(&format!("documents/{}", document.collection.as_str()), &json);
    }
}

#[test]
fn documents_that_the_program_cannot_read_fail_validation() {
    let documents = example_documents();
    let cases = [
        ("sub-1001", "/billing/next_on", json!(GONE)),
        ("sub-1001", "/billing/next_on", json!(null)),
        ("sub-1001", "/billing/next_on", json!("15/06/2026")),
        ("sub-1001", "/billing/day", json!(32)),
        ("sub-1001", "/billing/mode", json!("weekly")),
        ("sub-1001", "/billing", json!(GONE)),
        ("sub-1001", "/participant", json!(GONE)),
        ("sub-1001", "/plan/name", json!(GONE)),
        ("sub-1001", "/status", json!("paused")),
        ("sub-1004", "/ends_on", json!(GONE)),
        ("sub-1004", "/ends_at", json!(GONE)),
        ("sub-1004", "/ends_at", json!("2026-06-01T04:00:00Z")),
        ("sub-2002", "/cancellation_request/requested_at", json!("2026-06-01")),
        ("org-magog", "/timezone", json!(GONE)),
        ("org-magog", "/client_cancellation", json!("sometimes")),
        ("org-magog", "/card_notice_days", json!([-1])),
        ("acc-tremblay", "/manager/email", json!(GONE)),
    ];
    for (id, pointer, value) in cases {
        let (document, json) = documents.iter().find(|(document, _)| document.id() == id).unwrap();
        let json = changed(json, pointer, &value);
        let document =
            ImportLine { collection: document.collection, document: serde_json::from_value(json.clone()).unwrap() };
        assert!(document.parsed().error().is_some(), "{id}: the program takes {pointer} = {value}");
        let name = format!("documents/{}", document.collection.as_str());
        assert!(!validator(&name).is_valid(&json), "{id}: the schema takes {pointer} = {value}");
    }
}

/// The events that the example commands, and time, cause on the example documents on 2 June 2026.
fn caused_events() -> BTreeMap<String, Value> {
    let now: DateTime<Utc> = "2026-06-02T14:40:00Z".parse().unwrap();
    let mut unit_of_work = UnitOfWork::default();
    for (document, _) in example_documents() {
        document.add_to(&mut unit_of_work);
    }
    let mut commands: Vec<Command> = examples("commands").values().map(|command| parse(command).unwrap()).collect();
    commands.sort_by_key(|command| command.time);
    let mut tasks: Vec<Task> = commands.iter().cloned().map(Task::Command).collect();
    tasks.push(Task::Lapse("sub-1004".try_into().unwrap()));
    for task in &tasks {
        assert_eq!(unit_of_work.apply(task, now), TaskOutcome::Applied, "{task:?}");
    }

    let lease = Lease { holder: uuid::Uuid::nil(), until: now };
    let mut events: BTreeMap<String, Value> = BTreeMap::new();
    let subscriptions = unit_of_work.changed_subscriptions().flat_map(|changed| changed.effects.clone());
    let accounts = unit_of_work.changed_accounts().flat_map(|changed| changed.effects.clone());
    for entry in subscriptions.chain(accounts).flat_map(|effects| entries(effects, &lease, "offramp", now)) {
        if let Content::Event(event) = entry.content {
            events.entry(event.kind.clone()).or_insert(serde_json::to_value(&event).unwrap());
        }
    }
    // A failed email is announced by its outbox. The store adds what owns the email, as the tests with MongoDB show.
    let changed = unit_of_work.changed_subscriptions().find(|changed| changed.after.id.as_str() == "sub-1001").unwrap();
    let effects = changed.effects.iter().find(|effects| !effects.notifications.is_empty()).unwrap();
    let email = &effects.notifications[0];
    let failed = FailedEmail {
        id: effects.ids.of_email(email),
        email,
        error: "smtp.example.org:587: RCPT: 550 5.1.1",
        target: Target::Subscription(&changed.after.id),
        command: effects.command.as_ref().map(|command| &command.key),
        trace: &effects.trace,
    };
    let mut event = CloudEvent::of_failed_email(&failed, "offramp", now);
    for (name, id) in [
        ("organization_id", changed.after.organization_id.as_str()),
        ("subscription_id", changed.after.id.as_str()),
        ("account_id", changed.after.account_id.as_str()),
    ] {
        event.data[name] = json!(id);
    }
    events.insert(event.kind.clone(), json!(event));
    // A refusal leaves by another way; here, a month whose invoice exists already.
    let command = commands.iter().find(|command| command.reference.key.id.as_str() == "c-0001").unwrap();
    let rejection = RejectionReason::MonthAlreadyInvoiced.because("The invoice of 2026-05 exists already.");
    let rejected = RejectedTask { rejection, account_id: Some("acc-tremblay".try_into().unwrap()) };
    let event = CloudEvent::of_rejection(command, &rejected, "offramp", now);
    events.insert(event.kind.clone(), json!(event));
    events
}

/// Replies to the example commands, as they are on the example documents on 2 June 2026.
fn caused_replies() -> BTreeMap<String, Value> {
    let now: DateTime<Utc> = "2026-06-02T14:40:00Z".parse().unwrap();
    let mut unit_of_work = UnitOfWork::default();
    for (document, _) in example_documents() {
        document.add_to(&mut unit_of_work);
    }
    let command = parse(&examples("commands")["subscription.cancellation"]).unwrap();
    assert_eq!(unit_of_work.apply(&Task::Command(command.clone()), now), TaskOutcome::Applied);
    let standing = unit_of_work.standing(command.target()).unwrap();
    let misspelt = changed(&examples("commands")["subscription.cancellation"], "/data/mnoth", &json!("2026-06"));
    let error = parse(&misspelt).unwrap_err();
    let (id, reason) = (uuid::Uuid::nil(), DeadLetterReason::from(&error));
    let replies = [
        CloudEvent::of_standing(reply::APPLIED, &command, standing, "offramp", now),
        CloudEvent::of_standing(reply::UNCHANGED, &command, standing, "offramp", now),
        CloudEvent::of_dead_letter(None, id, reason, error.to_string(), TraceContext::default(), "offramp", now),
    ];
    replies.into_iter().map(|reply| (reply.kind.clone(), json!(reply))).collect()
}

#[test]
fn every_event_and_reply_has_an_example_that_the_program_would_publish() {
    for (folder, caused) in [("events", caused_events()), ("replies", caused_replies())] {
        if std::env::var_os("UPDATE_EXAMPLES").is_some() {
            for (kind, message) in &caused {
                let path = self::folder().join(format!("examples/{folder}/{kind}.json"));
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, format!("{message:#}\n")).unwrap();
            }
        }
        let examples = examples(folder);
        for (kind, message) in &caused {
            assert_valid(&format!("{folder}/{kind}"), message);
            assert_eq!(examples.get(kind), Some(message), "examples/{folder}/{kind}.json should be\n{message:#}");
        }
        for file in all() {
            let Some(kind) = file.path.starts_with(&format!("{folder}/")).then(|| &file.name[folder.len() + 1..])
            else {
                continue;
            };
            assert_valid(&file.name, examples.get(kind).unwrap_or_else(|| panic!("no example of {kind}")));
            assert!(!file.text().contains("\"null\""), "{kind}: what a message does not have is absent");
        }
    }
}

#[test]
fn asyncapi_lists_every_command_and_event_and_its_references_resolve() {
    let text = fs::read_to_string(folder().join("asyncapi.yaml")).unwrap();
    let api: Value = serde_yaml_ng::from_str(&text).unwrap();
    let addresses: Vec<&str> =
        api["channels"].as_object().unwrap().values().filter_map(|channel| channel["address"].as_str()).collect();

    let mut references = Vec::new();
    references_in(&api, &mut references);
    for reference in &references {
        match reference.strip_prefix('#') {
            Some(pointer) => assert!(api.pointer(pointer).is_some(), "{reference} leads nowhere"),
            None => assert!(folder().join(reference).is_file(), "{reference} is no file"),
        }
    }
    for file in all().iter().filter(|file| !file.path.starts_with("documents/")) {
        let (folder, kind) = file.name.split_once('/').unwrap();
        assert!(addresses.contains(&kind) || folder == "replies", "asyncapi.yaml has no channel {kind}");
        assert!(references.contains(&file.path), "asyncapi.yaml does not use {}", file.path);
    }
    for kind in ["commands", "events", "replies"] {
        for name in examples(kind).keys() {
            let path = format!("examples/{kind}/{name}.json");
            assert!(references.contains(&path), "asyncapi.yaml does not show {path}");
        }
    }
}

/// Code generated from asyncapi.yaml has one class of each name.
#[test]
fn classes_of_the_same_name_are_the_same() {
    let mut classes = BTreeMap::new();
    for file in all().iter().filter(|file| !file.path.starts_with("documents/")) {
        collect_classes(&file.schema, &file.name, &mut classes);
    }
    assert!(classes.contains_key("SubscriptionCancellationDataPurchases"), "{:?}", classes.keys());
}

fn collect_classes(schema: &Value, file: &str, classes: &mut BTreeMap<String, (String, Value)>) {
    match schema {
        Value::Object(map) => {
            if let Some(Value::String(title)) = map.get("title") {
                let (other, known) = classes.entry(title.clone()).or_insert_with(|| (file.to_owned(), schema.clone()));
                assert!(known == schema, "{file} and {other} have different classes named {title}");
            }
            map.values().for_each(|part| collect_classes(part, file, classes));
        }
        Value::Array(items) => items.iter().for_each(|part| collect_classes(part, file, classes)),
        _ => {}
    }
}

fn references_in(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
            map.values().for_each(|value| references_in(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| references_in(value, found)),
        _ => {}
    }
}
