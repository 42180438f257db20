//! Replays and drops dead letters in every way, two operators at once.

use offramp_testkit::say;
use offramp_testkit::worker_process::offramp;

use super::stage::{DEAD_LETTERS, Stage};
use super::visitor::Visitor;

pub async fn change_all_ways(ann: &mut Visitor<'_>, bob: &Visitor<'_>, stage: &Stage) {
    say!("dead letters");
    open_group(ann, 1).await;
    ann.check_rows(1..=3).await;
    ann.go("button[value=replay-selected]").await;
    let replayed = ann.done().await;
    assert!(replayed.contains("Sent back 3 dead letters"), "{replayed}");
    ann.look("replayed").await;
    // They die again, which the page says once it has a newer copy.
    all_dead(ann, DEAD_LETTERS).await;

    // One, from its own page.
    open_group(ann, 2).await;
    ann.go("tbody tr:first-child a").await;
    ann.go("button[value=drop-selected]").await;
    ann.look("confirmation-dead-letter").await;
    ann.go("form button.danger").await;
    assert!(ann.done().await.contains("Dropped 1 dead letter"));

    say!("dead letters, two operators at once");
    open_group(ann, 1).await;
    open_group(bob, 1).await;
    // Looking locks nobody out.
    let listed = offramp(&stage.bed).args(["dead-letters", "list"]).output().unwrap();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    // Both have the confirmation open; the boxes overlap.
    ann.check_rows(1..=4).await;
    bob.check_rows(3..=6).await;
    ann.go("button[value=drop-selected]").await;
    bob.go("button[value=drop-selected]").await;
    tokio::join!(ann.go("form button.danger"), bob.go("form button.danger"));
    let (one, other) = (ann.end_of_change().await, bob.end_of_change().await);
    let mut badges = [one.0.as_str(), other.0.as_str()];
    badges.sort_unstable();
    assert_eq!(badges, ["done", "incomplete"], "{one:?} {other:?}");
    let slower = if one.0 == "done" { &other.1 } else { &one.1 };
    assert!(
        slower.contains("Dropped 2 dead letters") && slower.contains("No longer there: 2 dead letters"),
        "{slower}"
    );
    bob.picture("change-of-both").await;
    all_dead(ann, DEAD_LETTERS - 7).await;

    // The same group at once. Each dead letter is sent back, and dies again; none is lost, and none is there twice.
    open_group(ann, 1).await;
    open_group(bob, 1).await;
    tokio::join!(ann.go("button[value=replay-group]"), bob.go("button[value=replay-group]"));
    let (one, other) = (ann.end_of_change().await, bob.end_of_change().await);
    assert!(one.0 == "done" || other.0 == "done", "{one:?} {other:?}");
    all_dead(ann, DEAD_LETTERS - 7).await;

    // A whole group is dropped.
    open_group(ann, 4).await;
    ann.go("button[value=drop-group]").await;
    ann.go("form button.danger").await;
    let dropped = ann.done().await;
    assert!(dropped.contains("Dropped 1000 dead letters") || dropped.contains("Dropped 999 dead letters"), "{dropped}");
    ann.go("main > p:last-child a").await;
    ann.look("dead-letter-group-gone").await;
}

/// Opens a group; 1 is the largest.
pub async fn open_group(visitor: &Visitor<'_>, place: usize) {
    visitor.open("/dead-letters").await;
    visitor.go(&format!("tbody tr:nth-child({place}) a")).await;
}

/// Waits until there are so many dead letters, with the page's own button.
async fn all_dead(visitor: &Visitor<'_>, number: usize) {
    let thousands = format!("{},{:03} in ", number / 1_000, number % 1_000);
    visitor.open("/dead-letters").await;
    offramp_testkit::eventually(&thousands, || async {
        visitor.go("form.age button").await;
        visitor.text().await.contains(&thousands)
    })
    .await;
}
