//! `offramp show`: everything that happened to a subscription or an account.

use super::*;
use bson::{DateTime as Instant, oid::ObjectId};
use chrono::Utc;
use offramp_testkit::fixtures::{account, cancellation, populate, subscription, with};
use offramp_testkit::smtp_sink::SmtpSink;
use offramp_testkit::worker_process::WorkerProcess;

#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_tells_the_whole_story() {
    let bed = TestBed::new("timeline").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    for (command, done) in [
        (payment_failure("c-1", "sub"), doc! { "payment_failures.command.id": "c-1" }),
        (request("c-2", "sub"), doc! { "status": "cancellation_requested" }),
        (confirmation("c-3", "sub", "accept"), doc! { "status": "cancellation_scheduled" }),
    ] {
        bed.command(&command).await;
        eventually("the change", || async { bed.collection("subscriptions").find_one(done.clone()).await.unwrap() })
            .await;
    }
    bed.command(&with(cancellation("c-4", "sub"), "month", "2199-09".into())).await;
    recorded(&bed, "c-4").await;
    bed.outboxes_empty().await;
    assert!(worker.stop().await.success());

    let view = view(&bed, "sub");
    let [failure] = of_kind(&view, "payment_failure").try_into().unwrap();
    let expected = json!({
        "invoice_id": "inv-5", "amount": { "value": "49.99", "currency": "CAD" },
        "card": { "brand": "Visa", "last4": "4242" }, "attempt": 1, "next_attempt_on": "2199-06-20",
        "failure_message": "Do not honor", "failure_code": "insufficient_funds",
        "command": { "source": "tests", "id": "c-1", "type": "payment.failure" },
    });
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(&failure[field], value, "{field}");
    }
    let [requested] = of_kind(&view, "request").try_into().unwrap();
    assert_eq!((&requested["reason"], &requested["at"]), (&"Moving\nto Laval".into(), &"2199-05-20T12:00:00Z".into()));
    let [decided] = of_kind(&view, "decision").try_into().unwrap();
    assert_eq!((&decided["decision"], &decided["note"]), (&"accept".into(), &"Sorry to see you go".into()));
    let [first, second] = of_kind(&view, "change").try_into().unwrap();
    assert_eq!(first["reason"], "Moving\nto Laval");
    assert_eq!((&second["via"], &second["note"]), (&"request".into(), &"Sorry to see you go".into()));
    assert_eq!(
        second["command"],
        json!({ "source": "tests", "id": "c-3", "type": "subscription.cancellation-confirmation" })
    );
    let [rejected] = of_kind(&view, "rejected_command").try_into().unwrap();
    assert_eq!((&rejected["reason"], &rejected["actor"]["name"]), (&"later_than_scheduled".into(), &"Paul".into()));
    let emails = of_kind(&view, "email");
    assert_eq!(emails.len(), 4, "{emails:?}");
    for email in &emails {
        assert_eq!(email["state"], "sent", "{email}");
        assert!(email["message_id"].as_str().unwrap().starts_with('<') && email["sent_at"].is_string(), "{email}");
    }
    let times: Vec<_> = view["timeline"].as_array().unwrap().iter().map(|entry| entry["at"].to_string()).collect();
    assert!(times.is_sorted(), "{times:?}");
    assert_eq!(view["cancellation"]["via"], "request");

    let text = shown(&bed, "sub");
    for part in [
        "Account             Ada Roy (acc), acc@home.example",
        "by admin Paul",
        "payment of 49.99 CAD for invoice inv-5 failed, Visa ending in 4242, attempt 1, next attempt on 2199-06-20, \
         insufficient funds (payment.failure c-1 from tests)\n                      message: Do not honor",
        "reason: Moving\n                      to Laval",
        "request accepted\n                      note: Sorry to see you go",
        "rejected: later_than_scheduled (subscription.cancellation c-4 from tests), by admin Paul: ",
        "email request-accepted to acc@home.example (account manager, en-CA), sent ",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_has_its_subscriptions_cards_notices_and_emails() {
    let bed = TestBed::new("account-view").await;
    store_of(&bed).await;
    populate(&bed).await;
    let at = Instant::from(Utc::now());
    let notice = doc! { "card_id": "card-1", "expires": "2026-06", "notice": { "days": 30 }, "at": at };
    let (failed, dropped) = (uuid(1), uuid(2));
    let record = |id: &str| {
        doc! {
            "id": id, "template": "card-expiring", "to": "old@home.example", "role": "account_manager", "locale": "en-CA",
            "message_id": format!("<{id}@offramp.example>"), "at": at, "failed_at": at, "error": "550 no such user",
        }
    };
    let entry = doc! {
        "id": &failed, "kind": "email", "holder": "", "attempts": 1, "failed_at": at, "error": "550 no such user",
        "mail": any_email(),
    };
    let update = doc! { "$set": {
        "cards": [{ "id": "card-1", "brand": "Visa", "last4": "4242", "expires": "2026-06" }, { "id": 7 }],
        "card_notices": [notice], "notifications": [record(&failed), record(&dropped)], "outbox": [entry],
    } };
    bed.collection("accounts").update_one(doc! { "_id": "acc" }, update).await.unwrap();
    // The newest come first, and are bounded.
    let many = (0..201).map(|at| subscription(&format!("sub-{at}"), "org", "acc"));
    bed.collection("subscriptions").insert_many(many).await.unwrap();

    let view = view(&bed, "acc");
    assert_eq!(view["manager"], json!({ "name": "Ada Roy", "email": "acc@home.example", "locale": "en-CA" }));
    let subscriptions = view["subscriptions"].as_array().unwrap();
    assert_eq!((subscriptions.len(), &view["more_subscriptions"]), (200, &2.into()));
    assert_eq!((&subscriptions[0]["id"], &subscriptions[0]["status"]), (&"sub-200".into(), &"active".into()));
    assert_eq!(view["cards"], json!([{ "id": "card-1", "brand": "Visa", "last4": "4242", "expires": "2026-06" }]));
    let [notice] = of_kind(&view, "card_notice").try_into().unwrap();
    assert_eq!((&notice["card_id"], &notice["notice"]), (&"card-1".into(), &json!({ "days": 30 })));
    let states: Vec<Value> = of_kind(&view, "email").iter().map(|email| email["state"].clone()).collect();
    assert_eq!(states, ["failed", "dropped"]);
    assert!(view["problem"].as_str().unwrap().starts_with("accounts acc: cards[1]"), "{}", view["problem"]);

    let text = shown(&bed, "acc");
    for part in [
        "Account acc\n",
        "Email address       acc@home.example",
        "Cards               Visa ending in 4242, valid until the end of 2026-06 (card-1)",
        "  sub-200, Zoé Roy, Unlimited, active, next billing date 2199-06-15\n",
        "  … and 2 more\n",
        "card notice: card-1, valid until the end of 2026-06 (at most 30 days before)",
        "email card-expiring to old@home.example (account manager, en-CA), failed, kept for an operator: 550 no such user",
        "failed and dropped: 550 no such user",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tombstone_shows_its_emails_without_addresses() {
    let bed = TestBed::new("tombstone-view").await;
    let sink = SmtpSink::start().await;
    populate(&bed).await;
    let worker = WorkerProcess::start(&bed, &sink.url()).await;
    let removal = with(with(cancellation("c-1", "sub"), "via", "invoice".into()), "invoice_id", "inv-5".into());
    bed.command(&removal).await;
    let sent = doc! { "status": "removed", "notifications.sent_at": { "$exists": true } };
    eventually("a sent email", || async { bed.collection("subscriptions").find_one(sent.clone()).await.unwrap() })
        .await;
    bed.outboxes_empty().await;
    assert!(worker.stop().await.success());
    let view = view(&bed, "sub");
    assert_eq!(
        (&view["status"], &view["participant"], &view["problem"]),
        (&"removed".into(), &Value::Null, &Value::Null)
    );
    let [email] = of_kind(&view, "email").try_into().unwrap();
    assert_eq!(
        (&email["template"], &email["to"], &email["state"]),
        (&"removed-by-admin".into(), &Value::Null, &"sent".into())
    );
    assert!(
        shown(&bed, "sub").contains("email removed-by-admin (account manager, en-CA), sent "),
        "{}",
        shown(&bed, "sub")
    );
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_document_shows_what_can_be_read() {
    let bed = TestBed::new("corrupt-view").await;
    store_of(&bed).await;
    populate(&bed).await;
    let at = Instant::from(Utc::now());
    let history = bson::bson!([{ "at": at, "from": "active", "to": "cancellation_requested" }, { "at": "yesterday" }]);
    let spoiled = doc! { "$set": { "status": 7, "history": history, "participant": "Zoé", "applied": "none" }, "$unset": { "account_id": "" } };
    bed.collection("subscriptions").update_one(doc! { "_id": "sub" }, spoiled).await.unwrap();
    let view = view(&bed, "sub");
    assert!(view["problem"].as_str().unwrap().starts_with("subscriptions sub: "), "{view}");
    assert_eq!((&view["status"], &view["participant"]), (&Value::Null, &Value::Null));
    assert_eq!((&view["plan"]["name"], &view["next_billing_on"]), (&"Unlimited".into(), &"2199-06-15".into()));
    assert_eq!(of_kind(&view, "change").len(), 1);
    assert!(shown(&bed, "sub").contains("Problem             subscriptions sub: "));
    bed.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_ids_are_explained() {
    let bed = TestBed::new("unknown-ids").await;
    bed.collection("accounts").insert_one(account("acc", "nowhere")).await.unwrap();
    assert_eq!(view(&bed, "acc")["problem"], "organizations nowhere is missing");
    let says = "there is no subscription or account nobody in the database";
    let ran = fails(&mut offramp(&bed), &["show", "nobody"], "", 1, says);
    assert!(ran.stderr.contains("offramp find"), "{}", ran.stderr);
    let id = ObjectId::new();
    bed.collection("accounts").insert_one(doc! { "_id": id }).await.unwrap();
    let ran = fails(&mut offramp(&bed), &["show", &id.to_hex()], "", 1, "ids must be text");
    assert!(ran.stderr.contains("of accounts"), "{}", ran.stderr);
    bed.remove().await;
}

fn uuid(number: u8) -> String {
    format!("0190b3c5-1d2e-5f00-8000-0000000000{number:02}")
}

/// The email of an outbox entry.
fn any_email() -> Document {
    doc! {
        "template": "card-expiring", "role": "account_manager", "locale": "en-CA",
        "to": { "email": "old@home.example" }, "reply_to": { "email": "desk@org.example" },
        "facts": { "organization": { "name": "Club de natation", "email": "desk@org.example" }, "manager": { "email": "old@home.example" } },
    }
}
