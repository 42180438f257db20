//! TLS with all three servers: whom we trust, and who we are. The files are read and checked once, with the settings.
//! Whether a connection is encrypted at all is not said here, but in each server's URL.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use mongodb::options::{ClientOptions, Tls as MongodbTls};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore};

use crate::advice;

/// The largest PEM file that is read, in bytes: a whole system's authorities are a quarter of it.
const PEM_BYTES_MAX: u64 = 1024 * 1024;

/// Whom we trust and who we are. By default: the system's certificate authorities, and nobody in particular. Cheap to
/// clone.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    authorities: Option<Authorities>,
    identity: Option<Identity>,
    /// Made when it is first needed, because the system's authorities take a while to read.
    config: Arc<OnceLock<Arc<ClientConfig>>>,
}

impl Tls {
    /// `authorities` are trusted *instead of* the system's; `identity` is shown to servers that ask for one.
    #[must_use]
    pub fn new(authorities: Option<Authorities>, identity: Option<Identity>) -> Self {
        Self { authorities, identity, config: Arc::default() }
    }

    /// For `rustls`. Blocks while it reads the system's authorities, if it has to.
    ///
    /// # Errors
    /// When the crypto provider lacks what TLS needs, which the one that is built in does not.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>, rustls::Error> {
        if let Some(config) = self.config.get() {
            return Ok(Arc::clone(config));
        }
        let roots = self.authorities.as_ref().map_or_else(system_roots, |given| Arc::clone(&given.roots));
        let builder = ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(given) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&given.key)))),
        };
        Ok(Arc::clone(self.config.get_or_init(|| Arc::new(config))))
    }

    /// For the driver of `MongoDB`, which reads the files itself. What the URL says stays as it is.
    pub(crate) fn fill_in(&self, options: &mut ClientOptions) {
        let Some(MongodbTls::Enabled(tls)) = &mut options.tls else { return };
        if let Some(given) = &self.authorities {
            tls.ca_file_path.get_or_insert_with(|| given.path.clone());
        }
        if let Some(given) = &self.identity {
            tls.cert_key_file_path.get_or_insert_with(|| given.path.clone());
        }
    }
}

/// Certificate authorities to trust: `OFFRAMP_TLS_CA`.
#[derive(Clone)]
pub struct Authorities {
    path: PathBuf,
    roots: Arc<RootCertStore>,
}

impl Authorities {
    /// Reads a PEM file with one or more certificates.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn read(path: &Path) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for (index, certificate) in certificates(&content(path)?)?.into_iter().enumerate() {
            roots.add(certificate).map_err(|error| format!("certificate {} in it is not one: {error}", index + 1))?;
        }
        Ok(Self { path: path.to_owned(), roots: Arc::new(roots) })
    }
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authorities({})", self.path.display())
    }
}

/// A client certificate and its private key: `OFFRAMP_TLS_CERTIFICATE`.
#[derive(Clone)]
pub struct Identity {
    path: PathBuf,
    key: Arc<CertifiedKey>,
}

impl Identity {
    /// Reads a PEM file with a certificate, those between it and its authority if there are any, and its private key.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it, without anything of the key.
    pub fn read(path: &Path) -> Result<Self, String> {
        let content = content(path)?;
        let chain = certificates(&content)?;
        let key = PrivateKeyDer::from_pem_slice(&content).map_err(|error| match error {
            pem::Error::NoItemsFound if String::from_utf8_lossy(&content).contains("ENCRYPTED") => {
                "its private key is encrypted; decrypt it with `openssl pkey -in FILE`".to_owned()
            }
            pem::Error::NoItemsFound => {
                "it holds a certificate and no private key; put both into one file: cat certificate.pem key.pem"
                    .to_owned()
            }
            error => damaged(&error),
        })?;
        let key = CertifiedKey::from_der(chain, key, &provider())
            .map_err(|error| format!("its first certificate and its private key do not go together: {error}"))?;
        Ok(Self { path: path.to_owned(), key: Arc::new(key) })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.path.display())
    }
}

/// Why a connection failed, with what to do about it where that has to do with certificates. `is_handshake` is whether the
/// server may have meant us when it merely ended the connection.
pub(crate) fn explain(error: &str, is_handshake: bool) -> String {
    advice::append(error, advice::tls(error, is_handshake))
}

/// The one crypto provider. Every crate is told or compiled to use it: `cargo tree` has no other.
fn provider() -> CryptoProvider {
    rustls::crypto::ring::default_provider()
}

/// A system without any is no error here: its servers may need none.
fn system_roots() -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    Arc::new(roots)
}

fn content(path: &Path) -> Result<Vec<u8>, String> {
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(PEM_BYTES_MAX + 1).read_to_end(&mut content))
        .map_err(|error| format!("it cannot be read: {error}"))?;
    if content.len() as u64 > PEM_BYTES_MAX {
        return Err(format!("it is larger than {PEM_BYTES_MAX} bytes"));
    }
    Ok(content)
}

fn certificates(content: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(content).collect::<Result<_, _>>().map_err(|error| damaged(&error))?;
    if certificates.is_empty() {
        return Err("it holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)".to_owned());
    }
    Ok(certificates)
}

/// Says nothing of the content, which may be a key.
fn damaged(error: &pem::Error) -> String {
    let why = match error {
        pem::Error::MissingSectionEnd { .. } => "a part of it has no end (-----END …-----)",
        pem::Error::IllegalSectionStart { .. } => "a line that begins a part of it is damaged (-----BEGIN …-----)",
        pem::Error::Base64Decode(_) => "a part of it is not base64",
        _ => "it is not PEM",
    };
    why.to_owned()
}

#[cfg(test)]
mod tests;
