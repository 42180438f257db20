//! What a mail costs: `cargo bench --bench mail`. Each figure is of one mail, on average over every sample in every
//! language. A mail in words and in its final form may take 60 µs of processor time, unless it is signed.
#![allow(clippy::expect_used, reason = "without good samples there is nothing to measure")]

use std::sync::Arc;

use chrono::{DateTime, Utc};
use divan::Bencher;
use divan::counter::ItemsCount;
use offramp_domain::notification::{Notification, Template};
use offramp_mail::samples::samples;
use offramp_mail::{ComposedEmail, DkimKey, DkimSigner, Origin, RenderedEmail, Sender, Templates, compose};
use uuid::Uuid;

/// As in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    divan::main();
}

fn notifications() -> Vec<Notification> {
    let of_template = |template: Template, locale: &'static str| {
        template.recipients().iter().flat_map(move |&recipient| samples(template, recipient, locale))
    };
    ["fr-CA", "en-CA", "es-MX"]
        .into_iter()
        .flat_map(|locale| Template::ALL.into_iter().flat_map(move |template| of_template(template, locale)))
        .map(|sample| sample.notification)
        .collect()
}

fn mail(sender: &Sender, notification: &Notification, rendered: RenderedEmail) -> ComposedEmail {
    let origin = Origin { entry_id: Uuid::from_u128(42), conversation_id: Uuid::from_u128(7) };
    let date: DateTime<Utc> = DateTime::UNIX_EPOCH;
    compose(sender, origin, notification, rendered, date).expect("samples have good addresses")
}

fn sender() -> Sender {
    Sender::parse("no-reply@mail.example.com").expect("an address")
}

fn templates() -> Templates {
    Templates::load(None).expect("good templates")
}

/// From the words to the bytes.
fn encode(bencher: Bencher, takes_8bit: bool, key: Option<&str>) {
    let (templates, sender) = (templates(), sender());
    let signer = key.map(|pem| {
        Arc::new(DkimSigner::new(DkimKey::parse(pem).expect("a key"), "s1".to_owned(), "example.com".to_owned()))
    });
    let rendered: Vec<(Notification, RenderedEmail)> = notifications()
        .into_iter()
        .map(|notification| {
            let rendered = templates.render(&notification).expect("good templates");
            (notification, rendered)
        })
        .collect();
    bencher.counter(ItemsCount::new(1_usize)).with_inputs(in_turn(&rendered)).bench_local_values(
        |(notification, rendered)| mail(&sender, &notification, rendered).signed_by(signer.clone()).bytes(takes_8bit),
    );
}

/// One after the other, for ever.
fn in_turn<T: Clone>(all: &[T]) -> impl FnMut() -> T + '_ {
    let mut next = all.iter().cycle();
    move || next.next().expect("there are some").clone()
}

/// For a server that knows 8BITMIME.
#[divan::bench(min_time = 1)]
fn mime_8bit(bencher: Bencher) {
    encode(bencher, true, None);
}

/// For one that does not.
#[divan::bench(min_time = 1)]
fn mime_quoted_printable(bencher: Bencher) {
    encode(bencher, false, None);
}

/// Signed with an RSA key of 2048 bits.
#[divan::bench(min_time = 1)]
fn mime_signed_rsa(bencher: Bencher) {
    encode(bencher, false, Some(include_str!("../crates/testkit/src/dkim/rsa.pkcs8.pem")));
}

/// Signed with an Ed25519 key.
#[divan::bench(min_time = 1)]
fn mime_signed_ed25519(bencher: Bencher) {
    encode(bencher, false, Some(include_str!("../crates/testkit/src/dkim/ed25519.pem")));
}

/// The words and the bytes: what may take 60 µs.
#[divan::bench(args = [true, false], min_time = 2)]
fn whole_mail(bencher: Bencher, takes_8bit: bool) {
    let (templates, sender, notifications) = (templates(), sender(), notifications());
    let mut next = notifications.iter().cycle();
    bencher.counter(ItemsCount::new(1_usize)).bench_local(|| {
        let notification = next.next().expect("there are some");
        let rendered = templates.render(notification).expect("good templates");
        divan::black_box_drop(mail(&sender, notification, rendered).bytes(takes_8bit));
    });
}
