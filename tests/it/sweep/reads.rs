//! A sweep reads what is due and nothing else, and workers share it.

use std::collections::BTreeSet;

use bson::{Bson, Document, doc};
use chrono::{Datelike, Days, NaiveDate, TimeDelta, Utc};
use offramp::store::due::{TimeZones, TriedSubscriptions};
use offramp_domain::account::NoticeKind;
use offramp_domain::calendar::YearMonth;

use super::{expiring, notes, scheduled, start_noting, store_of, sweeps};
use offramp_testkit::eventually;
use offramp_testkit::fixtures::{account, organization, populate, subscription};
use offramp_testkit::smtp_sink::SmtpSink;
use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::WorkerProcess;

/// Without what the gauges read: each worker reads what waits in the outbox, however many workers there are.
fn documents_read(notes: &[Document]) -> i32 {
    let is_gauge = |note: &&Document| note.get_document("command").is_ok_and(|it| it.contains_key("aggregate"));
    notes.iter().filter(|note| !is_gauge(note)).filter_map(|note| note.get_i32("docsExamined").ok()).sum()
}

/// Every query of a sweep uses an index.
#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_reads_only_due_documents() {
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
    eventually("the notice", || async { (sink.emails().len() == 2).then_some(()) }).await;
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
        // The gauges.
        "{ outbox.kind: 1, outbox.due: 1 }",
        "{ outbox.failed_at: 1 }",
        "{ status: 1, organization_id: 1, cancellation_request.requested_at: 1, _id: 1 }",
    ] {
        assert!(plans.iter().any(|plan| plan.contains(&format!("IXSCAN {keys}"))), "{keys}: {plans:?}");
    }
    assert!(!notes.iter().any(|note| note.get_bool("hasSortStage").unwrap_or(false)), "an index has the order already");
    // Every operation has a time limit on the server; `getMore` shares that of its query.
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

/// Subscriptions between their expiry date and their natural end are not read, nor those whose last day is over in other time zones
/// but not in their own.
#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_before_their_end_are_not_read() {
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
    println!("{read} documents read per sweep, {sweeps} sweeps");
    assert!(read <= 100, "{read} documents read per sweep");
    bed.remove().await;
}

/// Every billing day, number type and expiry date of several weeks, compared with a walk through the calendar.
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
        // Noon of that day in the time zone.
        let zone: chrono_tz::Tz = zone.parse().unwrap();
        let now = today.and_hms_opt(12, 0, 0).unwrap().and_local_timezone(zone).unwrap().to_utc();
        let mut passed = TriedSubscriptions::default();
        let window = store.natural_ends(now, &mut passed, &mut TimeZones::default()).await.unwrap();
        let found: BTreeSet<String> = window.due.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected, "{today}");
        for id in window.due {
            passed.add(id);
        }
        let others = store.natural_ends(now, &mut passed, &mut TimeZones::default()).await.unwrap();
        assert!(others.due.is_empty());
    }
    bed.remove().await;
}

/// Accounts are paged through by an index, and none is read twice.
#[tokio::test(flavor = "multi_thread")]
async fn paging_through_cards_reads_each_account_once() {
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

/// Ends `ends` subscriptions with this number of workers, and returns the number of documents read.
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
    // All become due at the same time, after the insert.
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
async fn workers_share_due_subscriptions() {
    const ENDS: usize = 3_000;
    let one = documents_read_by(1, ENDS).await;
    let four = documents_read_by(4, ENDS).await;
    println!("{ENDS} ends: {one} documents read by one worker, {four} by four");
    assert!(2 * four <= 3 * one, "{one} documents read by one worker, {four} by four");
}
