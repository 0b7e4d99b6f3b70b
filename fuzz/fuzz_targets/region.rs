//! Runs [`imgstore_fuzz::region`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| imgstore_fuzz::region(data));
