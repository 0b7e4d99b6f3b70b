//! Runs [`imgstore_fuzz::qcow2`] under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| imgstore_fuzz::qcow2(data));
