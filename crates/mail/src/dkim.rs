//! DKIM signatures (RFC 6376, RFC 8463): a domain vouches for an email with a private key. The public key is in its DNS.
//!
//! `ring` makes the signatures, not lettre. lettre's feature `dkim` depends on the crate `rsa`, which leaks the key through
//! the time that a signature takes (RUSTSEC-2023-0071). It also takes three times as long, reads only one format of key
//! files, and signs only what lettre's own, slow builder has made.

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use chrono::{DateTime, Utc};
use ring::digest::{SHA256, digest};
use rustls::SignatureScheme;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::Signer;

/// The headers that are signed. An absent one (`Reply-To` is optional) is signed as absent, so that nobody can add it.
const SIGNED: [&str; 12] = [
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
];

/// The headers that nobody may add another one of: some email clients would show the first, and some the last.
const SEALED: [&str; 5] = ["From", "Reply-To", "To", "Cc", "Subject"];

/// The longest line of base64, in characters.
const BASE64_LINE_MAX: usize = 72;

/// The length of an Ed25519 public key, in bytes.
const ED25519_BYTES: usize = 32;

/// Signs emails for a domain.
pub struct DkimSigner {
    key: DkimKey,
    selector: String,
    domain: String,
}

impl fmt::Debug for DkimSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DkimSigner({})", self.dns_name())
    }
}

impl DkimSigner {
    /// Signs with `key`. Its public key is published as `selector` of `domain`: see [`parse_selector`] and [`parse_domain`].
    #[must_use]
    pub fn new(key: DkimKey, selector: String, domain: String) -> Self {
        Self { key, selector, domain }
    }

    /// The domain that vouches for emails.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The DNS name at which receivers look up the public key.
    #[must_use]
    pub fn dns_name(&self) -> String {
        format!("{}._domainkey.{}", self.selector, self.domain)
    }

    /// The TXT record that must be there.
    #[must_use]
    pub fn dns_record(&self) -> String {
        format!("v=DKIM1; k={}; p={}", self.key.kind.as_str(), self.key.public)
    }

    /// The header `DKIM-Signature` of an email, with its line end. It goes before all other headers. `headers` end in CRLF;
    /// `body` is everything after the empty line. The same email always gets the same signature.
    ///
    /// # Errors
    /// When signing fails.
    pub(crate) fn sign(&self, headers: &[u8], body: &[u8], at: DateTime<Utc>) -> Result<String, SigningError> {
        let body_hash = BASE64.encode(digest(&SHA256, &relaxed_body(body)));
        let names: Vec<&str> = SIGNED.into_iter().chain(SEALED).collect();
        let names: Vec<String> = names.chunks(5).map(|line| line.join(":")).collect();
        let mut signature = format!(
            "DKIM-Signature: v=1; a={}-sha256; c=relaxed/relaxed; t={};\r\n d={};\r\n s={};\r\n h={};\r\n bh={body_hash};\r\n b=",
            self.key.kind.as_str(),
            at.timestamp(),
            self.domain,
            self.selector,
            names.join(":\r\n "),
        );

        let fields = fields(headers);
        let mut signed = Vec::with_capacity(headers.len() + signature.len());
        for name in SIGNED {
            if let Some(field) = fields.iter().find(|field| is_named(field, name)) {
                relaxed_field(field, &mut signed);
                signed.extend_from_slice(b"\r\n");
            }
        }
        // A sealed header occurs only once, so its second mention in `h=` adds nothing here.
        relaxed_field(signature.as_bytes(), &mut signed);
        let made = match self.key.kind {
            Kind::Rsa => self.key.signer.sign(&signed)?,
            // RFC 8463: the hash is signed, not the data itself.
            Kind::Ed25519 => self.key.signer.sign(digest(&SHA256, &signed).as_ref())?,
        };

        let made = BASE64.encode(made);
        let mut rest = made.as_str();
        while rest.len() > BASE64_LINE_MAX {
            let (line, more) = rest.split_at(BASE64_LINE_MAX);
            signature.push_str(line);
            signature.push_str("\r\n ");
            rest = more;
        }
        signature.push_str(rest);
        signature.push_str("\r\n");
        Ok(signature)
    }
}

/// A failed signature. Retrying may help.
#[derive(Debug, thiserror::Error)]
#[error("the email cannot be signed: {0}")]
pub struct SigningError(#[from] rustls::Error);

/// The private key that emails are signed with. Its `Debug` omits the key.
#[derive(Clone)]
pub struct DkimKey {
    signer: Arc<dyn Signer>,
    kind: Kind,
    /// The public key, as in DNS.
    public: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Rsa,
    Ed25519,
}

impl Kind {
    /// The name in DNS records, and the first part of the algorithm's name in signatures.
    fn as_str(self) -> &'static str {
        match self {
            Self::Rsa => "rsa",
            Self::Ed25519 => "ed25519",
        }
    }

    fn scheme(self) -> SignatureScheme {
        match self {
            Self::Rsa => SignatureScheme::RSA_PKCS1_SHA256,
            Self::Ed25519 => SignatureScheme::ED25519,
        }
    }
}

impl DkimKey {
    /// Parses a private key in PEM form: RSA (PKCS#1 or PKCS#8) of 2048 to 4096 bits, or Ed25519 (PKCS#8). Line breaks may be
    /// written `\n`, as in environment files.
    ///
    /// # Errors
    /// A sentence that says what is wrong with the key, without any part of it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let pem = text.replace("\\n", "\n");
        let der = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| {
            if pem.contains("ENCRYPTED") {
                "it is encrypted; decrypt it with `openssl pkey -in FILE`"
            } else {
                "it is not a private key in PEM form (-----BEGIN PRIVATE KEY-----), or it is damaged"
            }
        })?;
        let unfit = || "it is neither an RSA key of 2048 to 4096 bits nor an Ed25519 key".to_owned();
        let key = any_supported_type(&der).map_err(|_| unfit())?;
        let (kind, signer) = [Kind::Rsa, Kind::Ed25519]
            .into_iter()
            .find_map(|kind| Some((kind, key.choose_scheme(&[kind.scheme()])?)))
            .ok_or_else(unfit)?;
        let public = key.public_key().ok_or_else(unfit)?;
        let public = match kind {
            Kind::Rsa => public.as_ref(),
            // RFC 8463: the bare key, which comes last in the DER structure.
            Kind::Ed25519 => public.last_chunk::<ED25519_BYTES>().ok_or_else(unfit)?,
        };
        Ok(Self { signer: signer.into(), kind, public: BASE64.encode(public) })
    }
}

impl fmt::Debug for DkimKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DkimKey({})", self.kind.as_str())
    }
}

/// Parses a selector: the name of a key among the keys of a domain.
///
/// # Errors
/// A sentence, when it cannot be part of a DNS name.
pub fn parse_selector(text: &str) -> Result<String, String> {
    if text.split('.').all(is_label) {
        Ok(text.to_owned())
    } else {
        Err("a selector consists of letters, digits, dashes and underscores, such as offramp or 2026-06".to_owned())
    }
}

/// Parses the name of a domain. An internationalised name becomes its `xn--` form.
///
/// # Errors
/// A sentence, when it is not a domain.
pub fn parse_domain(text: &str) -> Result<String, String> {
    match url::Host::parse(text.trim().trim_end_matches('.')) {
        Ok(url::Host::Domain(domain)) if domain.split('.').all(is_label) => Ok(domain),
        _ => Err("it is not a domain, such as example.com".to_owned()),
    }
}

/// Whether it can stand between the dots of a DNS name. Any other character could end a field of a signature.
fn is_label(label: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=63).contains(&label.len()) && label.bytes().all(allowed)
}

/// The headers, each with its continuation lines, without its last line end.
fn fields(headers: &[u8]) -> Vec<&[u8]> {
    let mut fields = Vec::new();
    let mut start = 0;
    for (at, pair) in headers.windows(2).enumerate() {
        let is_over = pair == b"\r\n" && !matches!(headers.get(at + 2), Some(b' ' | b'\t'));
        if is_over && at >= start {
            fields.push(&headers[start..at]);
            start = at + 2;
        }
    }
    fields
}

fn is_named(field: &[u8], name: &str) -> bool {
    field.split(|&byte| byte == b':').next().is_some_and(|it| it.trim_ascii_end().eq_ignore_ascii_case(name.as_bytes()))
}

/// Writes a header in relaxed canonical form (RFC 6376 §3.4.2): the name in lower case, everything on one line, one space for
/// each run of white space, none at either end.
fn relaxed_field(field: &[u8], out: &mut Vec<u8>) {
    let colon = field.iter().position(|&byte| byte == b':').unwrap_or(field.len());
    let (name, value) = field.split_at(colon);
    out.extend(name.trim_ascii_end().iter().map(u8::to_ascii_lowercase));
    out.push(b':');
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
    let words = value.get(1..).unwrap_or_default().split(is_space).filter(|word| !word.is_empty());
    for (index, word) in words.enumerate() {
        if index > 0 {
            out.push(b' ');
        }
        out.extend_from_slice(word);
    }
}

/// A body in relaxed canonical form (RFC 6376 §3.4.4): one space for each run of white space, none at the end of a line, no
/// empty lines at the end.
fn relaxed_body(body: &[u8]) -> Vec<u8> {
    let mut relaxed = Vec::with_capacity(body.len());
    let mut space = false;
    for &byte in body {
        match byte {
            b' ' | b'\t' => space = true,
            b'\r' | b'\n' => {
                space = false;
                relaxed.push(byte);
            }
            _ => {
                if std::mem::take(&mut space) {
                    relaxed.push(b' ');
                }
                relaxed.push(byte);
            }
        }
    }
    while relaxed.ends_with(b"\r\n\r\n") {
        relaxed.truncate(relaxed.len() - 2);
    }
    relaxed
}

#[cfg(test)]
mod tests;
