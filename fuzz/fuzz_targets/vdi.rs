//! Runs [`imgstore_fuzz::vdi`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| imgstore_fuzz::vdi(data));
