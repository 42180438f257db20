//! Retries and drops failed emails in every way, one operator beside another.

use bson::doc;

use offramp_testkit::{eventually, say};

use super::stage::{FIRST_FAILED, Mood, Stage};
use super::visitor::Visitor;

pub async fn change_all_ways(ann: &mut Visitor<'_>, bob: &Visitor<'_>, stage: &Stage) {
    say!("emails");
    // Retried while the cause is still there: it waits, and nothing says that it was sent.
    ann.open("/emails").await;
    ann.check_rows(1..=1).await;
    ann.go("button[value=retry-selected]").await;
    assert!(ann.done().await.contains("Due now: 1 email"));

    stage.mail_server(Mood::Accepts);
    ann.open("/emails").await;
    let subscription = "document.querySelector('tbody td:nth-child(4)').innerText";
    let subscription = ann.page.evaluate(subscription).await.as_str().unwrap().to_owned();
    ann.go("tbody tr:first-child td:nth-child(2) a").await;
    ann.look("email").await;
    ann.fill("address", "elsewhere@home.example").await;
    ann.go("button[value=address-selected]").await;
    assert!(ann.done().await.contains("Due now: 1 email"));
    ann.look("change").await;
    ann.go("main > p:last-child a").await;
    assert!(ann.text().await.starts_with("Emails"), "the way back");
    is_sent_to(stage, "elsewhere@home.example", 1).await;
    ann.open(&format!("/subscription?id={subscription}")).await;
    assert!(ann.text().await.contains("elsewhere@home.example"), "the timeline names the address it went to");
    ann.open("/emails").await;

    // At the addresses of now.
    let corrected = doc! { "$set": { "manager.email": "corrected@home.example" } };
    stage.bed.collection("accounts").update_many(doc! { "organization_id": "org" }, corrected).await.unwrap();
    let corrected = doc! { "$set": { "contact.email": "corrected@org.example" } };
    stage.bed.collection("organizations").update_many(doc! { "_id": "org" }, corrected).await.unwrap();
    ann.check_rows(1..=2).await;
    ann.go("button[value=readdress-selected]").await;
    assert!(ann.done().await.contains("Due now: 2 emails"));
    is_sent_to(stage, "corrected@", 2).await;

    say!("emails, two operators at once");
    ann.open("/emails").await;
    bob.open("/emails").await;
    ann.check_rows(1..=3).await;
    bob.check_rows(2..=4).await;
    ann.go("button[value=drop-selected]").await;
    ann.look("confirmation").await;
    ann.go("form button.danger").await;
    assert!(ann.done().await.contains("Dropped 3 emails"));
    bob.go("button[value=retry-selected]").await;
    let (badge, told) = bob.end_of_change().await;
    assert_eq!(badge, "incomplete", "{told}");
    assert!(told.contains("Due now: 1 email") && told.contains("No longer failed: 2"), "{told}");
    bob.picture("change-incomplete").await;
    // All that a filter selects.
    ann.open("/emails?with=acc-hostile").await;
    let hostile = ann.count("tbody tr").await;
    ann.go("button[value=drop-all]").await;
    ann.go("form button.danger").await;
    assert!(ann.done().await.contains(&format!("Dropped {hostile} email")));
    // All others.
    ann.open("/emails").await;
    ann.go("button[value=retry-all]").await;
    ann.done().await;
    eventually("no failed email", || async { stage.entries(doc! { "failed_at": { "$exists": true } }).await == 0 })
        .await;
    ann.look_at("emails-none", "/emails").await;

    let subscription = format!("/subscription?id=sub-{}", FIRST_FAILED + 20);
    eventually("the sent email, kept", || async {
        ann.open(&subscription).await;
        ann.count(".timeline a[href^=\"/emails/sent\"]").await > 0
    })
    .await;
    ann.look("timeline").await;
    ann.go(".timeline a[href^=\"/emails/sent\"]").await;
    ann.look("email-sent").await;
}

async fn is_sent_to(stage: &Stage, address: &str, number: usize) {
    eventually("the email", || async {
        stage.recipients().iter().filter(|to| to.starts_with(address)).count() >= number
    })
    .await;
}
