//! A worker is killed and restarted while operators look and change something.

use offramp_testkit::say;

use super::dead_letters::open_group;
use super::stage::Stage;
use super::visitor::Visitor;

pub async fn kill_and_restart_the_worker(ann: &mut Visitor<'_>, bob: &Visitor<'_>, stage: &mut Stage) {
    say!("a worker is killed");
    ann.open("/").await;
    let says = |word: &str| format!("document.querySelector('[data-live]').innerText.includes('{word}')");
    ann.page.until(&says("ready")).await;
    // No reload from here on.
    ann.mark().await;
    stage.worker.kill();
    ann.page.until(&says("silent")).await;
    ann.look("overview-silent").await;

    // A whole group, with its progress.
    open_group(bob, 1).await;
    bob.go("button[value=replay-group]").await;
    bob.page.until("document.querySelector('progress') !== null").await;
    bob.picture("progress").await;
    let replayed = bob.done().await;
    assert!(replayed.contains("Sent back") && replayed.contains("cancellation"), "{replayed}");

    // A decision that nobody takes is not called done.
    bob.open("/requests").await;
    bob.go("tbody tr:nth-child(2) a").await;
    bob.go("button[value=decline]").await;
    let (badge, told) = bob.end_of_change().await;
    assert!(badge == "incomplete" && told.contains("no worker has decided it"), "{badge}: {told}");
    bob.picture("decision-late").await;

    say!("the worker is restarted");
    stage.restart_worker().await;
    let is_ready = "[...document.querySelectorAll('[data-live] .badge')].some((badge) => badge.innerText === 'ready')";
    ann.page.until(is_ready).await;
    assert!(ann.has_mark().await, "the overview refreshes itself");
    ann.look("overview-ready-again").await;
    // Now the worker has taken the decision.
    bob.go("main > p:last-child a").await;
    offramp_testkit::eventually("the decision", || async {
        bob.page.evaluate("location.reload()").await;
        bob.page.until("document.readyState === 'complete'").await;
        bob.text().await.contains("Request declined")
    })
    .await;
}
