//! Properties of the filter that hold for all bytes. Shared by the fuzz target and the unit tests.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::io::{AsyncRead, AsyncReadExt, Cursor};
use lapin::protocol::{basic, parse_class};

use super::{CONTENT_HEADER, FRAME_END_BYTES, FRAME_START_BYTES, FilteredStream, METHOD};

/// The longest piece of the second read.
const PIECE_MAX: usize = 61;

/// Filters the bytes. Panics when a property does not hold, or when `lapin` cannot parse the result without panicking.
pub fn check(bytes: &[u8]) {
    let filtered = read(bytes, usize::MAX);
    assert!(filtered.len() <= bytes.len());
    for (&before, &after) in bytes.iter().zip(&filtered) {
        let is_depth = matches!(before, b'A' | b'F') && after == b'x';
        let is_text = !before.is_ascii() && after == b'?';
        assert!(before == after || is_depth || is_text, "{before} became {after}");
    }
    assert_eq!(read(bytes, 1 + bytes.len() % PIECE_MAX), filtered, "pieces make no difference");
    assert_eq!(read(&filtered, usize::MAX), filtered, "filtered bytes stay unchanged");
    for (kind, payload) in frames(&filtered) {
        // Any result is fine, but no panic or stack overflow.
        match kind {
            METHOD => drop(parse_class(payload)),
            CONTENT_HEADER => drop(payload.get(12..).map(basic::parse_properties)),
            _ => {}
        }
    }
}

/// The type and payload of each whole frame.
fn frames(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let mut frames = Vec::new();
    while let Some(&[kind, _, _, a, b, c, d]) = bytes.first_chunk::<FRAME_START_BYTES>() {
        let payload_bytes = u32::from_be_bytes([a, b, c, d]) as usize;
        let rest = &bytes[FRAME_START_BYTES..];
        let Some(payload) = rest.get(..payload_bytes) else { break };
        frames.push((kind, payload));
        bytes = rest.get(payload_bytes + FRAME_END_BYTES..).unwrap_or_default();
    }
    frames
}

/// The bytes that `lapin` gets when the broker sends pieces of `piece` bytes.
pub(super) fn read(bytes: &[u8], piece: usize) -> Vec<u8> {
    let mut out = Vec::new();
    let pieces = Pieces(Cursor::new(bytes.to_vec()), piece);
    let read = FilteredStream::new(pieces, Arc::default(), Arc::default()).read_to_end(&mut out).now_or_never();
    assert!(matches!(read, Some(Ok(_))), "reading neither waits nor fails");
    out
}

struct Pieces(Cursor<Vec<u8>>, usize);

impl AsyncRead for Pieces {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut [u8]) -> Poll<io::Result<usize>> {
        let count = self.1.min(to.len());
        Pin::new(&mut self.0).poll_read(context, &mut to[..count])
    }
}
