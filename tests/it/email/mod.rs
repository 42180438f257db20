//! What emails contain, and how they are sent. Most of these tests need no external server.

mod conversations;
mod encodings;
mod files;
mod message;
mod signatures;
mod smtp_dialogue;
mod smtp_security;

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use chrono::{DateTime, Utc};
use mail_parser::{Address, MessageParser, MimeHeaders};
use offramp::tls::Tls as ClientTls;
use offramp_domain::notification::{Notification, Recipient, Template};
use offramp_mail::samples::{Sample, samples};
use offramp_mail::{
    ComposedEmail, Deadlines, EmailKind, MailConnection, MailUrl, Origin, SendError, Sender, SmtpName, Templates,
    Transport, compose,
};
use uuid::Uuid;

use offramp_testkit::smtp_sink::{Action, ReceivedEmail, SmtpSink, Step, Tls};

pub const LOCALES: [&str; 3] = ["fr-CA", "en-CA", "es-MX"];

pub fn built_in() -> &'static Templates {
    static BUILT_IN: LazyLock<Templates> = LazyLock::new(|| Templates::load(None).unwrap());
    &BUILT_IN
}

pub fn every_sample(locale: &'static str) -> impl Iterator<Item = Sample> {
    EmailKind::all().flat_map(move |kind| samples(kind.template, kind.recipient, locale))
}

pub fn sample() -> Notification {
    samples(Template::PaymentFailed, Recipient::AccountManager, "fr-CA").remove(0).notification
}

pub fn sender() -> Sender {
    Sender::parse("Offramp <no-reply@mail.example.com>").unwrap()
}

pub fn date() -> DateTime<Utc> {
    "2026-06-14T12:00:00Z".parse().unwrap()
}

pub fn composed(notification: &Notification) -> ComposedEmail {
    let rendered = built_in().render(notification).unwrap();
    compose(&sender(), origin(), notification, rendered, date()).unwrap()
}

pub fn origin() -> Origin {
    Origin { entry_id: Uuid::from_u128(42), conversation_id: Uuid::from_u128(7) }
}

/// The bytes for a server without extensions.
pub fn bytes(mail: &ComposedEmail) -> Vec<u8> {
    mail.bytes(false).unwrap()
}

pub fn deadlines() -> Deadlines {
    let short = Duration::from_millis(300);
    all_deadlines(short)
}

fn all_deadlines(limit: Duration) -> Deadlines {
    Deadlines {
        connect: limit,
        greeting: limit,
        envelope: limit,
        data: limit,
        block: limit,
        content: limit,
        farewell: limit,
    }
}

pub fn connection(url: &str, tls: &ClientTls) -> MailConnection {
    MailConnection::new(Arc::new(transport(url, tls, deadlines())))
}

fn transport(url: &str, tls: &ClientTls, deadlines: Deadlines) -> Transport {
    let name = SmtpName::parse("worker.example.com").unwrap();
    let url = MailUrl::parse(url).unwrap();
    let transport = Transport::new(&url, name, tls.client_config().unwrap(), deadlines).unwrap();
    transport.prepare().unwrap();
    transport
}

pub fn to(sink: &SmtpSink) -> MailConnection {
    connection(&sink.url(), &ClientTls::default())
}

fn one(address: Option<&Address<'_>>) -> (String, String) {
    let list = address.unwrap().as_list().unwrap();
    assert_eq!(list.len(), 1, "{list:?}");
    (list[0].name().unwrap_or_default().to_owned(), list[0].address().unwrap().to_owned())
}

fn header_names(bytes: &[u8]) -> BTreeSet<String> {
    let text = std::str::from_utf8(bytes).unwrap();
    let headers = text.split_once("\r\n\r\n").unwrap().0;
    let lines = headers.split("\r\n").filter(|line| !line.starts_with([' ', '\t']));
    lines.map(|line| line.split_once(':').unwrap().0.to_owned()).collect()
}

async fn send(sink: &SmtpSink) -> Result<String, SendError> {
    to(sink).send(&composed(&sample())).await
}

fn is_unavailable(error: &SendError) -> bool {
    matches!(error, SendError::Unavailable(_))
}

fn is_of_connection(error: &SendError) -> bool {
    matches!(error, SendError::Sender { rejects_connection: true, .. })
}

/// A server that replies to EHLO with `answer`, without STARTTLS.
async fn server(answer: &'static str) -> SmtpSink {
    SmtpSink::scripted(Tls::No, move |at, _| if at == Step::Ehlo { Action::Answer(answer) } else { Action::Ok }).await
}

/// The email as received, and the parameters of its MAIL command.
async fn sent(mail: &ComposedEmail, answer: &'static str) -> (ReceivedEmail, String) {
    let sink = server(answer).await;
    to(&sink).send(mail).await.unwrap();
    let announced = sink.commands().into_iter().find(|command| command.starts_with("MAIL")).unwrap();
    (sink.emails().remove(0), announced.replace("MAIL FROM:<no-reply@mail.example.com>", ""))
}

/// The transfer encodings of the message, its text part and its HTML part. A missing header means 7bit.
fn encodings(mail: &[u8]) -> [String; 3] {
    let parsed = MessageParser::default().parse(mail).unwrap();
    let of_part = |part: usize| parsed.parts[part].content_transfer_encoding().unwrap_or("7bit").to_owned();
    [0, 1, 2].map(of_part)
}
