//! The body of a mail: a text and the same in HTML, in lines that every server takes (RFC 2045, RFC 2046).
//!
//! Written here and not by lettre's builder or the crate `quoted_printable`, which take longer for this than a whole mail may
//! (`benches/mail.rs` measures it).

use std::{iter, mem};

use memchr::{memchr, memchr2_iter, memmem, memrchr};
use uuid::Uuid;

/// The longest line that SMTP carries, in bytes, without its end (RFC 5321 §4.5.3.1.6).
const LINE_BYTES_MAX: usize = 998;

/// The most characters in a line of quoted-printable, without the `=` of a soft line break.
const QUOTED_LINE_MAX: usize = 75;

/// How a line between two parts begins, after the end of the one before. There is a `=` in it, so no line of quoted-printable
/// begins so.
const BOUNDARY_LINE: &[u8] = b"\n--=_";

/// What is written around the two parts, in bytes, roughly.
const FRAME_BYTES: usize = 512;

/// How both parts are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    /// In UTF-8, for servers that know 8BITMIME.
    AsItIs,
    /// In ASCII, for everybody.
    QuotedPrintable,
}

/// A text, and the same in HTML: `multipart/alternative`.
#[derive(Clone, Debug)]
pub(super) struct Alternative<'a> {
    text: &'a str,
    html: &'a str,
    /// What stands between the parts, with two dashes before it.
    boundary: String,
}

impl<'a> Alternative<'a> {
    /// The same `id` makes the same bytes.
    pub fn new(text: &'a str, html: &'a str, id: Uuid) -> Self {
        Self { text, html, boundary: format!("=_{}", id.simple()) }
    }

    /// Whether both parts can be sent as they are: no line is too long, nothing in them could be taken for the end of a part,
    /// and there is nothing that no line may have in it.
    pub fn fits_as_it_is(&self) -> bool {
        [self.text, self.html].map(str::as_bytes).into_iter().all(|part| {
            lines_are_short(part)
                && !part.starts_with(&BOUNDARY_LINE[1..])
                && memmem::find(part, BOUNDARY_LINE).is_none()
                && memchr2_iter(b'\r', b'\0', part).all(|at| part[at..].starts_with(b"\r\n"))
        })
    }

    /// How many bytes it will take, roughly.
    pub fn size_hint(&self, encoding: Encoding) -> usize {
        let bytes = self.text.len() + self.html.len();
        FRAME_BYTES
            + match encoding {
                Encoding::AsItIs => bytes + bytes / 16,
                Encoding::QuotedPrintable => bytes + bytes / 4,
            }
    }

    /// The headers that say what follows, without the empty line that ends all headers.
    pub fn write_headers(&self, encoding: Encoding, mail: &mut Vec<u8>) {
        put(
            mail,
            &["MIME-Version: 1.0\r\nContent-Type: multipart/alternative;\r\n boundary=\"", &self.boundary, "\"\r\n"],
        );
        // It must be said of the whole as soon as it is true of a part; else "7bit" goes without saying.
        if [self.text, self.html].map(|part| transfer_encoding(encoding, part)).contains(&"8bit") {
            put(mail, &["Content-Transfer-Encoding: 8bit\r\n"]);
        }
    }

    /// Everything after the empty line.
    pub fn write(&self, encoding: Encoding, mail: &mut Vec<u8>) {
        for (kind, part) in [("plain", self.text), ("html", self.html)] {
            put(mail, &["--", &self.boundary, "\r\nContent-Type: text/", kind, "; charset=utf-8\r\n"]);
            put(mail, &["Content-Transfer-Encoding: ", transfer_encoding(encoding, part), "\r\n\r\n"]);
            for line in lines(part) {
                match encoding {
                    Encoding::AsItIs => mail.extend_from_slice(line),
                    Encoding::QuotedPrintable => quote(line, mail),
                }
                mail.extend_from_slice(b"\r\n");
            }
            // This line end is the boundary's.
            mail.extend_from_slice(b"\r\n");
        }
        put(mail, &["--", &self.boundary, "--\r\n"]);
    }
}

/// The lines of a text, without their ends: as `str::lines` has them, several times as fast.
fn lines(text: &str) -> impl Iterator<Item = &[u8]> {
    let mut rest = text.as_bytes();
    iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some(end) = memchr(b'\n', rest) else { return Some(mem::take(&mut rest)) };
        let line = &rest[..end];
        rest = &rest[end + 1..];
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    })
}

/// Whether no line is too long for SMTP.
fn lines_are_short(part: &[u8]) -> bool {
    let mut rest = part;
    while rest.len() > LINE_BYTES_MAX {
        // From the last end of a line within reach: whatever lines are before it are shorter still.
        match memrchr(b'\n', &rest[..=LINE_BYTES_MAX]) {
            Some(end) => rest = &rest[end + 1..],
            None => return false,
        }
    }
    true
}

fn put(mail: &mut Vec<u8>, pieces: &[&str]) {
    for piece in pieces {
        mail.extend_from_slice(piece.as_bytes());
    }
}

fn transfer_encoding(encoding: Encoding, part: &str) -> &'static str {
    match encoding {
        Encoding::QuotedPrintable => "quoted-printable",
        Encoding::AsItIs if part.is_ascii() => "7bit",
        Encoding::AsItIs => "8bit",
    }
}

/// Writes a line in quoted-printable (RFC 2045 §6.7), without its end.
///
/// A `.` and a `From ` where a line of the mail begins are encoded, too: SMTP doubles the one, and mailboxes in files mark
/// the other, and not everybody undoes that.
fn quote(line: &[u8], mail: &mut Vec<u8>) {
    let mut rest = line;
    let mut room = QUOTED_LINE_MAX;
    while let Some((&first, after_first)) = rest.split_first() {
        let is_first = room == QUOTED_LINE_MAX;
        if is_first && (first == b'.' || rest.starts_with(b"From ")) {
            put_encoded(first, mail);
            room -= 3;
            rest = after_first;
            continue;
        }
        // Most of a mail may stand as it is. A space may not be the last.
        let mut run = literals(&rest[..rest.len().min(room)]);
        if run == rest.len() && rest.ends_with(b" ") {
            run -= 1;
        }
        mail.extend_from_slice(&rest[..run]);
        room -= run;
        rest = &rest[run..];
        let Some((&byte, after)) = rest.split_first() else { break };
        let is_unsafe = match byte {
            b' ' | b'\t' => after.is_empty(),
            _ => !is_literal(byte),
        };
        let needed = if is_unsafe { 3 } else { 1 };
        if room < needed {
            mail.extend_from_slice(b"=\r\n");
            room = QUOTED_LINE_MAX;
            continue;
        }
        if is_unsafe {
            put_encoded(byte, mail);
        } else {
            mail.push(byte);
        }
        room -= needed;
        rest = after;
    }
}

fn put_encoded(byte: u8, mail: &mut Vec<u8>) {
    mail.extend_from_slice(&[b'=', hexadecimal(byte >> 4), hexadecimal(byte & 15)]);
}

/// How many bytes at the beginning may stand as they are. (A fold, and not `all`: the compiler does all of a chunk at once
/// then.)
fn literals(bytes: &[u8]) -> usize {
    const CHUNK: usize = 16;
    let is_plain = |chunk: &&[u8]| chunk.iter().fold(true, |literal, &byte| literal & is_literal(byte));
    let plain = CHUNK * bytes.chunks_exact(CHUNK).take_while(is_plain).count();
    plain + bytes[plain..].iter().take_while(|&&byte| is_literal(byte)).count()
}

/// Whether a byte may stand as it is, wherever.
fn is_literal(byte: u8) -> bool {
    matches!(byte, b' '..=b'<' | b'>'..=b'~')
}

fn hexadecimal(digit: u8) -> u8 {
    if digit < 10 { b'0' + digit } else { b'A' + digit - 10 }
}

#[cfg(test)]
mod tests;
