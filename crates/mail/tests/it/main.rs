//! Rendering and templates, without a mail server.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod rendering;
mod template_files;

use std::sync::LazyLock;

use offramp_domain::notification::{Notification, Recipient, Template};
use offramp_mail::Templates;
use offramp_mail::samples::samples;

fn built_in() -> &'static Templates {
    static BUILT_IN: LazyLock<Templates> = LazyLock::new(|| Templates::load(None).unwrap());
    &BUILT_IN
}

/// A failed payment with every fact, for a reader of Canadian French.
fn sample() -> Notification {
    let samples = samples(Template::PaymentFailed, Recipient::AccountManager, "fr-CA");
    samples.into_iter().find(|sample| sample.variant == "full").unwrap().notification
}
