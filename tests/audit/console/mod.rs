//! `make console-audit`: uses `offramp console` like support staff and operators, on real servers, with 100,000 subscriptions and 5,000
//! dead letters.
//!
//! Reading order: [`stage`] (servers and documents), [`visitor`] (a person with a browser, and what is checked of each page), [`control`]
//! (defects that must be found), then the acts: [`pages`] (every page), [`emails`], [`requests`], [`dead_letters`] (every change, two operators at once), and [`outage`] (a worker
//! is killed and restarted).

mod control;
mod dead_letters;
mod emails;
mod outage;
mod pages;
mod requests;
mod stage;
mod visitor;

use std::fmt::Write as _;
use std::path::Path;

use offramp_testkit::web_process::WebProcess;

use crate::devtools::Browser;
use stage::Stage;
use visitor::{Setting, Visitor};

/// The number of pages whose figures are printed.
const PAGES_PRINTED: usize = 8;

/// Uses the console, writes screenshots to `out`, and returns findings. Panics on any other defect.
pub async fn drive(browser: &Browser, axe: &str, out: &Path) -> Vec<String> {
    let mut stage = Stage::set().await;
    let worker_address = format!("127.0.0.1:{}", stage.worker.port());
    let settings = [("OFFRAMP_CONSOLE_WORKERS", worker_address.as_str())];
    let console = WebProcess::console(&stage.bed, &["--allow-changes"], &settings);
    let setting = Setting { browser, axe, out };
    control::prove(&setting, &console).await;
    let mut ann = Visitor::new(&setting, &console).await;
    let mut bob = Visitor::new(&setting, &console).await;
    let mut guest = pages::visit_read_only(&setting, &stage).await;

    pages::look_at_all(&mut ann).await;
    pages::use_keyboard(&ann).await;
    emails::change_all_ways(&mut ann, &bob, &stage).await;
    requests::decide(&mut ann, &stage).await;
    dead_letters::change_all_ways(&mut ann, &bob, &stage).await;
    outage::kill_and_restart_the_worker(&mut ann, &bob, &mut stage).await;

    let mut findings = Vec::new();
    let mut measured = Vec::new();
    for visitor in [&mut ann, &mut bob, &mut guest] {
        visitor.note_faults("the end").await;
        findings.append(&mut visitor.findings);
        measured.append(&mut visitor.measured);
    }
    print(measured);
    assert_eq!(console.interrupt().await.code(), Some(0));
    stage.clear().await;
    findings
}

/// Prints the figures of the slowest pages.
fn print(mut measured: Vec<visitor::Measured>) {
    measured.sort_by(|one, other| other.milliseconds.total_cmp(&one.milliseconds));
    let mut slowest = String::new();
    for page in measured.iter().take(PAGES_PRINTED) {
        write!(slowest, "\n  {:6.1} ms  {:5.0} KB  {}", page.milliseconds, page.bytes / 1024.0, page.name).unwrap();
    }
    let largest = measured.iter().map(|page| page.bytes).fold(0.0, f64::max) / 1024.0;
    println!("{} pages, at most {largest:.0} KB; the slowest answers of the server:{slowest}", measured.len());
}
