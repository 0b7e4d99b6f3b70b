//! Runs [`imgstore_fuzz::record`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| imgstore_fuzz::record(data));
