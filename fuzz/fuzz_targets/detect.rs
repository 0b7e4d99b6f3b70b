//! Runs [`imgstore_fuzz::detect`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| imgstore_fuzz::detect(data));
