//! Runs [`imgstore_fuzz::ova`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| imgstore_fuzz::ova(data));
