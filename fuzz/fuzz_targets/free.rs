//! Runs [`imgstore_fuzz::vhd`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| imgstore_fuzz::free::free(data));
