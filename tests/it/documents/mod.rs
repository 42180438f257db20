//! Documents: the worker reads back what it writes, and documents of other systems stop no more than what needs them.

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

/// 1 to `max` characters that take one to four bytes each.
fn text(random: &mut Rng, max: usize) -> String {
    let length = pick(random, &[1, 7, max]);
    pick(random, &["a", "é", "水", "🏊"]).repeat(length)
}
