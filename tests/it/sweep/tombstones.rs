//! Tombstones are deleted once nothing is left to send.

use bson::{DateTime as Instant, Document, doc};
use chrono::{TimeDelta, Utc};
use futures_util::TryStreamExt;

use super::store_of;
use offramp_testkit::fixtures::populate;
use offramp_testkit::test_bed::TestBed;

#[tokio::test(flavor = "multi_thread")]
async fn tombstones_are_deleted_30_days_after_the_last_delivery() {
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
