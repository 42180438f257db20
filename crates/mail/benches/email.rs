//! The cost of an email: `cargo bench -p offramp-mail`. Each figure is for one email, averaged over every sample in every
//! language. Rendering and encoding an email may take 90 µs of processor time, without a signature.
#![allow(clippy::expect_used, reason = "without valid samples there is nothing to measure")]

use std::sync::Arc;

use chrono::{DateTime, Utc};
use divan::Bencher;
use divan::counter::ItemsCount;
use offramp_domain::notification::Notification;
use offramp_mail::samples::samples;
use offramp_mail::{ComposedEmail, DkimKey, DkimSigner, EmailKind, Origin, RenderedEmail, Sender, Templates, compose};
use uuid::Uuid;

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    divan::main();
}

fn notifications() -> Vec<Notification> {
    ["fr-CA", "en-CA", "es-MX"]
        .into_iter()
        .flat_map(|locale| EmailKind::all().flat_map(move |kind| samples(kind.template, kind.recipient, locale)))
        .map(|sample| sample.notification)
        .collect()
}

fn composed(sender: &Sender, notification: &Notification, rendered: RenderedEmail) -> ComposedEmail {
    let origin = Origin { entry_id: Uuid::from_u128(42), conversation_id: Uuid::from_u128(7) };
    let date: DateTime<Utc> = DateTime::UNIX_EPOCH;
    compose(sender, origin, notification, rendered, date).expect("samples have valid addresses")
}

fn sender() -> Sender {
    Sender::parse("no-reply@mail.example.com").expect("an address")
}

fn templates() -> Templates {
    Templates::load(None).expect("valid templates")
}

/// From the text to the bytes.
fn encode(bencher: Bencher, supports_8bit: bool, key: Option<&str>) {
    let (templates, sender) = (templates(), sender());
    let signer = key.map(|pem| {
        Arc::new(DkimSigner::new(DkimKey::parse(pem).expect("a key"), "s1".to_owned(), "example.com".to_owned()))
    });
    let rendered: Vec<(Notification, RenderedEmail)> = notifications()
        .into_iter()
        .map(|notification| {
            let rendered = templates.render(&notification).expect("valid templates");
            (notification, rendered)
        })
        .collect();
    bencher.counter(ItemsCount::new(1_usize)).with_inputs(cycle(&rendered)).bench_local_values(
        |(notification, rendered)| {
            composed(&sender, &notification, rendered).signed_by(signer.clone()).bytes(supports_8bit)
        },
    );
}

fn cycle<T: Clone>(all: &[T]) -> impl FnMut() -> T + '_ {
    let mut next = all.iter().cycle();
    move || next.next().expect("at least one").clone()
}

/// For a server with 8BITMIME.
#[divan::bench(min_time = 1)]
fn mime_8bit(bencher: Bencher) {
    encode(bencher, true, None);
}

/// For a server without 8BITMIME.
#[divan::bench(min_time = 1)]
fn mime_quoted_printable(bencher: Bencher) {
    encode(bencher, false, None);
}

/// Signed with an RSA key of 2048 bits.
#[divan::bench(min_time = 1)]
fn mime_signed_rsa(bencher: Bencher) {
    encode(bencher, false, Some(include_str!("../../testkit/src/dkim/rsa.pkcs8.pem")));
}

/// Signed with an Ed25519 key.
#[divan::bench(min_time = 1)]
fn mime_signed_ed25519(bencher: Bencher) {
    encode(bencher, false, Some(include_str!("../../testkit/src/dkim/ed25519.pem")));
}

/// Rendering and encoding, which may take 90 µs.
#[divan::bench(args = [true, false], min_time = 2)]
fn whole_email(bencher: Bencher, supports_8bit: bool) {
    let (templates, sender, notifications) = (templates(), sender(), notifications());
    let mut next = notifications.iter().cycle();
    bencher.counter(ItemsCount::new(1_usize)).bench_local(|| {
        let notification = next.next().expect("at least one");
        let rendered = templates.render(notification).expect("valid templates");
        divan::black_box_drop(composed(&sender, notification, rendered).bytes(supports_8bit));
    });
}
