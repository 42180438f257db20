//! Bytes from anywhere, read as a command.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| offramp_domain::command::properties::check(bytes));
