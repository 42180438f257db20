//! The outbox: emails are recorded with the decision, marked with few writes, and never sent again because a record cannot be
//! written; no email delays an event.

mod announcements;
mod claims;
mod marks;
mod records;

use bson::Document;
use chrono::Utc;
use offramp::clock;
use offramp::store::guarded_update::GuardedUpdate;
use offramp::store::outbox::entry::{Lease, LeasedEntry};
use offramp::store::{DocumentKeys, Store, updates};
use offramp::tls::Tls as StoreTls;
use offramp_domain::command::Command;
use offramp_domain::unit_of_work::{Task, TaskOutcome};
use uuid::Uuid;

use offramp_testkit::fixtures::{cancellation, identify};
use offramp_testkit::test_bed::TestBed;

async fn store(bed: &TestBed) -> Store {
    Store::open(&bed.mongodb_url, &StoreTls::default()).await.unwrap()
}

/// Cancels a subscription like a worker that crashes right after the commit. Its entries are due at `due`.
async fn cancel_and_leave(store: &Store, id: &str, due: chrono::DateTime<Utc>) -> Vec<LeasedEntry> {
    let command = Command::parse(cancellation(&format!("c-{id}"), id).to_string().as_bytes()).unwrap();
    let need = DocumentKeys {
        subscriptions: [id.try_into().unwrap()].into(),
        organizations: ["org".try_into().unwrap()].into(),
        ..DocumentKeys::default()
    };
    let mut read = store.load(&need).await.unwrap();
    let now = clock::now();
    assert_eq!(read.apply(&Task::Command(command), now), TaskOutcome::Applied);
    let lease = Lease { holder: Uuid::new_v4(), until: due };
    let updates = updates::build(read, &lease, "tests", &identify, now).unwrap();
    store.commit(&updates).await.unwrap();
    updates.into_iter().flat_map(GuardedUpdate::into_leased).collect()
}

fn records(document: &Document) -> Vec<&Document> {
    document.get_array("notifications").unwrap().iter().map(|record| record.as_document().unwrap()).collect()
}

fn entries(document: &Document) -> Vec<&Document> {
    document.get_array("outbox").unwrap().iter().map(|entry| entry.as_document().unwrap()).collect()
}
