//! Drop-ins in our own YAML.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| osctl_fuzz::declaration("a.yaml", bytes));
