//! Authorities and certificates, right and wrong, from files.

use std::fs;

use rcgen::{CertificateParams, KeyPair};

use super::*;

/// A file with this content is refused by both, or by one, with these words.
#[track_caller]
fn check<T>(read: fn(&Path) -> Result<T, String>, content: &str, says: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), content).unwrap();
    let sentence = read(file.path()).err().unwrap();
    assert!(sentence.contains(says), "{sentence}");
    assert!(!sentence.contains("s3cret"), "{sentence}");
}

#[test]
fn files_that_are_of_no_use_are_refused_with_a_sentence() {
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let certificate = CertificateParams::new(vec!["a.test".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    let key = key.serialize_pem();

    check(Authorities::read, "", "it holds no certificate");
    check(Authorities::read, &key, "it holds no certificate");
    check(Authorities::read, "-----BEGIN CERTIFICATE-----\ns3cret!!\n-----END CERTIFICATE-----\n", "is not base64");
    check(
        Authorities::read,
        "-----BEGIN CERTIFICATE-----\nczNjcmV0\n-----END CERTIFICATE-----\n",
        "certificate 1 in it",
    );
    check(Authorities::read, "-----BEGIN CERTIFICATE-----\ns3cret", "has no end");
    check(Authorities::read, &"x".repeat(1024 * 1024 + 1), "larger than");
    check(Identity::read, &key, "it holds no certificate");
    check(Identity::read, &certificate, "no private key; put both into one file");
    check(Identity::read, &(certificate.clone() + &other.serialize_pem()), "do not go together");
    check(Identity::read, &(certificate.clone() + "-----BEGIN ENCRYPTED PRIVATE KEY-----\ns3cret\n"), "has no end");
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nczNjcmV0\n-----END ENCRYPTED PRIVATE KEY-----\n";
    check(Identity::read, &(certificate.clone() + encrypted), "its private key is encrypted");
    check(Identity::read, &(certificate + "-----BEGIN s3cret\n"), "damaged");
    assert!(Authorities::read(Path::new("/does/not/exist")).unwrap_err().contains("No such file"));
}

#[test]
fn certificate_and_key_may_come_in_any_order_and_nothing_of_the_key_is_shown() {
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
async fn the_url_of_mongodb_has_the_first_word() {
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

#[test]
fn trouble_with_certificates_is_told_with_what_to_set() {
    let is_told = |error, is_handshake, setting| explain(error, is_handshake).contains(setting);
    assert!(is_told("invalid peer certificate: UnknownIssuer", false, "OFFRAMP_TLS_CA"));
    assert!(is_told("received fatal alert: CertificateRequired", false, "OFFRAMP_TLS_CERTIFICATE"));
    assert!(is_told("Connection reset by peer (os error 104)", true, "OFFRAMP_TLS_CERTIFICATE"));
    for (error, is_handshake) in [("Connection reset by peer (os error 104)", false), ("Connection refused", true)] {
        assert_eq!(explain(error, is_handshake), error);
    }
}
