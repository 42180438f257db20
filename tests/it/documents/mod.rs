//! Documents: the worker can read what it writes, and a bad document of another system affects only commands that need it.

mod batches;
mod other_writers;
mod round_trip;

use bson::Document;
use fastrand::Rng;

fn id(document: &Document) -> &str {
    document.get_str("_id").unwrap()
}

fn pick<T: Copy>(random: &mut Rng, choices: &[T]) -> T {
    choices[random.usize(..choices.len())]
}

/// 1 to `max` characters of one to four bytes each.
fn text(random: &mut Rng, max: usize) -> String {
    let length = pick(random, &[1, 7, max]);
    pick(random, &["a", "é", "水", "🏊"]).repeat(length)
}
