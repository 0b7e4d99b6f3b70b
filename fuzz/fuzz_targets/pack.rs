//! Runs [`imgstore_fuzz::pack`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| imgstore_fuzz::pack(data));
