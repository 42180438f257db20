//! The sweep: what it reads, how workers share it, its indexes, its clock, and the documents that it can never process.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::process::Stdio;

use bson::{Bson, DateTime as Instant, Document, doc};
use chrono::{Datelike, Days, NaiveDate, TimeDelta, Utc};
use futures_util::TryStreamExt;
use offramp::store::Store;
use offramp::store::sweep::{PassedOver, Zones};
use offramp::tls::Tls;
use offramp_domain::account::NoticeKind;
use offramp_domain::billing::YearMonth;

use offramp_testkit::eventually;
use offramp_testkit::fixtures::{account, cancellation, organization, populate, subscription};
use offramp_testkit::proxy::Proxy;
use offramp_testkit::smtp_sink::SmtpSink;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::{WorkerProcess, get, offramp};

/// How large the database's own notes of what it does may become, in bytes.
const NOTES_BYTES_MAX: i64 = 64 * 1024 * 1024;

async fn store_of(bed: &TestBed) -> Store {
    let store = Store::open(&bed.mongodb_url, &Tls::default()).await.unwrap();
    store.create_indexes().await.unwrap();
    store
}

/// Has the database note what the program does, from now on.
async fn start_noting(bed: &TestBed) {
    bed.database.run_command(doc! { "profile": 0 }).await.unwrap();
    bed.collection("system.profile").drop().await.unwrap();
    let notes = doc! { "create": "system.profile", "capped": true, "size": NOTES_BYTES_MAX };
    bed.database.run_command(notes).await.unwrap();
    bed.database.run_command(doc! { "profile": 1, "filter": { "appName": "offramp" } }).await.unwrap();
}

/// What it has noted.
async fn notes(bed: &TestBed) -> Vec<Document> {
    bed.database.run_command(doc! { "profile": 0 }).await.unwrap();
    bed.collection("system.profile").find(doc! {}).await.unwrap().try_collect().await.unwrap()
}

/// How many documents were read.
fn documents_read(notes: &[Document]) -> i32 {
    notes.iter().filter_map(|note| note.get_i32("docsExamined").ok()).sum()
}

/// How many sweeps have ended: the last thing that each looks for are tombstones.
async fn sweeps(bed: &TestBed) -> u64 {
    bed.collection("system.profile").count_documents(doc! { "op": "remove" }).await.unwrap()
}

fn scheduled(id: &str, ends_at: chrono::DateTime<Utc>) -> Document {
    let mut document = subscription(id, "org", "acc");
    document.extend(doc! {
        "status": "cancellation_scheduled", "ends_on": ends_at.date_naive().to_string(), "ends_at": Instant::from(ends_at),
        "final_billing_on": "2020-01-15",
    });
    document
}

fn expiring(id: &str, day: impl Into<Bson>, expires_on: impl Into<Bson>) -> Document {
    let mut document = subscription(id, "org", "acc");
    document.get_document_mut("billing").unwrap().insert("day", day);
    document.insert("expires_on", expires_on);
    document
}

/// Whatever a sweep looks for is found with an index.
#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_reads_what_is_due_and_nothing_else() {
    let bed = TestBed::new("plans").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let with_notices = doc! { "$set": { "card_notice_days": [31], "timezone": "UTC" } };
    bed.collection("organizations").update_one(doc! { "_id": "org" }, with_notices).await.unwrap();
    let month = Utc::now().date_naive().format("%Y-%m").to_string();
    let card = doc! { "$set": { "cards": [{ "id": "card", "brand": "Visa", "last4": "4242", "expires": month }] } };
    bed.collection("accounts").update_one(doc! { "_id": "acc" }, card).await.unwrap();
    store_of(&bed).await;
    start_noting(&bed).await;

    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    eventually("the end of a sweep", || async { (sweeps(&bed).await > 0).then_some(()) }).await;
    eventually("the notice", || async { (sink.mails().len() == 2).then_some(()) }).await;
    assert!(worker.stop().await.success());

    let notes = notes(&bed).await;
    let plans: BTreeSet<&str> = notes.iter().filter_map(|note| note.get_str("planSummary").ok()).collect();
    assert!(!plans.iter().any(|plan| plan.contains("COLLSCAN")), "{plans:?}");
    for keys in [
        "{ status: 1, ends_at: 1, _id: 1 }",
        "{ status: 1, billing.day: 1, expires_on: 1, organization_id: 1, _id: 1 }",
        "{ status: 1, expires_on: 1 }",
        "{ organization_id: 1, cards.expires: 1, _id: 1 }",
        "{ _id: 1, timezone: 1 }",
        "{ ended_on: 1 }",
        "{ account_id: 1 }",
    ] {
        assert!(plans.iter().any(|plan| plan.contains(&format!("IXSCAN {keys}"))), "{keys}: {plans:?}");
    }
    assert!(!notes.iter().any(|note| note.get_bool("hasSortStage").unwrap_or(false)), "an index has the order already");
    // The server ends by itself what nobody waits for any more. What goes on with a cursor shares the time of its beginning.
    for note in &notes {
        let command = note.get_document("command").unwrap();
        let is_bounded = command.contains_key("maxTimeMS");
        let is_statement = command.contains_key("q");
        assert!(
            is_bounded || is_statement || command.contains_key("getMore") || command.contains_key("createIndexes"),
            "{command}"
        );
    }
    bed.remove().await;
}

/// Subscriptions between their expiry date and their natural end are not read, nor in the hours in which the day of their
/// natural end is over elsewhere and not yet where they are.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_over_yet_is_not_read() {
    let bed = TestBed::new("not-yet").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let honolulu = doc! { "$set": { "timezone": "Pacific/Honolulu" } };
    bed.collection("organizations").update_one(doc! { "_id": "org" }, honolulu).await.unwrap();
    let today = Utc::now().with_timezone(&chrono_tz::Pacific::Honolulu).date_naive();
    let ends_tonight = |index: usize| {
        let mut document =
            expiring(&format!("tonight-{index}"), (today + Days::new(1)).day(), (today - Days::new(3)).to_string());
        if index.is_multiple_of(2) {
            document.insert("status", "active");
        }
        document
    };
    let ends_later = |index: usize| {
        expiring(&format!("later-{index}"), (today + Days::new(5)).day(), (today - Days::new(3)).to_string())
    };
    let ended = |index: usize| {
        let mut document = expiring(&format!("ended-{index}"), 15, "2020-01-20");
        document.insert("status", ["expired", "cancelled", "removed"][index % 3]);
        document
    };
    let documents = (0..1_000).flat_map(|index| [ends_tonight(index), ends_later(index), ended(index)]);
    bed.collection("subscriptions").insert_many(documents).await.unwrap();
    store_of(&bed).await;
    start_noting(&bed).await;

    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    eventually("some sweeps", || async { (sweeps(&bed).await >= 3).then_some(()) }).await;
    assert!(worker.stop().await.success());
    let sweeps = i32::try_from(sweeps(&bed).await).unwrap();
    let notes = notes(&bed).await;
    let read = documents_read(&notes) / sweeps;
    println!("{read} documents read by each sweep, {sweeps} sweeps");
    assert!(read <= 100, "{read} documents read by each sweep");
    bed.remove().await;
}

/// Each billing day, each number type that a driver writes, and every expiry date of some weeks; held against a walk through
/// the calendar.
#[tokio::test(flavor = "multi_thread")]
async fn natural_ends_are_found_on_their_day() {
    let bed = TestBed::new("ends").await;
    populate(&bed).await;
    let store = store_of(&bed).await;
    let days_in = |date: NaiveDate| (28..=31).rev().find(|day| date.with_day(*day).is_some()).unwrap();
    let is_billing_date = |date: NaiveDate, day: u32| date.day() == day.min(days_in(date));
    for (today, zone) in [("2027-02-28", "UTC"), ("2027-03-01", "America/Toronto"), ("2028-02-29", "Pacific/Auckland")]
    {
        let zoned = doc! { "$set": { "timezone": zone } };
        bed.collection("organizations").update_one(doc! { "_id": "org" }, zoned).await.unwrap();
        bed.collection("subscriptions").delete_many(doc! {}).await.unwrap();
        let today: NaiveDate = today.parse().unwrap();
        let mut expected = BTreeSet::new();
        let mut documents = Vec::new();
        for day in 1..=31_u32 {
            for offset in -35..=2_i64 {
                let expires_on = today + TimeDelta::days(offset);
                let id = format!("{day}/{expires_on}");
                let number = match offset.rem_euclid(3) {
                    0 => Bson::Int32(day.cast_signed()),
                    1 => Bson::Int64(day.into()),
                    _ => Bson::Double(day.into()),
                };
                documents.push(expiring(&id, number, expires_on.to_string()));
                let mut dates = expires_on.iter_days().skip(1).take_while(|date| *date <= today);
                if dates.any(|date| is_billing_date(date, day)) {
                    expected.insert(id);
                }
            }
        }
        bed.collection("subscriptions").insert_many(documents).await.unwrap();
        // Noon there, on that day.
        let zone: chrono_tz::Tz = zone.parse().unwrap();
        let now = today.and_hms_opt(12, 0, 0).unwrap().and_local_timezone(zone).unwrap().to_utc();
        let mut passed = PassedOver::default();
        let window = store.natural_ends(now, &mut passed, &mut Zones::default()).await.unwrap();
        let found: BTreeSet<String> = window.due.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected, "{today}");
        for id in window.due {
            passed.add(id);
        }
        let others = store.natural_ends(now, &mut passed, &mut Zones::default()).await.unwrap();
        assert!(others.due.is_empty());
    }
    bed.remove().await;
}

/// Accounts are paged through by an index, and none is read twice.
#[tokio::test(flavor = "multi_thread")]
async fn pages_of_cards_read_each_account_once() {
    const ACCOUNTS: usize = 300;
    let bed = TestBed::new("card-pages").await;
    bed.collection("organizations").insert_one(organization("org")).await.unwrap();
    let documents = (0..ACCOUNTS).map(|index| {
        let mut document = account(&format!("acc-{index:03}"), "org");
        let card = |id: &str, expires: &str| doc! { "id": id, "brand": "Visa", "last4": "4242", "expires": expires };
        document.insert("cards", [card("one", "2030-06"), card("two", "2030-06"), card("three", "2031-01")]);
        document
    });
    bed.collection("accounts").insert_many(documents).await.unwrap();
    let live = (0..ACCOUNTS).map(|index| subscription(&format!("sub-{index}"), "org", &format!("acc-{index:03}")));
    bed.collection("subscriptions").insert_many(live).await.unwrap();
    let store = store_of(&bed).await;
    start_noting(&bed).await;
    let organization = "org".try_into().unwrap();
    let month: YearMonth = "2030-06".parse().unwrap();
    let (mut after, mut cards): (Option<String>, usize) = (None, 0);
    loop {
        let kind = NoticeKind::Days(30);
        let page = store.cards_without_notice(&organization, month, kind, after.as_deref(), 50).await.unwrap();
        cards += page.due.len();
        match page.last {
            Some(last) => after = Some(last),
            None => break,
        }
    }
    assert_eq!(cards, 2 * ACCOUNTS);
    let notes: Vec<Document> =
        notes(&bed).await.into_iter().filter(|note| note.get_str("ns").unwrap().ends_with(".accounts")).collect();
    assert!(notes.len() >= ACCOUNTS / 50);
    assert!(notes.iter().all(|note| !note.get_bool("hasSortStage").unwrap_or(false)));
    let read = usize::try_from(documents_read(&notes)).unwrap();
    assert!(read <= ACCOUNTS + notes.len(), "{read} accounts read");
    bed.remove().await;
}

/// Ends many subscriptions with some workers, and returns how many documents were read for it.
async fn documents_read_by(workers: usize, ends: usize) -> i32 {
    let bed = TestBed::new("shared").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    store_of(&bed).await;
    let mut running = Vec::new();
    for _ in 0..workers {
        running.push(WorkerProcess::start(&bed, &sink.url()).await);
    }
    let subscriptions = bed.collection("subscriptions");
    // Due all at once, once all are there.
    let midnight = Utc::now() + TimeDelta::seconds(5);
    subscriptions.insert_many((0..ends).map(|index| scheduled(&format!("sub-{index}"), midnight))).await.unwrap();
    start_noting(&bed).await;
    eventually("every end", || async {
        let count = subscriptions.count_documents(doc! { "status": "cancelled" }).await.unwrap();
        (count == ends as u64).then_some(())
    })
    .await;
    bed.outboxes_empty().await;
    for worker in running {
        assert!(worker.stop().await.success());
    }
    let notes = notes(&bed).await;
    let of_subscriptions: Vec<Document> =
        notes.into_iter().filter(|note| note.get_str("ns").is_ok_and(|ns| ns.ends_with(".subscriptions"))).collect();
    let twice = subscriptions.count_documents(doc! { "history.1": { "$exists": true } }).await.unwrap();
    assert_eq!(twice, 0, "each ends once");
    bed.remove().await;
    documents_read(&of_subscriptions)
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_share_what_is_due() {
    const ENDS: usize = 3_000;
    let one = documents_read_by(1, ENDS).await;
    let four = documents_read_by(4, ENDS).await;
    println!("{ENDS} ends: {one} documents read by one worker, {four} by four");
    assert!(2 * four <= 3 * one, "{one} documents read by one worker, {four} by four");
}

/// However many due subscriptions cannot be ended, each gets its turn in one sweep, and few ids are in memory.
#[tokio::test(flavor = "multi_thread")]
async fn those_behind_many_that_cannot_be_ended_get_their_turn() {
    const STUCK: usize = 40_000;
    const NAMELESS: usize = 3;
    // Two windows before the first entries are tried first, and twice the quarter of what is read at a time: less than two windows.
    const IDS_MAX: usize = 3 * 8_192;
    let bed = TestBed::new("stuck").await;
    let store = store_of(&bed).await;
    let now = Utc::now();
    let document = |id: Bson, index: usize| {
        let ends_at = now - TimeDelta::seconds(60 + i64::try_from(index % 1_000).unwrap());
        doc! { "_id": id, "status": "cancellation_scheduled", "ends_at": Instant::from(ends_at) }
    };
    let stuck = (0..STUCK).map(|index| document(format!("sub-{index:05}").into(), index));
    let nameless = (0..NAMELESS).map(|index| document(bson::oid::ObjectId::new().into(), 400 * index));
    bed.collection("subscriptions").insert_many(stuck.chain(nameless)).await.unwrap();

    let mut passed = PassedOver::default();
    let (mut tried, mut unworkable, mut ids_max) = (HashSet::new(), HashSet::new(), 0);
    loop {
        let window = store.scheduled_ends(now, &mut passed).await.unwrap();
        unworkable.extend(window.unworkable.into_iter().map(|document| document.id));
        if window.due.is_empty() {
            break;
        }
        // Part of the window, from a random place where a sweep may choose.
        let mut due = window.due;
        if !passed.is_full() {
            let begin = fastrand::usize(..due.len());
            due.rotate_left(begin);
        }
        due.truncate(due.len().div_ceil(4));
        for id in due {
            assert!(tried.insert(id.clone()), "{id} was tried before");
            passed.add(id);
        }
        ids_max = ids_max.max(passed.ids_count());
    }
    assert_eq!(tried.len(), STUCK);
    assert_eq!(unworkable.len(), NAMELESS);
    assert_eq!(passed.ids_count(), 0, "all of them are passed over by number");
    println!("at most {ids_max} of {STUCK} ids in memory");
    assert!(ids_max <= IDS_MAX, "{ids_max}");
    bed.remove().await;
}

/// The value of `offramp_unworkable_documents` for a collection.
async fn unworkable(worker: &WorkerProcess, collection: &str) -> Option<u64> {
    let metrics = get(worker.port(), "/metrics").await?;
    let name = format!("offramp_unworkable_documents{{collection=\"{collection}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok())
}

/// A worker that logs to a file.
async fn logging(bed: &TestBed, sink: &SmtpSink, log: &Path) -> WorkerProcess {
    let file = std::fs::File::create(log).unwrap();
    WorkerProcess::spawn(bed, &sink.url(), &[("OFFRAMP_HOLD_SECONDS", "1")], Stdio::from(file)).ready().await
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_cannot_be_processed_are_counted_and_reported_once() {
    let bed = TestBed::new("unworkable").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let past = Utc::now() - TimeDelta::days(1);
    let mut documents = Vec::new();
    let mut expected = Vec::new();
    let mut add = |mut document: Document, change: Document, sentence: &'static str| {
        expected.push((document.get_str("_id").unwrap().to_owned(), sentence));
        document.extend(change);
        documents.push(document);
    };
    add(scheduled("ends-text", past), doc! { "ends_at": "2026-01-01" }, "ends_at is text, where a date belongs");
    add(scheduled("ends-null", past), doc! { "ends_at": Bson::Null }, "ends_at is null, where a date belongs");
    add(scheduled("ends-number", past), doc! { "ends_at": 5 }, "ends_at is a number, where a date belongs");
    let expires = "expires_on is a date, where text such as";
    add(expiring("expires-date", 15, Instant::from(past)), doc! {}, expires);
    add(expiring("expires-later", 15, Instant::MAX), doc! { "status": "active" }, expires);
    add(expiring("expires-never", 15, "never"), doc! {}, "expires_on is not a date such as");
    add(expiring("expires-slashes", 15, "01/02/2026"), doc! {}, "expires_on");
    add(expiring("expires-empty", 15, ""), doc! {}, "expires_on is not a date such as");
    add(expiring("expires-reversed", 15, "30/06/2026"), doc! {}, "expires_on is not a date such as");
    add(expiring("expires-time", 15, "2199-06-30T00:00:00Z"), doc! {}, "expires_on is not a date such as");
    add(expiring("expires-line", 15, "2199-06-30\n"), doc! { "status": "active" }, "expires_on is not a date such as");
    add(expiring("expires-month", 15, "2199-13-01"), doc! {}, "expires_on is not a date such as");
    add(expiring("expires-day", 15, "2199-06-31"), doc! {}, "expires_on is not a date such as");
    add(expiring("day-text", "15", "2026-01-01"), doc! {}, "billing.day is text, where a whole number");
    add(expiring("day-large", 32, "2026-01-01"), doc! {}, "billing.day is not a whole number");
    add(expiring("day-half", 1.5, "2199-01-01"), doc! {}, "billing.day is not a whole number");
    add(expiring("day-null", Bson::Null, "2026-01-01"), doc! {}, "billing.day is null, where a whole number");
    add(
        expiring("no-organization", 15, "2020-01-01"),
        doc! { "organization_id": "gone" },
        "organizations gone: does not exist",
    );
    add(scheduled("bad-activities", past), doc! { "activities": 5 }, "activities: expected a list, found an integer");
    let in_order: Vec<Document> = vec![
        expiring("fine", 15, "2199-01-01"),
        expiring("fine-31", 31, "2199-12-31"),
        expiring("fine-leap", 31, "2204-02-29"),
        expiring("fine-never", 31, "9999-12-31"),
        {
            let mut ended = expiring("ended-text", 15, "30/06/2026");
            ended.insert("status", "cancelled");
            ended
        },
        expiring("null", 15, Bson::Null),
        expiring("over", 15, "2020-01-01"),
        scheduled("scheduled", Utc::now() + TimeDelta::days(30)),
        {
            let mut ended = expiring("ended", "x", Instant::from(past));
            ended.insert("status", "expired");
            ended
        },
    ];
    let subscriptions = bed.collection("subscriptions");
    subscriptions.insert_many(documents.iter().chain(&in_order)).await.unwrap();
    let mut bad_days = organization("bad-days");
    bad_days.insert("card_notice_days", "30");
    let mut nameless = organization("nameless");
    nameless.extend(doc! { "_id": bson::oid::ObjectId::new(), "card_notice_days": [30] });
    bed.collection("organizations").insert_many([bad_days, nameless]).await.unwrap();

    store_of(&bed).await;
    start_noting(&bed).await;
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let worker = logging(&bed, &sink, &log).await;
    assert!(unworkable(&worker, "subscriptions").await.is_some(), "there from the start");
    assert_eq!(unworkable(&worker, "accounts").await, Some(0));
    let count = expected.len() as u64;
    eventually("the count", || async { (unworkable(&worker, "subscriptions").await == Some(count)).then_some(()) })
        .await;
    eventually("organizations", || async { (unworkable(&worker, "organizations").await == Some(2)).then_some(()) })
        .await;
    let so_far = sweeps(&bed).await;
    eventually("two more sweeps", || async { (sweeps(&bed).await >= so_far + 2).then_some(()) }).await;

    // Corrected, it is processed, and not counted any more.
    let corrected = doc! { "$set": { "expires_on": "2020-01-01" } };
    subscriptions.update_one(doc! { "_id": "expires-date" }, corrected).await.unwrap();
    eventually("one fewer", || async { (unworkable(&worker, "subscriptions").await == Some(count - 1)).then_some(()) })
        .await;
    assert_eq!(bed.document("subscriptions", "expires-date").await.unwrap().get_str("status").unwrap(), "expired");
    assert_eq!(bed.document("subscriptions", "over").await.unwrap().get_str("status").unwrap(), "expired");
    assert!(worker.stop().await.success());

    let log = std::fs::read_to_string(log).unwrap();
    let reports: Vec<&str> = log.lines().filter(|line| line.contains("cannot be processed")).collect();
    for (id, sentence) in &expected {
        let of_it: Vec<&&str> = reports.iter().filter(|line| line.contains(id)).collect();
        assert_eq!(of_it.len(), 1, "{id}: {reports:#?}");
        assert!(of_it[0].contains(sentence) && of_it[0].contains("ERROR"), "{sentence}: {}", of_it[0]);
    }
    assert_eq!(reports.len(), expected.len() + 2, "{reports:#?}");
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tombstones_are_deleted_when_all_is_sent_or_given_up() {
    let bed = TestBed::new("tombstones").await;
    populate(&bed).await;
    let store = store_of(&bed).await;
    let days_ago = |days: i64| Instant::from(Utc::now() - TimeDelta::days(days));
    let tombstone = |id: &str, change: Document| {
        let mut document = doc! {
            "_id": id, "organization_id": "org", "account_id": "acc", "status": "removed", "ended_on": "2020-01-01",
            "version": 3, "history": [], "outbox": [], "applied": [{ "source": "s", "id": "c", "at": days_ago(90) }],
        };
        document.extend(change);
        document
    };
    let documents = [
        tombstone("old", doc! {}),
        tombstone("given-up", doc! { "outbox": [{ "id": "e", "failed_at": days_ago(31) }] }),
        tombstone("sent", doc! { "notifications": [{ "id": "n", "at": days_ago(90), "sent_at": days_ago(31) }] }),
        tombstone("keep-applied", doc! { "applied": [{ "source": "s", "id": "c", "at": days_ago(29) }] }),
        tombstone("keep-waiting", doc! { "outbox": [{ "id": "e", "due": days_ago(1) }] }),
        tombstone(
            "keep-given-up",
            doc! { "outbox": [{ "id": "e", "failed_at": days_ago(31) }, { "id": "f", "failed_at": days_ago(29) }] },
        ),
        tombstone("keep-sent", doc! { "notifications": [{ "id": "n", "at": days_ago(90), "sent_at": days_ago(29) }] }),
        tombstone(
            "keep-failed",
            doc! { "notifications": [{ "id": "n", "at": days_ago(90), "failed_at": days_ago(29) }] },
        ),
    ];
    bed.collection("subscriptions").insert_many(&documents).await.unwrap();
    assert_eq!(store.delete_tombstones(Utc::now()).await.unwrap(), 3);
    let left: Vec<Document> =
        bed.collection("subscriptions").find(doc! { "status": "removed" }).await.unwrap().try_collect().await.unwrap();
    assert!(left.iter().all(|document| document.get_str("_id").unwrap().starts_with("keep-")), "{left:?}");
    bed.remove().await;
}

/// The names of the indexes of a collection.
async fn index_names(bed: &TestBed, collection: &str) -> Vec<String> {
    bed.collection(collection).list_index_names().await.unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_builds_missing_indexes_and_asks_for_none_that_is_there() {
    let bed = TestBed::new("indexes").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    bed.collection("subscriptions").insert_one(scheduled("over", Utc::now() - TimeDelta::hours(1))).await.unwrap();
    start_noting(&bed).await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    status_becomes(&bed, "over", "cancelled").await;
    // The last of them.
    index_appears(&bed, "organizations", "offramp_card_organizations").await;
    assert!(worker.stop().await.success());
    // One member that hangs must not hold up a build; a standalone server builds alone, and refuses to be told.
    let hello = bed.database.run_command(doc! { "hello": 1 }).await.unwrap();
    let expected = hello.contains_key("setName").then_some("majority");
    let builds = builds(&notes(&bed).await);
    assert!(!builds.is_empty());
    for build in &builds {
        assert_eq!(build.get_str("commitQuorum").ok(), expected, "{build}");
    }
    assert!(index_names(&bed, "subscriptions").await.contains(&"offramp_natural_ends".to_owned()));

    start_noting(&bed).await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    eventually("a sweep", || async { (sweeps(&bed).await > 0).then_some(()) }).await;
    assert!(worker.stop().await.success());
    assert!(self::builds(&notes(&bed).await).is_empty());
    bed.remove().await;
}

/// The commands that build indexes.
fn builds(notes: &[Document]) -> Vec<Document> {
    let commands = notes.iter().filter_map(|note| note.get_document("command").ok());
    commands.filter(|command| command.contains_key("createIndexes")).cloned().collect()
}

async fn status_becomes(bed: &TestBed, id: &str, status: &str) {
    eventually(&format!("{id} to be {status}"), || async {
        let document = bed.document("subscriptions", id).await.unwrap();
        document.get_str("status").is_ok_and(|now| now == status).then_some(())
    })
    .await;
}

async fn index_appears(bed: &TestBed, collection: &str, name: &str) {
    eventually(&format!("the index {name}"), || async {
        index_names(bed, collection).await.iter().any(|other| other == name).then_some(())
    })
    .await;
}

/// A build takes minutes where a collection is large. Here it takes as long as the test wants.
#[tokio::test(flavor = "multi_thread")]
async fn messages_are_consumed_while_an_index_is_built() {
    let mut bed = TestBed::new("building").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    bed.collection("subscriptions").insert_one(scheduled("over", Utc::now() - TimeDelta::hours(1))).await.unwrap();
    let (proxy, url) = Proxy::in_front_of_mongodb(&bed.mongodb_url).await;
    bed.mongodb_url = url;
    proxy.hold_requests("createIndexes");

    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    bed.command(&cancellation("c-1", "sub")).await;
    status_becomes(&bed, "sub", "cancellation_scheduled").await;
    bed.outboxes_empty().await;
    assert_eq!(sink.mails().len(), 1);
    let ready = worker.readyz().await.unwrap();
    assert!(ready.starts_with("HTTP/1.1 200"), "a worker that builds indexes works: {ready}");
    assert_eq!(index_names(&bed, "subscriptions").await, ["_id_"]);
    let over = bed.document("subscriptions", "over").await.unwrap();
    assert_eq!(over.get_str("status").unwrap(), "cancellation_scheduled", "this needs an index");

    proxy.hold_requests("");
    status_becomes(&bed, "over", "cancelled").await;
    assert!(worker.stop().await.success());
    bed.remove().await;
}

/// What needs that index waits for it; everything else goes on. The worker says so until the index exists, also while it tries
/// again.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_cannot_be_built_stops_only_what_needs_it() {
    let bed = TestBed::new("no-index").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let past = Utc::now() - TimeDelta::hours(1);
    // MongoDB cannot index two lists of one document in one index.
    let mut lists = scheduled("lists", past);
    lists.extend(doc! { "status": ["cancellation_scheduled"], "ends_at": [Instant::from(past)] });
    let documents = [lists, scheduled("scheduled", past), expiring("natural", 15, "2020-01-01")];
    bed.collection("subscriptions").insert_many(documents).await.unwrap();
    start_noting(&bed).await;

    let worker = WorkerProcess::spawn(&bed, &sink.url(), &[], Stdio::null());
    eventually("a worker that is not ready", || async {
        worker.readyz().await.filter(|answer| answer.contains("offramp_scheduled_ends: CannotIndexParallelArrays"))
    })
    .await;
    status_becomes(&bed, "natural", "expired").await;
    bed.command(&cancellation("c-1", "sub")).await;
    status_becomes(&bed, "sub", "cancellation_scheduled").await;
    let tries = doc! { "command.createIndexes": "subscriptions", "command.indexes.0.name": "offramp_scheduled_ends" };
    eventually("three tries", || async {
        let answer = worker.readyz().await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("offramp_scheduled_ends"), "{answer}");
        let count = bed.collection("system.profile").count_documents(tries.clone()).await.unwrap();
        (count >= 3).then_some(())
    })
    .await;
    let waiting = bed.document("subscriptions", "scheduled").await.unwrap();
    assert_eq!(waiting.get_str("status").unwrap(), "cancellation_scheduled");

    bed.collection("subscriptions").delete_one(doc! { "_id": "lists" }).await.unwrap();
    status_becomes(&bed, "scheduled", "cancelled").await;
    let worker = worker.ready().await;
    assert!(worker.stop().await.success());
    bed.remove().await;
}

/// Somebody drops indexes while a worker runs: it builds them again, and goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_index_is_built_again() {
    let bed = TestBed::new("dropped").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    index_appears(&bed, "organizations", "offramp_card_organizations").await;
    for (collection, name) in [
        ("subscriptions", "offramp_scheduled_ends"),
        ("subscriptions", "offramp_natural_ends"),
        ("subscriptions", "offramp_removed"),
        ("subscriptions", "offramp_due"),
        ("accounts", "offramp_due"),
        ("organizations", "offramp_card_organizations"),
    ] {
        bed.database.run_command(doc! { "dropIndexes": collection, "index": name }).await.unwrap();
        index_appears(&bed, collection, name).await;
    }
    let past = Utc::now() - TimeDelta::hours(1);
    let documents = [scheduled("scheduled", past), expiring("natural", 15, "2020-01-01")];
    bed.collection("subscriptions").insert_many(documents).await.unwrap();
    status_becomes(&bed, "scheduled", "cancelled").await;
    status_becomes(&bed, "natural", "expired").await;
    let worker = worker.ready().await;
    assert!(worker.stop().await.success());
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn init_drops_indexes_of_earlier_versions_when_it_is_told_to() {
    let bed = TestBed::new("upgrade").await;
    populate(&bed).await;
    let old = doc! { "createIndexes": "subscriptions", "indexes": [
        { "name": "offramp_expiring", "key": { "status": 1, "expires_on": 1, "_id": 1 },
          "partialFilterExpression": { "expires_on": { "$gt": "" } } },
        { "name": "offramp_scheduled", "key": { "ends_at": 1 },
          "partialFilterExpression": { "status": "cancellation_scheduled" } },
    ] };
    bed.database.run_command(old).await.unwrap();
    let output = tokio::task::spawn_blocking({
        let mut command = offramp(&bed);
        move || command.arg("init").output().unwrap()
    })
    .await
    .unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{told}");
    assert!(told.contains("MongoDB: created index subscriptions.offramp_natural_ends in "), "{told}");
    // Workers of the earlier version may still run, and need them.
    assert!(told.contains("only earlier versions use the index subscriptions.offramp_expiring"), "{told}");
    assert!(index_names(&bed, "subscriptions").await.iter().any(|name| name == "offramp_expiring"));
    let output = tokio::task::spawn_blocking({
        let mut command = offramp(&bed);
        move || command.args(["init", "--drop-superseded"]).output().unwrap()
    })
    .await
    .unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.contains("MongoDB: dropped index subscriptions.offramp_expiring"), "{told}");
    let names = index_names(&bed, "subscriptions").await;
    assert!(!names.iter().any(|name| name == "offramp_expiring" || name == "offramp_scheduled"), "{names:?}");

    // An index of ours with other keys is the operator's affair.
    bed.database.run_command(doc! { "dropIndexes": "accounts", "index": "offramp_card_expiry" }).await.unwrap();
    let other = doc! { "createIndexes": "accounts", "indexes": [{ "name": "offramp_card_expiry", "key": { "x": 1 } }] };
    bed.database.run_command(other).await.unwrap();
    let output = tokio::task::spawn_blocking({
        let mut command = offramp(&bed);
        move || command.arg("init").output().unwrap()
    })
    .await
    .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("accounts.offramp_card_expiry") && told.contains("other keys"), "{told}");
    bed.remove().await;
}

/// Leases and ends are decided by this machine's clock, so nothing is decided while it is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_clock_stops_the_work_until_it_is_right() {
    let mut bed = TestBed::new("clock").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let events = bed.watch_events().await;
    let (proxy, url) = Proxy::in_front_of_mongodb(&bed.mongodb_url).await;
    bed.mongodb_url = url;
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let worker = logging(&bed, &sink, &log).await;

    proxy.shift_clock(-62);
    let answer = eventually("a worker that is not ready", || async {
        worker.readyz().await.filter(|answer| answer.starts_with("HTTP/1.1 503"))
    })
    .await;
    assert!(
        answer.contains("this machine's clock is 62 s ahead of MongoDB's") || answer.contains("clock is 61 s ahead"),
        "{answer}"
    );
    bed.collection("subscriptions").insert_one(scheduled("over", Utc::now() - TimeDelta::hours(1))).await.unwrap();
    bed.command(&cancellation("c-1", "sub")).await;
    eventually("the command to be given back", || async {
        worker.readyz().await.filter(|answer| answer.contains("MongoDB is unavailable: this machine's clock"))
    })
    .await;
    for id in ["over", "sub"] {
        assert!(bed.document("subscriptions", id).await.unwrap().get("history").is_none(), "{id}");
    }

    proxy.shift_clock(0);
    events.next(&bed, |event| event["type"] == "subscription.ended").await;
    eventually("the command", || async {
        let document = bed.document("subscriptions", "sub").await.unwrap();
        document.get_str("status").is_ok_and(|status| status == "cancellation_scheduled").then_some(())
    })
    .await;
    eventually("a ready worker", || async {
        worker.readyz().await.filter(|answer| answer.starts_with("HTTP/1.1 200"))
    })
    .await;
    assert!(worker.stop().await.success());
    let log = std::fs::read_to_string(log).unwrap();
    assert_eq!(log.matches("processing is paused: this machine's clock").count(), 1, "{log}");
    assert_eq!(log.matches("agrees with MongoDB's again").count(), 1, "{log}");
    bed.remove().await;
}
