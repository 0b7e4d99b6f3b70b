//! Runs [`imgstore_fuzz::vmdk`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| imgstore_fuzz::vmdk(data));
