//! Keys to sign emails with, and a receiver who looks whether signatures hold: the crate `mail-auth`, which shares nothing
//! with how they are made but the arithmetic.

use std::borrow::Borrow;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Instant;

use mail_auth::common::parse::TxtRecordParser;
use mail_auth::common::verify::DomainKey;
use mail_auth::hickory_resolver::config::{ResolverConfig, ResolverOpts};
use mail_auth::{AuthenticatedMessage, DkimResult, MessageAuthenticator, Parameters, ResolverCache, Txt};
use offramp_mail::{DkimKey, DkimSigner};

/// Made for tests alone with `openssl genrsa -traditional`, and the same key in PKCS#8.
pub const RSA_PKCS1: &str = include_str!("dkim/rsa.pkcs1.pem");
pub const RSA_PKCS8: &str = include_str!("dkim/rsa.pkcs8.pem");
/// `openssl genpkey -algorithm ed25519`
pub const ED25519: &str = include_str!("dkim/ed25519.pem");

/// Signs with this key as `s1` of `example.com`.
pub fn signer(pem: &str) -> Arc<DkimSigner> {
    Arc::new(DkimSigner::new(DkimKey::parse(pem).unwrap(), "s1".to_owned(), "example.com".to_owned()))
}

/// A DNS with one TXT record in it.
pub struct Dns {
    name: String,
    record: Txt,
}

impl Dns {
    pub fn new(name: &str, record: &str) -> Self {
        let key = DomainKey::parse(record.as_bytes()).expect("a DKIM record");
        Self { name: format!("{name}."), record: Txt::DomainKey(Arc::new(key)) }
    }

    /// The DNS that receivers of this signer's emails need.
    pub fn of(signer: &DkimSigner) -> Self {
        Self::new(&signer.dns_name(), &signer.dns_record())
    }

    /// What a receiver makes of the email's signatures: one result for each.
    pub async fn verify(&self, mail: &[u8]) -> Vec<DkimResult> {
        // It has no server to ask, so a name that is not in this DNS is an error.
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
