//! Runs [`imgstore_fuzz::model::model`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| imgstore_fuzz::model::model(data));
