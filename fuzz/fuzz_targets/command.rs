//! Bytes from anywhere, read as a command.
#![no_main]

#[path = "../properties/command.rs"]
mod command;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| command::check(bytes));
