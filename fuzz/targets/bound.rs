//! Bound images as TOML.
#![no_main]

use osctl_fuzz::model::bound::BoundSpec;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Err(error) = BoundSpec::from_toml(text, "/fuzz.toml") {
        osctl_fuzz::located(&error);
    }
});
