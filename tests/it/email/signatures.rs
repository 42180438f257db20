//! DKIM signatures, verified by another implementation.

use mail_auth::DkimResult;
use offramp::tls::Tls as ClientTls;
use offramp_domain::notification::Notification;
use offramp_mail::samples::Sample;

use super::encodings;
use crate::email::message::check_form;
use crate::email::{LOCALES, bytes, composed, connection, every_sample, sample, to};
use offramp_testkit::dkim::{Dns, ED25519, RSA_PKCS1, RSA_PKCS8, signer};
use offramp_testkit::smtp_sink::SmtpSink;

/// Signs an email and verifies it as a receiver would.
async fn verified(pem: &str, notification: &Notification) -> Vec<DkimResult> {
    let signer = signer(pem);
    let mail = bytes(&composed(notification).signed_by(Some(signer.clone())));
    Dns::of(&signer).verify(&mail).await
}

#[tokio::test]
async fn every_email_has_a_valid_signature() {
    let signers = [RSA_PKCS1, RSA_PKCS8, ED25519].map(signer);
    let sink = SmtpSink::start().await;
    let mut connection = to(&sink);
    for locale in LOCALES {
        for (index, Sample { notification, variant }) in every_sample(locale).enumerate() {
            let signer = &signers[index % signers.len()];
            let mail = composed(&notification).signed_by(Some(signer.clone()));
            connection.send(&mail).await.unwrap();
            let taken = sink.drain().remove(0).bytes;
            check_form(&taken, false);
            let what = format!("{locale} {} {variant}", notification.template);
            assert_eq!(Dns::of(signer).verify(&taken).await, [DkimResult::Pass], "{what}");
        }
    }
}

#[tokio::test]
async fn signatures_are_valid_for_unusual_names_and_addresses() {
    let long = "word ".repeat(40);
    for name in ["Gym\r\n Bcc: x", "a  b\t c", "é".repeat(100).as_str(), "\"x\" <y@z>", "", &long] {
        let mut notification = sample();
        notification.facts.organization.name = name.to_owned();
        notification.facts.participant = Some(name.to_owned());
        notification.facts.failure_message = Some(format!("{name}  \n\n.\n From \t\n\n"));
        notification.to.name = Some(name.to_owned());
        notification.reply_to.as_mut().unwrap().name = Some(name.to_owned());
        for pem in [RSA_PKCS8, ED25519] {
            assert_eq!(verified(pem, &notification).await, [DkimResult::Pass], "{name:?}");
        }
    }
    // An omitted header is signed as absent.
    let mut notification = sample();
    notification.reply_to.as_mut().unwrap().email = "nobody".to_owned();
    assert_eq!(verified(RSA_PKCS8, &notification).await, [DkimResult::Pass]);
    // A recipient that needs SMTPUTF8.
    notification.to.email = "zoé@example.com".to_owned();
    assert_eq!(verified(RSA_PKCS8, &notification).await, [DkimResult::Pass]);
}

#[tokio::test]
async fn signatures_survive_relaying_but_no_other_change() {
    for pem in [RSA_PKCS8, ED25519] {
        let signer = signer(pem);
        let dns = Dns::of(&signer);
        let mail = composed(&sample()).signed_by(Some(signer.clone()));
        let mail = String::from_utf8(bytes(&mail)).unwrap();
        let holds = async |mail: String| dns.verify(mail.as_bytes()).await == [DkimResult::Pass];
        assert!(holds(mail.clone()).await);
        let (headers, body) = mail.split_once("\r\n\r\n").unwrap();

        // Changes by relays: other folding and white space, an extra empty line, added headers.
        assert!(holds(format!("Received: from here\r\n{mail}\r\n")).await);
        assert!(holds(mail.replacen("\r\nSubject: ", "\r\nSUBJECT:\r\n  ", 1)).await);
        assert!(holds(mail.replacen("X-Offramp-Template:", "X-Other:", 1)).await);

        for name in [
            "From",
            "Reply-To",
            "To",
            "Subject",
            "Date",
            "Message-ID",
            "In-Reply-To",
            "References",
            "Auto-Submitted",
            "Content-Language",
            "MIME-Version",
            "Content-Type",
        ] {
            let line = format!("\r\n{name}: ");
            assert!(headers.contains(&line), "{name}");
            assert!(!holds(mail.replacen(&line, &format!("{line}x"), 1)).await, "{name} changed");
        }
        // Mail clients differ in which of two duplicate headers they show.
        for name in ["From", "Reply-To", "To", "Subject", "Cc"] {
            assert!(!holds(format!("{name}: other@example.org\r\n{mail}")).await, "{name} put before");
            assert!(!holds(format!("{headers}\r\n{name}: other@example.org\r\n\r\n{body}")).await, "{name} added");
        }
        assert!(!holds(format!("{headers}\r\n\r\n{}", body.replacen("49,99", "94,99", 1))).await, "the body changed");
        assert!(!holds(format!("{mail}more")).await, "something added to the body");
    }
    // Another domain's key does not verify.
    let mail = bytes(&composed(&sample()).signed_by(Some(signer(RSA_PKCS8))));
    let other = Dns::new("s1._domainkey.example.com", &signer(ED25519).dns_record());
    assert_ne!(other.verify(&mail).await, [DkimResult::Pass]);
}

#[tokio::test]
async fn files_are_signed_and_encoded_for_any_reader() {
    let directory = tempfile::tempdir().unwrap();
    let signer = signer(RSA_PKCS8);
    let mut files = connection(&format!("file://{}", directory.path().display()), &ClientTls::default());
    files.send(&composed(&sample()).signed_by(Some(signer.clone()))).await.unwrap();
    let file = std::fs::read_dir(directory.path()).unwrap().next().unwrap().unwrap().path();
    let mail = std::fs::read(file).unwrap();
    check_form(&mail, false);
    assert_eq!(encodings(&mail), ["7bit", "quoted-printable", "quoted-printable"]);
    assert_eq!(Dns::of(&signer).verify(&mail).await, [DkimResult::Pass]);
}
