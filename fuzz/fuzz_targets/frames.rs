//! Bytes from anywhere, read as a broker's frames.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| offramp::amqp::check_frames(bytes));
