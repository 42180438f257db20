//! TLS settings for all three servers: trusted authorities and our client certificate. Both files are read and checked once,
//! with the other settings. Whether a connection is encrypted is decided by each server's URL, never here.

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
use strum::EnumIter;

/// The largest accepted PEM file, in bytes. A system's complete set of authorities is a quarter of that.
const PEM_BYTES_MAX: u64 = 1024 * 1024;

/// Trusted authorities and our client certificate. By default, the system's authorities and no certificate. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    authorities: Option<Authorities>,
    identity: Option<Identity>,
    /// Built on first use, because reading the system's authorities takes a while.
    config: Arc<OnceLock<Arc<ClientConfig>>>,
}

impl Tls {
    /// `authorities` *replace* the system's; `identity` is presented to servers that request a client certificate.
    #[must_use]
    pub fn new(authorities: Option<Authorities>, identity: Option<Identity>) -> Self {
        Self { authorities, identity, config: Arc::default() }
    }

    /// The configuration for `rustls`. The first call may block while it reads the system's authorities.
    ///
    /// # Errors
    /// When the crypto provider supports no safe protocol version. The built-in provider does.
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

    /// Configures the MongoDB driver, which reads the files itself. Files named in the URL take precedence.
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

/// Certificate authorities to trust.
#[derive(Clone)]
pub struct Authorities {
    path: PathBuf,
    roots: Arc<RootCertStore>,
}

impl Authorities {
    /// Reads a PEM file with one or more certificates.
    ///
    /// # Errors
    /// A sentence that explains why the file is unusable.
    pub fn read(path: &Path) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for (index, certificate) in certificates(&content(path)?)?.into_iter().enumerate() {
            roots
                .add(certificate)
                .map_err(|error| format!("certificate {} of the file is invalid: {error}", index + 1))?;
        }
        Ok(Self { path: path.to_owned(), roots: Arc::new(roots) })
    }
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authorities({})", self.path.display())
    }
}

/// A client certificate and its private key.
#[derive(Clone)]
pub struct Identity {
    path: PathBuf,
    key: Arc<CertifiedKey>,
}

impl Identity {
    /// Reads a PEM file with a certificate, its intermediate certificates (if any) and its private key.
    ///
    /// # Errors
    /// A sentence that explains why the file is unusable, and never quotes the key.
    pub fn read(path: &Path) -> Result<Self, String> {
        let content = content(path)?;
        let chain = certificates(&content)?;
        let key = PrivateKeyDer::from_pem_slice(&content).map_err(|error| match error {
            pem::Error::NoItemsFound if String::from_utf8_lossy(&content).contains("ENCRYPTED") => {
                "the private key is encrypted; decrypt it with `openssl pkey -in FILE`".to_owned()
            }
            pem::Error::NoItemsFound => {
                "the file contains a certificate but no private key; put both into one file: cat certificate.pem key.pem"
                    .to_owned()
            }
            error => damaged(&error),
        })?;
        let key = CertifiedKey::from_der(chain, key, &provider())
            .map_err(|error| format!("the private key does not match the first certificate: {error}"))?;
        Ok(Self { path: path.to_owned(), key: Arc::new(key) })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.path.display())
    }
}

/// Why a connection over TLS failed, where certificates are the cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumIter)]
pub enum TlsFault {
    UntrustedServer,
    WrongServerName,
    ExpiredServer,
    NotTls,
    ClientRejected,
}

impl TlsFault {
    /// Reads the fault from the text of an error: no library reports it in a type. `in_handshake`: the connection ended before the
    /// server's first words over TLS, which is how some servers reject a client certificate.
    #[must_use]
    pub fn classify(error: &str, in_handshake: bool) -> Option<Self> {
        let has = |words: &[&str]| words.iter().any(|word| error.contains(word));
        match () {
            () if has(&["UnknownIssuer", "BadSignature"]) => Some(Self::UntrustedServer),
            () if has(&["not valid for name"]) => Some(Self::WrongServerName),
            () if has(&["certificate expired"]) => Some(Self::ExpiredServer),
            () if has(&["InvalidContentType", "tls handshake eof"]) => Some(Self::NotTls),
            () if has(&["received fatal alert"]) || in_handshake && has(&CLOSED) => Some(Self::ClientRejected),
            () => None,
        }
    }

    /// The fault in a sentence.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UntrustedServer => "no trusted authority signed the server's certificate",
            Self::WrongServerName => "the host in the URL must be a name in the server's certificate",
            Self::ExpiredServer => "the server needs a new certificate",
            Self::NotTls => "the server does not speak TLS on this port",
            Self::ClientRejected => "the server may require a client certificate, or another one",
        }
    }

    /// The text of an error, with the fault that it shows.
    pub(crate) fn explain(error: String, in_handshake: bool) -> String {
        match Self::classify(&error, in_handshake) {
            Some(fault) => format!("{error} ({})", fault.as_str()),
            None => error,
        }
    }
}

/// How it looks when a server rejects a certificate by closing the connection.
const CLOSED: [&str; 3] = ["without sending TLS close_notify", "reset by peer", "Broken pipe"];

/// The only crypto provider: every crate is configured or compiled to use it, and `cargo tree` contains no other.
fn provider() -> CryptoProvider {
    rustls::crypto::ring::default_provider()
}

/// Not an error on a system without authorities: its servers may not use TLS.
fn system_roots() -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    Arc::new(roots)
}

fn content(path: &Path) -> Result<Vec<u8>, String> {
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(PEM_BYTES_MAX + 1).read_to_end(&mut content))
        .map_err(|error| format!("the file cannot be read: {error}"))?;
    if content.len() as u64 > PEM_BYTES_MAX {
        return Err(format!("the file is larger than {PEM_BYTES_MAX} bytes"));
    }
    Ok(content)
}

fn certificates(content: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(content).collect::<Result<_, _>>().map_err(|error| damaged(&error))?;
    if certificates.is_empty() {
        return Err("the file contains no PEM certificate (-----BEGIN CERTIFICATE-----)".to_owned());
    }
    Ok(certificates)
}

/// Never quotes the content, which may be a key.
fn damaged(error: &pem::Error) -> String {
    let why = match error {
        pem::Error::MissingSectionEnd { .. } => "a PEM section has no end line (-----END …-----)",
        pem::Error::IllegalSectionStart { .. } => "a PEM section has an invalid start line (-----BEGIN …-----)",
        pem::Error::Base64Decode(_) => "a PEM section contains invalid base64",
        _ => "the file is not valid PEM",
    };
    why.to_owned()
}

#[cfg(test)]
mod tests;
