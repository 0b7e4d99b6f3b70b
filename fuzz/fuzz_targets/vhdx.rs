//! Runs [`imgstore_fuzz::vhdx`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| imgstore_fuzz::vhdx(data));
