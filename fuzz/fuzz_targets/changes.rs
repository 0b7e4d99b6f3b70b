//! Runs [`imgstore_fuzz::changes`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| imgstore_fuzz::changes::changes(data));
