//! Runs [`imgstore_fuzz::bundle`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| imgstore_fuzz::bundle(data));
