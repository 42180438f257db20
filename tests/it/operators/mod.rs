//! What operators do with messages and emails that were given up. No command loses a message, whenever it is killed.

mod dead_letters;
mod outbox;

use std::process::{Output, Stdio};

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use serde_json::Value;

use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::offramp;

/// Runs the program and waits for its end.
fn run(bed: &TestBed, arguments: &[&str]) -> Output {
    offramp(bed).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// What it prints when it succeeds.
#[track_caller]
fn output(bed: &TestBed, arguments: &[&str]) -> String {
    let output = run(bed, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The objects that it prints, one a line.
#[track_caller]
fn objects(bed: &TestBed, arguments: &[&str]) -> Vec<Value> {
    output(bed, arguments).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What it says when it fails, with this exit code.
#[track_caller]
fn failure(bed: &TestBed, arguments: &[&str], code: i32) -> String {
    let output = run(bed, arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

async fn waiting(bed: &TestBed, queue: &str) -> u32 {
    let queue = format!("{}.{queue}", bed.prefix);
    let options = QueueDeclareOptions { passive: true, ..Default::default() };
    bed.channel.queue_declare(queue.as_str().into(), options, FieldTable::default()).await.unwrap().message_count()
}
