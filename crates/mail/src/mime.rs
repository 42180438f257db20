//! The body of an email: plain text and HTML, in lines that every server accepts (RFC 2045, RFC 2046).
//!
//! Not with lettre's builder or the crate `quoted_printable`: they take longer for this than a whole email may take
//! (`benches/email.rs` measures it).

use std::{iter, mem};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use memchr::{memchr, memchr2_iter, memmem, memrchr};
use uuid::Uuid;

/// The longest line that SMTP allows, in bytes, without its end (RFC 5321 §4.5.3.1.6).
const LINE_BYTES_MAX: usize = 998;

/// The longest line of quoted-printable, in characters, without the `=` of a soft line break.
const QUOTED_LINE_MAX: usize = 75;

/// The shortest part that is sent in base64, in bytes. Quoted-printable is readable without a program.
const BASE64_BYTES_MIN: usize = 4 * 1024;

/// The bytes that a line of base64 encodes, in 76 characters.
const BASE64_LINE_BYTES: usize = 57;

/// How a boundary line begins, after the end of the line before. `=_` never occurs in quoted-printable.
const BOUNDARY_LINE: &[u8] = b"\n--=_";

/// The approximate size of everything around the two parts, in bytes.
const FRAME_BYTES: usize = 512;

/// How both parts are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// UTF-8 as it is, for servers with 8BITMIME.
    EightBit,
    /// ASCII, for every server: quoted-printable, or base64 where that is much shorter, as for long texts in most scripts
    /// but Latin.
    Ascii,
}

/// Plain text and HTML: `multipart/alternative`.
#[derive(Clone, Debug)]
pub(crate) struct Alternative<'a> {
    text: &'a str,
    html: &'a str,
    /// Separates the parts, with two dashes before it.
    boundary: String,
}

impl<'a> Alternative<'a> {
    /// The same `id` gives the same bytes.
    pub fn new(text: &'a str, html: &'a str, id: Uuid) -> Self {
        Self { text, html, boundary: format!("=_{}", id.simple()) }
    }

    /// Whether both parts can be sent unencoded: no line is too long, nothing could be taken for a boundary, and there are no
    /// forbidden characters.
    pub fn fits_8bit(&self) -> bool {
        [self.text, self.html].map(str::as_bytes).into_iter().all(|part| {
            lines_are_short(part)
                && !part.starts_with(&BOUNDARY_LINE[1..])
                && memmem::find(part, BOUNDARY_LINE).is_none()
                && memchr2_iter(b'\r', b'\0', part).all(|at| part[at..].starts_with(b"\r\n"))
        })
    }

    /// The approximate size, in bytes.
    pub fn size_hint(&self, encoding: Encoding) -> usize {
        let bytes = self.text.len() + self.html.len();
        FRAME_BYTES
            + match encoding {
                Encoding::EightBit => bytes + bytes / 16,
                Encoding::Ascii => bytes + bytes / 4,
            }
    }

    /// The headers about the body, without the empty line that ends all headers.
    pub fn write_headers(&self, encoding: Encoding, out: &mut Vec<u8>) {
        put(
            out,
            &["MIME-Version: 1.0\r\nContent-Type: multipart/alternative;\r\n boundary=\"", &self.boundary, "\"\r\n"],
        );
        // The whole is 8bit as soon as a part is; without the header it counts as 7bit.
        if [self.text, self.html].map(|part| transfer_encoding(encoding, part)).contains(&"8bit") {
            put(out, &["Content-Transfer-Encoding: 8bit\r\n"]);
        }
    }

    /// Everything after the empty line.
    pub fn write(&self, encoding: Encoding, out: &mut Vec<u8>) {
        for (kind, part) in [("plain", self.text), ("html", self.html)] {
            put(out, &["--", &self.boundary, "\r\nContent-Type: text/", kind, "; charset=utf-8\r\n"]);
            put(out, &["Content-Transfer-Encoding: ", transfer_encoding(encoding, part), "\r\n\r\n"]);
            match transfer_encoding(encoding, part) {
                "base64" => write_base64(part, out),
                "quoted-printable" => {
                    for line in lines(part) {
                        quote(line, out);
                        out.extend_from_slice(b"\r\n");
                    }
                }
                _ => {
                    for line in lines(part) {
                        out.extend_from_slice(line);
                        out.extend_from_slice(b"\r\n");
                    }
                }
            }
            // This line end belongs to the boundary.
            out.extend_from_slice(b"\r\n");
        }
        put(out, &["--", &self.boundary, "--\r\n"]);
    }
}

/// The lines of a text, without their ends. Like `str::lines`, but several times as fast.
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
        // Continue after the last line end within reach: any lines before it are shorter still.
        match memrchr(b'\n', &rest[..=LINE_BYTES_MAX]) {
            Some(end) => rest = &rest[end + 1..],
            None => return false,
        }
    }
    true
}

fn put(out: &mut Vec<u8>, texts: &[&str]) {
    for text in texts {
        out.extend_from_slice(text.as_bytes());
    }
}

fn transfer_encoding(encoding: Encoding, part: &str) -> &'static str {
    match encoding {
        // Quoted-printable takes three bytes for one of these; base64 takes four for three of all.
        Encoding::Ascii if part.len() >= BASE64_BYTES_MIN && 6 * count_non_ascii(part) > part.len() => "base64",
        Encoding::Ascii => "quoted-printable",
        Encoding::EightBit if part.is_ascii() => "7bit",
        Encoding::EightBit => "8bit",
    }
}

fn count_non_ascii(part: &str) -> usize {
    part.bytes().filter(|byte| !byte.is_ascii()).count()
}

/// Writes a part in base64 (RFC 2045 §6.8), in lines.
fn write_base64(part: &str, out: &mut Vec<u8>) {
    // What is encoded has the line ends of the network, too.
    let mut text = Vec::with_capacity(part.len() + part.len() / 16);
    for line in lines(part) {
        text.extend_from_slice(line);
        text.extend_from_slice(b"\r\n");
    }
    for line in text.chunks(BASE64_LINE_BYTES) {
        out.extend_from_slice(BASE64.encode(line).as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

/// Writes a line in quoted-printable (RFC 2045 §6.7), without its end.
///
/// A `.` or `From ` at the beginning of an encoded line is encoded, too: SMTP doubles the dot, mbox files quote `From `, and
/// not every program undoes that.
fn quote(line: &[u8], out: &mut Vec<u8>) {
    let mut rest = line;
    let mut room = QUOTED_LINE_MAX;
    while let Some((&first, after_first)) = rest.split_first() {
        let is_first = room == QUOTED_LINE_MAX;
        if is_first && (first == b'.' || rest.starts_with(b"From ")) {
            put_encoded(first, out);
            room -= 3;
            rest = after_first;
            continue;
        }
        // Most of an email needs no encoding. A space must not come last.
        let mut run = literals(&rest[..rest.len().min(room)]);
        if run == rest.len() && rest.ends_with(b" ") {
            run -= 1;
        }
        out.extend_from_slice(&rest[..run]);
        room -= run;
        rest = &rest[run..];
        let Some((&byte, after)) = rest.split_first() else { break };
        let is_unsafe = match byte {
            b' ' | b'\t' => after.is_empty(),
            _ => !is_literal(byte),
        };
        let needed = if is_unsafe { 3 } else { 1 };
        if room < needed {
            out.extend_from_slice(b"=\r\n");
            room = QUOTED_LINE_MAX;
            continue;
        }
        if is_unsafe {
            put_encoded(byte, out);
        } else {
            out.push(byte);
        }
        room -= needed;
        rest = after;
    }
}

fn put_encoded(byte: u8, out: &mut Vec<u8>) {
    out.extend_from_slice(&[b'=', hexadecimal(byte >> 4), hexadecimal(byte & 15)]);
}

/// The number of bytes at the beginning that need no encoding. (With `fold` instead of `all`, the compiler vectorises a
/// chunk.)
fn literals(bytes: &[u8]) -> usize {
    const CHUNK: usize = 16;
    let is_plain = |chunk: &&[u8]| chunk.iter().fold(true, |literal, &byte| literal & is_literal(byte));
    let plain = CHUNK * bytes.chunks_exact(CHUNK).take_while(is_plain).count();
    plain + bytes[plain..].iter().take_while(|&&byte| is_literal(byte)).count()
}

/// Whether a byte needs no encoding, wherever it stands.
fn is_literal(byte: u8) -> bool {
    matches!(byte, b' '..=b'<' | b'>'..=b'~')
}

fn hexadecimal(digit: u8) -> u8 {
    if digit < 10 { b'0' + digit } else { b'A' + digit - 10 }
}

#[cfg(test)]
mod tests;
