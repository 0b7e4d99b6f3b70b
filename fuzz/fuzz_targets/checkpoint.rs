//! Runs [`imgstore_fuzz::checkpoint`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| imgstore_fuzz::checkpoint(data));
