//! Runs [`imgstore_fuzz::features::features`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| imgstore_fuzz::features::features(data));
