//! Butane configurations of every variant.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| osctl_fuzz::declaration("a.bu", bytes));
