//! Emails written to files instead of a server.

use std::fs;

use offramp::tls::Tls as ClientTls;
use offramp_mail::SendError;

use super::{bytes, composed, connection, sample};

#[tokio::test]
async fn emails_become_complete_and_safely_named_files() {
    let directory = tempfile::tempdir().unwrap();
    let emails = directory.path().join("new/mails");
    let mut connection = connection(&format!("file://{}", emails.display()), &ClientTls::default());
    let mail = composed(&sample());
    connection.send(&mail).await.unwrap();
    connection.send(&mail).await.unwrap();
    let names: Vec<_> =
        fs::read_dir(&emails).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let name = "2026-06-14T120000Z-payment-failed-marie.tremblay_example.com-00000000-0000-0000-0000-00000000002a.eml";
    assert_eq!(names, [name]);
    assert_eq!(fs::read(emails.join(name)).unwrap(), bytes(&mail));
    connection.quit().await;

    fs::remove_dir_all(&emails).unwrap();
    let error = connection.send(&mail).await.unwrap_err();
    assert!(matches!(error, SendError::Unavailable(_)), "{error}");
}
