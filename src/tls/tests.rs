//! Authorities and client certificates, valid and invalid, read from files.

use std::fs;

use rcgen::{CertificateParams, KeyPair};

use super::*;

/// `read` rejects a file with this content, with an error that contains `words` and never quotes the file.
#[track_caller]
fn check<T>(read: fn(&Path) -> Result<T, String>, content: &str, words: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), content).unwrap();
    let error = read(file.path()).err().unwrap();
    assert!(error.contains(words), "{error}");
    assert!(!error.contains("s3cret"), "{error}");
}

#[test]
fn unusable_files_are_rejected_with_a_reason_that_quotes_nothing() {
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let certificate = CertificateParams::new(vec!["a.test".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    let key = key.serialize_pem();

    check(Authorities::read, "", "contains no PEM certificate");
    check(Authorities::read, &key, "contains no PEM certificate");
    check(Authorities::read, "-----BEGIN CERTIFICATE-----\ns3cret!!\n-----END CERTIFICATE-----\n", "invalid base64");
    check(
        Authorities::read,
        "-----BEGIN CERTIFICATE-----\nczNjcmV0\n-----END CERTIFICATE-----\n",
        "certificate 1 of the file is invalid",
    );
    check(Authorities::read, "-----BEGIN CERTIFICATE-----\ns3cret", "has no end line");
    check(Authorities::read, &"x".repeat(1024 * 1024 + 1), "larger than");
    check(Identity::read, &key, "contains no PEM certificate");
    check(Identity::read, &certificate, "no private key; put both into one file");
    check(Identity::read, &(certificate.clone() + &other.serialize_pem()), "does not match");
    check(
        Identity::read,
        &(certificate.clone() + "-----BEGIN ENCRYPTED PRIVATE KEY-----\ns3cret\n"),
        "has no end line",
    );
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nczNjcmV0\n-----END ENCRYPTED PRIVATE KEY-----\n";
    check(Identity::read, &(certificate.clone() + encrypted), "the private key is encrypted");
    check(Identity::read, &(certificate + "-----BEGIN s3cret\n"), "invalid start line");
    assert!(Authorities::read(Path::new("/does/not/exist")).unwrap_err().contains("No such file"));
}

#[test]
fn certificate_and_key_come_in_any_order_and_debug_output_hides_the_key() {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["a.test".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    let file = tempfile::NamedTempFile::new().unwrap();
    for content in [certificate.clone() + &key.serialize_pem(), key.serialize_pem() + &certificate] {
        fs::write(file.path(), content).unwrap();
        let tls = Tls::new(None, Some(Identity::read(file.path()).unwrap()));
        tls.client_config().unwrap();
        assert_eq!(format!("{:?}", tls.identity.unwrap()), format!("Identity({})", file.path().display()));
    }
}

#[tokio::test]
async fn files_named_in_the_mongodb_url_take_precedence() {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["a.test".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), certificate + &key.serialize_pem()).unwrap();
    let tls = Tls::new(Some(Authorities::read(file.path()).unwrap()), Some(Identity::read(file.path()).unwrap()));

    let ours = file.path().display().to_string();
    for (url, ca, certificate) in [
        ("mongodb://db/x?tls=true", &*ours, &*ours),
        ("mongodb://db/x?tlsCAFile=/a.pem", "/a.pem", &ours),
        ("mongodb://db/x?tlsCertificateKeyFile=/b.pem", &ours, "/b.pem"),
    ] {
        let mut options = ClientOptions::parse(url).await.unwrap();
        tls.fill_in(&mut options);
        let Some(MongodbTls::Enabled(options)) = options.tls else { panic!("{url}: {:?}", options.tls) };
        assert_eq!(options.ca_file_path.unwrap(), Path::new(ca), "{url}");
        assert_eq!(options.cert_key_file_path.unwrap(), Path::new(certificate), "{url}");
    }
    for url in ["mongodb://db/x", "mongodb://db/x?tls=false"] {
        let mut options = ClientOptions::parse(url).await.unwrap();
        tls.fill_in(&mut options);
        assert!(!matches!(options.tls, Some(MongodbTls::Enabled(_))), "{url}");
    }
}
