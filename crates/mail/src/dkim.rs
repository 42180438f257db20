//! DKIM signatures (RFC 6376, RFC 8463): a domain vouches for a mail with a private key, whose public half is in its DNS.
//!
//! Made here with `ring`, and not by lettre. Its feature `dkim` brings the crate `rsa`, whose signatures can tell a key
//! by the time that they take (RUSTSEC-2023-0071), takes three times as long, reads only one kind of key file, and signs
//! only what its own, slow builder has made.

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

/// The headers that are signed. Signed without being there (`Reply-To` may be left out), they cannot be added, either.
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

/// Those that nobody may add one more of: some programs would show the first, and some the last.
const SEALED: [&str; 5] = ["From", "Reply-To", "To", "Cc", "Subject"];

/// How many characters of base64 stand in a line.
const BASE64_LINE_MAX: usize = 72;

/// The length of an Ed25519 public key, in bytes.
const ED25519_BYTES: usize = 32;

/// Why a mail is not signed. The key has signed before, so that may pass.
#[derive(Debug, thiserror::Error)]
#[error("the mail cannot be signed: {0}")]
pub struct SigningError(#[from] rustls::Error);

/// The private key that mails are signed with: `OFFRAMP_DKIM_KEY`. Its `Debug` shows nothing of it.
#[derive(Clone)]
pub struct DkimKey {
    signer: Arc<dyn Signer>,
    kind: Kind,
    /// The public half, as the DNS has it.
    public: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Rsa,
    Ed25519,
}

impl Kind {
    /// Its name in DNS records, and the first part of its name in signatures.
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
    /// Reads a private key in PEM form: RSA (PKCS#1 or PKCS#8) of 2048 to 4096 bits, or Ed25519 (PKCS#8). Line breaks may be
    /// written `\n`, as in files of variables.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it, without anything of the key.
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
            // RFC 8463: the key alone, which is the last thing in it.
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

/// Reads a selector: the name of a key among those of a domain.
///
/// # Errors
/// A sentence, when no DNS name can begin with it.
pub fn parse_selector(text: &str) -> Result<String, String> {
    if text.split('.').all(is_label) {
        Ok(text.to_owned())
    } else {
        Err("a selector has letters, digits, dashes and underscores, such as offramp or 2026-06".to_owned())
    }
}

/// Reads the name of a domain. One in letters beyond ASCII gets its `xn--` form.
///
/// # Errors
/// A sentence, when it is no domain.
pub fn parse_domain(text: &str) -> Result<String, String> {
    match url::Host::parse(text.trim().trim_end_matches('.')) {
        Ok(url::Host::Domain(domain)) if domain.split('.').all(is_label) => Ok(domain),
        _ => Err("it is not the name of a domain, such as example.com".to_owned()),
    }
}

/// Whether a name in the DNS can have it between two dots. What else there might be would also end a field of a signature.
fn is_label(label: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=63).contains(&label.len()) && label.bytes().all(allowed)
}

/// Signs mails for a domain.
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
    /// Signs with `key`, whose public half is published as `selector` of `domain`: see [`parse_selector`] and
    /// [`parse_domain`].
    #[must_use]
    pub fn new(key: DkimKey, selector: String, domain: String) -> Self {
        Self { key, selector, domain }
    }

    /// The domain that vouches for mails.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The name under which receivers look for the public key.
    #[must_use]
    pub fn dns_name(&self) -> String {
        format!("{}._domainkey.{}", self.selector, self.domain)
    }

    /// The TXT record that they must find there.
    #[must_use]
    pub fn dns_record(&self) -> String {
        format!("v=DKIM1; k={}; p={}", self.key.kind.as_str(), self.key.public)
    }

    /// The header `DKIM-Signature` of a mail, with its line end, to be put before all others. `headers` end in CRLF; `body` is
    /// everything after the empty line. The same mail has the same signature.
    ///
    /// # Errors
    /// When the key does not sign.
    pub(super) fn sign(&self, headers: &[u8], body: &[u8], at: DateTime<Utc>) -> Result<String, SigningError> {
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
        // There are no more of those that are sealed: that is what is signed of them.
        relaxed_field(signature.as_bytes(), &mut signed);
        let made = match self.key.kind {
            Kind::Rsa => self.key.signer.sign(&signed)?,
            // RFC 8463 has the hash signed, and not what was hashed.
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

/// The headers, each with its further lines, without its last line end.
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

/// Writes a header in the form in which it is signed (RFC 6376 §3.4.2): its name in small letters, on one line, with one
/// space where there was white space, and none at both ends.
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

/// A body in the form in which it is hashed (RFC 6376 §3.4.4): one space where there was white space, none at the end of a
/// line, and no empty lines at its end.
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
