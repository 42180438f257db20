//! DKIM keys for tests, and a receiver that verifies signatures with `mail-auth`, an implementation independent of the program's.

use std::borrow::Borrow;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Instant;

use mail_auth::common::parse::TxtRecordParser;
use mail_auth::common::verify::DomainKey;
use mail_auth::hickory_resolver::config::{ResolverConfig, ResolverOpts};
use mail_auth::{AuthenticatedMessage, DkimResult, MessageAuthenticator, Parameters, ResolverCache, Txt};
use offramp_mail::{DkimKey, DkimSigner};

/// A test key from `openssl genrsa -traditional`. [`RSA_PKCS8`] is the same key.
pub const RSA_PKCS1: &str = include_str!("dkim/rsa.pkcs1.pem");
pub const RSA_PKCS8: &str = include_str!("dkim/rsa.pkcs8.pem");
/// `openssl genpkey -algorithm ed25519`
pub const ED25519: &str = include_str!("dkim/ed25519.pem");

/// A signer with this key, selector `s1` and domain `example.com`.
pub fn signer(pem: &str) -> Arc<DkimSigner> {
    Arc::new(DkimSigner::new(DkimKey::parse(pem).unwrap(), "s1".to_owned(), "example.com".to_owned()))
}

/// A DNS with a single TXT record.
pub struct Dns {
    name: String,
    record: Txt,
}

impl Dns {
    pub fn new(name: &str, record: &str) -> Self {
        let key = DomainKey::parse(record.as_bytes()).expect("a DKIM record");
        Self { name: format!("{name}."), record: Txt::DomainKey(Arc::new(key)) }
    }

    /// The DNS with this signer's record.
    pub fn of(signer: &DkimSigner) -> Self {
        Self::new(&signer.dns_name(), &signer.dns_record())
    }

    /// The verification result of each signature of an email.
    pub async fn verify(&self, mail: &[u8]) -> Vec<DkimResult> {
        // Without servers, a lookup of any other name fails.
        let config = ResolverConfig::from_parts(None, vec![], vec![]);
        let receiver = MessageAuthenticator::new(config, ResolverOpts::default()).unwrap();
        let message = AuthenticatedMessage::parse(mail).expect("an email");
        let parameters = Parameters::new(&message).with_txt_cache(self);
        receiver.verify_dkim(parameters).await.iter().map(|output| output.result().clone()).collect()
    }
}

impl ResolverCache<Box<str>, Txt> for Dns {
    fn get<Q>(&self, name: &Q) -> Option<Txt>
    where
        Box<str>: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let own: Box<str> = self.name.as_str().into();
        (own.borrow() == name).then(|| self.record.clone())
    }

    fn remove<Q>(&self, _: &Q) -> Option<Txt>
    where
        Box<str>: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        None
    }

    fn insert(&self, _: Box<str>, _: Txt, _: Instant) {}
}
