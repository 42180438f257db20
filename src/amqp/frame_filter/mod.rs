//! Filters the broker's bytes before `lapin` parses them.
//!
//! `lapin` parses header fields recursively, on the stack of its own thread. A message with arrays nested some thousand
//! levels deep (20,000 fit into one frame) crashes the process. It is redelivered after the restart, and every
//! prefetched message comes closer to the delivery limit with it. A property or routing key that is not UTF-8 ends the
//! connection, at each delivery. RabbitMQ accepts both, and has no limit to configure.
//!
//! The filter sits between the stream, behind TLS, and `lapin`. It follows the frames and changes bytes in place, never a
//! length: fields nested too deep become one byte array, and in text that is not UTF-8 each byte beyond ASCII becomes `?`.
//! Everything else passes unchanged, including what the filter does not understand: it is not a second parser.
//!
//! It records the broker's version from the first frame, which `lapin` does not expose.
//!
//! It limits memory. Prefetch limits the number of messages, not their size, and `lapin` reads without limit. On a
//! consumer's connection the filter counts the bytes in flight. At [`IN_FLIGHT_BYTES_MAX`] it pauses before the next
//! delivery until one is released. Messages pass whole, so one more of any size may exceed the limit. Heartbeats are not
//! read during a pause either: after 20 s (`lapin`; RabbitMQ allows little more) the connection is lost, and everything
//! is redelivered.

mod fields;
mod in_flight;
#[cfg(any(test, fuzzing))]
pub mod properties;

pub(super) use in_flight::InFlight;

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_util::Stream;
use futures_util::io::{AsyncRead, AsyncWrite, IoSlice};
use lapin::AsyncTcpStream;
use lapin::types::parsing::parse_field_table;

use super::field_value::text;
use fields::Fields;

/// The size of one read, in bytes.
const READ_BYTES: usize = 64 * 1024;
/// The largest frame that is checked, in bytes. RabbitMQ's default is 128 KiB.
const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The largest ratio of a header field's size in memory to its size on the wire. The worst case is an array of void
/// values, one byte each.
const HEADER_WEIGHT: usize = 32;

/// Type, channel and length of a frame, before its payload.
const FRAME_START_BYTES: usize = 7;
/// The end mark after the payload.
const FRAME_END_BYTES: usize = 1;
const METHOD: u8 = 1;
const CONTENT_HEADER: u8 = 2;
/// Class and method of `basic.deliver`.
const DELIVER: [u8; 4] = [0, 60, 0, 60];
/// Class and method of `connection.start`, the broker's first frame.
const START: [u8; 4] = [0, 10, 0, 10];

/// Tokio, with filtered connections.
pub(super) type FilteredRuntime = Runtime<RuntimeParts<Tokio, FilteredTcp>>;

/// The runtime for `lapin`. Its connections are [`FilteredStream`]s.
pub(super) fn runtime() -> FilteredRuntime {
    Runtime::new(RuntimeParts::new(Tokio::current(), FilteredTcp(Tokio::current())))
}

/// `lapin`'s source of connections and timers.
#[derive(Clone, Debug)]
pub(super) struct FilteredTcp(Tokio);

impl Reactor for FilteredTcp {
    type TcpStream = FilteredStream<Connection>;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: Read + Write + Send + 'static>(
        &self,
        _: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        // `lapin` does not use it for connections.
        Err::<Self::TcpStream, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connecting = self.0.tcp_connect_addr(address);
        async move { Ok(FilteredStream::new(AsyncTcpStream::Plain(connecting.await?), Arc::default(), Arc::default())) }
    }
}

/// A connection to the broker, with or without TLS.
pub(super) type Connection = AsyncTcpStream<<Tokio as Reactor>::TcpStream>;

/// A stream whose incoming bytes are filtered.
pub(super) struct FilteredStream<S> {
    stream: S,
    /// Up to `consumed`: taken by the reader. Up to `checked`: ready for it. Up to `filled`: not checked yet. Then free
    /// space.
    buffer: Vec<u8>,
    consumed: usize,
    checked: usize,
    filled: usize,
    /// The bytes after `checked` that belong to a frame already checked.
    frame_remaining: usize,
    in_flight: Arc<InFlight>,
    /// The broker's version, once its first frame is read.
    version: Arc<OnceLock<String>>,
    /// The delivery whose content header comes next.
    delivered: Option<u64>,
    /// The next frame is a delivery, and the in-flight budget is used up.
    is_paused: bool,
}

impl<S> FilteredStream<S> {
    pub(super) fn new(stream: S, in_flight: Arc<InFlight>, version: Arc<OnceLock<String>>) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
            consumed: 0,
            checked: 0,
            filled: 0,
            frame_remaining: 0,
            in_flight,
            version,
            delivered: None,
            is_paused: false,
        }
    }

    /// Checks every complete frame, up to a delivery that exceeds the in-flight budget.
    fn check(&mut self) {
        self.is_paused = false;
        loop {
            let rest = &mut self.buffer[self.checked..self.filled];
            let pass = self.frame_remaining.min(rest.len());
            self.frame_remaining -= pass;
            self.checked += pass;
            let rest = &mut rest[pass..];
            let Some(&[kind, _, _, a, b, c, d]) = rest.first_chunk::<FRAME_START_BYTES>() else { return };
            let payload_bytes = u32::from_be_bytes([a, b, c, d]) as usize;
            let frame_bytes = FRAME_START_BYTES + payload_bytes + FRAME_END_BYTES;
            if matches!(kind, METHOD | CONTENT_HEADER) && frame_bytes <= FRAME_BYTES_MAX {
                if rest.len() < frame_bytes {
                    return;
                }
                let payload = &mut rest[FRAME_START_BYTES..][..payload_bytes];
                if kind == METHOD {
                    self.delivered = delivery_tag(payload);
                    if self.delivered.is_some() && self.in_flight.is_full() {
                        self.is_paused = true;
                        return;
                    }
                } else if let Some(tag) = self.delivered.take() {
                    let bytes = body_bytes(payload).saturating_add(HEADER_WEIGHT * payload_bytes);
                    self.in_flight.delivered(tag, bytes);
                }
                // A frame that is not understood stays unchanged: reporting it is up to lapin.
                let fields = Fields(payload);
                let understood = if kind == METHOD { fields.method() } else { fields.content_header() };
                if kind == METHOD
                    && understood.is_some()
                    && let Some(version) = broker_version(payload)
                {
                    self.version.get_or_init(|| version);
                }
            }
            self.frame_remaining = frame_bytes;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for FilteredStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        while this.consumed == this.checked {
            this.buffer.copy_within(this.checked..this.filled, 0);
            (this.consumed, this.checked, this.filled) = (0, 0, this.filled - this.checked);
            if this.is_paused {
                this.in_flight.wake_reader(context.waker());
                this.check();
                if this.is_paused && this.checked == 0 {
                    return Poll::Pending;
                }
                continue;
            }
            let end = this.filled + READ_BYTES;
            if this.buffer.len() < end {
                this.buffer.resize(end, 0);
            }
            let room = &mut this.buffer[this.filled..end];
            let count = ready!(Pin::new(&mut this.stream).poll_read(context, room))?;
            if count == 0 {
                // End of stream. The rest of an incomplete frame is dropped.
                return Poll::Ready(Ok(0));
            }
            this.filled += count;
            this.check();
        }
        let ready = &this.buffer[this.consumed..this.checked];
        let count = ready.len().min(to.len());
        to[..count].copy_from_slice(&ready[..count]);
        this.consumed += count;
        Poll::Ready(Ok(count))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for FilteredStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, from)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(context)
    }
}

/// The broker's version, in its first frame. Call it only after [`Fields::method`]: it parses fields recursively.
fn broker_version(method: &[u8]) -> Option<String> {
    let properties = method.strip_prefix(&START)?.get(fields::PROTOCOL_VERSION_BYTES..)?;
    let (_, properties) = parse_field_table(properties).ok()?;
    text(properties.inner().get("version")?).map(str::to_owned)
}

/// The delivery tag, if the method is a delivery.
fn delivery_tag(method: &[u8]) -> Option<u64> {
    let arguments = method.strip_prefix(&DELIVER)?;
    let (&consumer_tag_bytes, rest) = arguments.split_first()?;
    Some(u64::from_be_bytes(*rest.get(usize::from(consumer_tag_bytes)..)?.first_chunk()?))
}

/// The size of the body, from its content header: the field after class and weight.
fn body_bytes(content_header: &[u8]) -> usize {
    let size = content_header.get(4..).and_then(|rest| rest.first_chunk());
    size.map_or(0, |bytes| usize::try_from(u64::from_be_bytes(*bytes)).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::io::{AsyncReadExt, Cursor};

    use super::fields::DEPTH_MAX;
    use super::in_flight::IN_FLIGHT_BYTES_MAX;
    use super::properties::{check, read};
    use super::*;

    /// The number of mutations: a few seconds' worth. `make fuzz` runs for longer.
    const MUTATIONS: u64 = 1_000;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[kind, 0, 1], &length[..], payload, &[0xce]].concat()
    }

    /// A content header with this content type and these headers.
    fn header(content_type: &[u8], table: &[u8]) -> Vec<u8> {
        let table_bytes = u32::try_from(table.len()).unwrap().to_be_bytes();
        let content_type = [&[u8::try_from(content_type.len()).unwrap()], content_type].concat();
        frame(
            CONTENT_HEADER,
            &[&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0xa0, 0], &content_type[..], &table_bytes, table].concat(),
        )
    }

    /// A table with one field: arrays nested `depth` deep.
    fn nested(depth: usize) -> Vec<u8> {
        let mut table = b"\x01n".to_vec();
        for level in (0..depth).rev() {
            table.push(b'A');
            table.extend(u32::try_from(level * 5).unwrap().to_be_bytes());
        }
        table
    }

    #[tokio::test]
    async fn broker_version_is_read_from_the_first_frame() {
        let start = |table: &[u8]| {
            let table_bytes = u32::try_from(table.len()).unwrap().to_be_bytes();
            let mechanisms_and_locales = b"\0\0\0\x05PLAIN\0\0\0\x05en_US";
            frame(METHOD, &[&START[..], &[0, 9], &table_bytes, table, mechanisms_and_locales].concat())
        };
        let version_of = async |bytes: Vec<u8>| {
            let version = Arc::new(OnceLock::new());
            let mut out = Vec::new();
            let mut filtered = FilteredStream::new(Cursor::new(bytes.clone()), Arc::default(), version.clone());
            filtered.read_to_end(&mut out).await.unwrap();
            assert!(out == bytes);
            version.get().cloned()
        };
        let named = start(b"\x07productS\0\0\0\x08RabbitMQ\x07versionS\0\0\0\x054.3.6");
        assert_eq!(version_of(named).await.as_deref(), Some("4.3.6"));
        for other in [start(b""), start(b"\x07versiont\x01"), start(b"\x07versionS\0\0\0\xff4"), frame(METHOD, &START)]
        {
            assert_eq!(version_of(other).await, None);
        }
        assert!(read(&start(&nested(20_000)), usize::MAX) != start(&nested(20_000)), "this frame is filtered");
    }

    #[test]
    fn harmless_frames_pass_unchanged_in_pieces_of_any_size() {
        let frames = [
            frame(1, b"method"),
            header("é".as_bytes(), &nested(DEPTH_MAX - 1)),
            frame(3, &[0xff; 300]),
            frame(8, b""),
            // A field of an unknown type.
            header(b"t", b"\x01nZ"),
            frame(3, b"after"),
        ]
        .concat();
        for piece in [1, 2, 3, 7, 64, 1_000, usize::MAX] {
            assert_eq!(read(&frames, piece), frames, "{piece}");
        }
    }

    #[test]
    fn fields_nested_too_deep_become_byte_arrays() {
        // Deeper than fits into one frame.
        let frames = [header(b"t", &nested(30_000)), frame(3, b"after")].concat();
        for piece in [1_000, usize::MAX] {
            let out = read(&frames, piece);
            assert_eq!(out.len(), frames.len());
            let changed: Vec<_> = (0..out.len()).filter(|&index| out[index] != frames[index]).collect();
            assert_eq!(changed.iter().map(|&index| (frames[index], out[index])).collect::<Vec<_>>(), [(b'A', b'x')]);
        }
    }

    #[test]
    fn invalid_utf8_becomes_question_marks() {
        let out = read(&header(b"a\xff\xc3b", b"\x02k\xffV"), 5);
        assert_eq!(out, header(b"a??b", b"\x02k?V"));
        for start in [
            &b"\0\x3c\0\x3c\x02\xff\xff12345678\x01"[..],
            b"\0\x3c\0\x47\xff2345678\x01",
            b"\0\x3c\0\x32\x01\xff\x04text",
        ] {
            let method = |start: &[u8], key: &[u8]| frame(METHOD, &[start, b"\x01x\x02", key].concat());
            let key = |frame: &[u8]| frame[frame.len() - 3..].to_vec();
            let out = read(&method(start, b"k\xff"), 5);
            assert_eq!(key(&out), b"k?\xce", "{out:?}");
            assert_eq!(read(&method(start, b"ok"), 5).len(), out.len());
        }
    }

    /// A delivery whose content header claims `body_bytes`, with a short body.
    fn delivery(tag: u8, body_bytes: usize) -> Vec<u8> {
        let deliver = [&DELIVER[..], b"\x03tag\0\0\0\0\0\0\0", &[tag], b"\0\x01x\x01k"].concat();
        let size = u64::try_from(body_bytes).unwrap().to_be_bytes();
        let header = [&[0, 60, 0, 0], &size[..], &[0, 0]].concat();
        [frame(METHOD, &deliver), frame(CONTENT_HEADER, &header), frame(3, b"body")].concat()
    }

    /// The bytes that can be read without waiting, and whether the stream has ended.
    fn read_now(filtered: &mut FilteredStream<impl AsyncRead + Unpin>) -> (Vec<u8>, bool) {
        let mut out = Vec::new();
        loop {
            let mut some = [0; 1_000];
            match filtered.read(&mut some).now_or_never() {
                Some(count) if count.as_ref().unwrap() > &0 => out.extend(&some[..count.unwrap()]),
                end => return (out, end.is_some()),
            }
        }
    }

    #[test]
    fn deliveries_wait_while_the_in_flight_budget_is_used_up() {
        let half = IN_FLIGHT_BYTES_MAX / 2;
        let deliveries = [delivery(1, half), delivery(2, half), delivery(3, usize::MAX), delivery(4, 0), frame(8, b"")];
        let in_flight = Arc::new(InFlight::default());
        in_flight.limit();
        let mut filtered = FilteredStream::new(Cursor::new(deliveries.concat()), in_flight.clone(), Arc::default());
        assert_eq!(read_now(&mut filtered), (deliveries[..2].concat(), false));
        assert_eq!(read_now(&mut filtered), (vec![], false));
        in_flight.release(1);
        assert_eq!(read_now(&mut filtered), (deliveries[2].clone(), false), "one more, of any size");
        in_flight.release(2);
        assert_eq!(read_now(&mut filtered), (vec![], false));
        in_flight.release(3);
        assert_eq!(read_now(&mut filtered), (deliveries[3..].concat(), true));

        let mut filtered = FilteredStream::new(Cursor::new(deliveries.concat()), Arc::default(), Arc::default());
        assert_eq!(read_now(&mut filtered), (deliveries.concat(), true), "no limit without a consumer");
    }

    #[test]
    fn headers_count_with_their_size_in_memory() {
        let mut heavy = delivery(1, 0);
        let header_start = heavy.len() - frame(CONTENT_HEADER, &[0; 14]).len() - frame(3, b"body").len();
        heavy.splice(header_start.., header(b"t", &[b"\x01nA\0\x08\0\0", &vec![b'V'; 1 << 19][..]].concat()));
        let deliveries = [heavy, delivery(2, 0)];
        let in_flight = Arc::new(InFlight::default());
        in_flight.limit();
        let mut filtered = FilteredStream::new(Cursor::new(deliveries.concat()), in_flight, Arc::default());
        assert_eq!(read_now(&mut filtered), (deliveries[0].clone(), false));
    }

    #[test]
    fn malformed_frames_pass_unchanged() {
        let lengths = [header(b"t", b"\x01nS\xff\xff\xff\xff"), frame(CONTENT_HEADER, b"short"), vec![2, 0, 0]];
        for bytes in [&lengths.concat()[..], b"AMQP\0\0\x09\x01", b""] {
            let out = read(bytes, 4);
            assert!(bytes.starts_with(&out) && bytes.len() - out.len() <= FRAME_START_BYTES, "{out:?}");
        }
    }

    #[test]
    fn arbitrary_bytes_panic_neither_the_filter_nor_lapin() {
        let everything: Vec<u8> = (0..16).flat_map(|_| b"\x01nA\0\0\0\x05F\0\0\0\0".to_vec()).collect();
        let samples = [
            delivery(1, 5),
            header(b"text/plain", &nested(DEPTH_MAX + 3)),
            header(b"\xff", b"\x01aV\x01bt\x01\x01cS\0\0\0\x01x\x01dI\0\0\0\x01\x01eT\0\0\0\0\0\0\0\x01"),
            header(b"t", &everything),
            [frame(METHOD, b"\0\x3c\0\x32\x01\x38\x04text\x01x\x01k"), frame(3, b"body"), frame(8, b"")].concat(),
        ];
        for seed in 0..MUTATIONS {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut bytes = samples[random.usize(..samples.len())].clone();
            for _ in 0..random.usize(..4) {
                let at = random.usize(..=bytes.len());
                let end = (at + random.usize(..32)).min(bytes.len());
                match random.u8(..4) {
                    0 => bytes[at..end].iter_mut().take(1).for_each(|byte| *byte = random.u8(..)),
                    1 => drop(bytes.drain(at..end)),
                    2 => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
                    _ => bytes.extend_from_slice(&samples[random.usize(..samples.len())]),
                }
            }
            check(&bytes);
        }
        check(&header(b"t", &nested(30_000)));
    }
}
