//! Client treefiles of rpm-ostree.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| osctl_fuzz::declaration("origin.d/a.yaml", bytes));
