//! Accepts and declines requests.

use offramp_testkit::say;

use super::stage::Stage;
use super::visitor::Visitor;

pub async fn decide(ann: &mut Visitor<'_>, stage: &Stage) {
    say!("requests");
    // Not the oldest, which no worker can process.
    ann.open("/requests").await;
    ann.go("tbody tr:nth-child(2) a").await;
    let first = subscription(ann).await;
    // A date that is none of the client's billing dates: the worker rejects it, and nothing is decided.
    ann.page.evaluate("document.querySelector('[name=final_billing_date]').value = '2001-01-02'").await;
    ann.go("button[value=accept]").await;
    let (badge, told) = ann.end_of_change().await;
    assert!(badge == "failed" && told.contains("not_a_billing_date"), "{badge}: {told}");
    ann.look("decision-rejected").await;
    assert!(!decided(stage, &first).await.contains_key("decision"));

    ann.go("main > p:last-child a").await;
    ann.fill("note", "Au plaisir de vous revoir.").await;
    ann.go("button[value=accept]").await;
    let accepted = ann.done().await;
    assert!(accepted.contains("The last day of access is"), "{accepted}");
    ann.look("decision").await;
    let request = decided(stage, &first).await;
    assert_eq!(request.get_str("decision").unwrap(), "accept");
    assert_eq!(request.get_str("note").unwrap(), "Au plaisir de vous revoir.");

    ann.open("/requests").await;
    ann.go("tbody tr:nth-child(2) a").await;
    let second = subscription(ann).await;
    assert_ne!(first, second, "a decided request is no longer listed");
    ann.go("button[value=decline]").await;
    ann.done().await;
    assert_eq!(decided(stage, &second).await.get_str("decision").unwrap(), "decline");
    ann.go("main > p:last-child a").await;
    assert!(ann.text().await.contains("Request declined"));
    assert_eq!(ann.count("form.decide").await, 0);
    ann.look("subscription-declined").await;
}

/// The id of the subscription whose page is open.
async fn subscription(ann: &Visitor<'_>) -> String {
    ann.page.evaluate("document.querySelector('h1 .id').innerText").await.as_str().unwrap().to_owned()
}

async fn decided(stage: &Stage, subscription: &str) -> bson::Document {
    let document = stage.bed.document("subscriptions", subscription).await.unwrap();
    document.get_document("cancellation_request").unwrap().clone()
}
