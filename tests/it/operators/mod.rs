//! Commands for operators: dead letters and failed outbox entries. No command loses a message, whenever it is killed.

mod dead_letters;
mod outbox;
mod simulate;

use std::process::{Output, Stdio};

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use serde_json::Value;

use offramp_testkit::test_bed::TestBed;
use offramp_testkit::worker_process::offramp;

fn run(bed: &TestBed, arguments: &[&str]) -> Output {
    offramp(bed).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// The standard output of a successful run.
#[track_caller]
fn output(bed: &TestBed, arguments: &[&str]) -> String {
    let output = run(bed, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The JSON objects that a successful run prints.
#[track_caller]
fn objects(bed: &TestBed, arguments: &[&str]) -> Vec<Value> {
    output(bed, arguments).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The standard error of a run that fails with this exit code.
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
