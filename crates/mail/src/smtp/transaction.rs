//! One email on a connection: envelope, content, reply (RFC 5321 §3.3).

use lettre::Address;
use lettre::transport::smtp::commands::{Mail, Rcpt};
use lettre::transport::smtp::extension::{MailBodyParameter, MailParameter};
use memchr::memmem;

use super::deadlines::Deadlines;
use super::failure::{Failure, Fault, QUOTE_CHARS_MAX};
use super::reply::Reply;
use super::session::Session;
use super::step::Step;
use crate::message::ComposedEmail;
use crate::text::{shorten, single_line};

/// How much of the content is written under one deadline, in bytes. Most emails are one block.
const BLOCK_BYTES: usize = 64 * 1024;

/// Names the sender and the recipient, in one go where the server supports pipelining (RFC 2920). Every reply is read, also
/// when the first one is a rejection.
pub(super) async fn announce(
    session: &mut Session,
    email: &ComposedEmail,
    content: &[u8],
    limits: Deadlines,
) -> Result<(), Failure> {
    let limit = limits.envelope;
    let mut options = Vec::new();
    if email.needs_smtputf8() {
        options.push(MailParameter::SmtpUtfEight);
    }
    if !content.is_ascii() {
        options.push(MailParameter::Body(MailBodyParameter::EightBitMime));
    }
    let mail = Mail::new(email.envelope.from().cloned(), options).to_string();
    let rcpt: String =
        email.envelope.to().iter().map(|address| Rcpt::new(address.clone(), vec![]).to_string()).collect();
    if session.offers("PIPELINING") {
        session.write(Step::Mail, limit, (mail + &rcpt).as_bytes()).await?;
        let sender = session.read(Step::Mail, limit).await?.expect(Step::Mail, Reply::POSITIVE);
        if sender.as_ref().is_err_and(|failure| !failure.keeps_connection()) {
            return sender.map(drop);
        }
        let recipient = session.read(Step::Rcpt, limit).await;
        // A rejected sender decides, whatever the reply to the recipient.
        sender?;
        recipient?.expect(Step::Rcpt, Reply::POSITIVE)?;
    } else {
        session.request(Step::Mail, limit, &mail).await?.expect(Step::Mail, Reply::POSITIVE)?;
        session.request(Step::Rcpt, limit, &rcpt).await?.expect(Step::Rcpt, Reply::POSITIVE)?;
    }
    Ok(())
}

/// Names the sender alone, to find out whether the server accepts it.
pub(super) async fn name_sender(session: &mut Session, sender: Address, limits: Deadlines) -> Result<(), Failure> {
    let mail = Mail::new(Some(sender), Vec::new()).to_string();
    session.request(Step::Mail, limits.envelope, &mail).await?.expect(Step::Mail, Reply::POSITIVE).map(drop)
}

/// Sends the content for an accepted recipient, unless the sender has stopped wanting that. Returns the server's reply.
pub(super) async fn transfer(
    session: &mut Session,
    content: Vec<u8>,
    limits: Deadlines,
    allows_content: &(dyn Fn() -> bool + Sync),
    is_content_sent: &mut bool,
) -> Result<String, Failure> {
    session.request(Step::Data, limits.data, "DATA\r\n").await?.expect(Step::Data, 354)?;
    if !allows_content() {
        // The server drops an email whose content does not come.
        return Err(Failure { step: Step::Content, fault: Fault::HeldBack });
    }
    for block in terminated(content).chunks(BLOCK_BYTES) {
        session.write(Step::Content, limits.block, block).await?;
    }
    *is_content_sent = true;
    let accepted = session.read(Step::Reply, limits.content).await?.expect(Step::Reply, 250)?;
    Ok(shorten(&single_line(&format!("250 {}", accepted.text())), QUOTE_CHARS_MAX))
}

/// Makes a connection ready for the next email after a rejected one. Returns whether that worked.
pub(super) async fn reset(session: &mut Session, limits: Deadlines) -> bool {
    let reply = session.request(Step::Mail, limits.farewell, "RSET\r\n").await;
    reply.is_ok_and(|reply| reply.code == 250)
}

/// Adds the dot that ends the content, and doubles dots at the beginning of lines (RFC 5321 §4.5.2).
fn terminated(content: Vec<u8>) -> Vec<u8> {
    let mut terminated = if memmem::find(&content, b"\n.").is_some() { double_dots(&content) } else { content };
    terminated.extend_from_slice(if terminated.ends_with(b"\r\n") { b".\r\n" } else { b"\r\n.\r\n" });
    terminated
}

fn double_dots(content: &[u8]) -> Vec<u8> {
    let mut doubled = Vec::with_capacity(content.len() + content.len() / 64 + 5);
    let mut copied = 0;
    for at in memmem::find_iter(content, b"\n.") {
        doubled.extend_from_slice(&content[copied..=at]);
        doubled.push(b'.');
        copied = at + 1;
    }
    doubled.extend_from_slice(&content[copied..]);
    doubled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_dots_are_doubled_and_a_single_dot_ends_the_content() {
        #[track_caller]
        fn check(content: &str, expected: &str) {
            assert_eq!(terminated(content.as_bytes().to_vec()), expected.as_bytes());
        }
        check("To: a\r\n\r\nHello.\r\n", "To: a\r\n\r\nHello.\r\n.\r\n");
        check("a\r\n.\r\nb\r\n", "a\r\n..\r\nb\r\n.\r\n");
        check("a\r\n.b\r\n..c\r\n.\r\n", "a\r\n..b\r\n...c\r\n..\r\n.\r\n");
        check("a\n.\n.b", "a\n..\n..b\r\n.\r\n");
        check("é\r\n.é", "é\r\n..é\r\n.\r\n");
        check("", "\r\n.\r\n");
    }
}
