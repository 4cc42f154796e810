//! Kernel arguments: a command line, files of kargs.d, and the record in an origin.
#![no_main]

use osctl_fuzz::model::kargs::{Owned, check, parse_vendor, split};

libfuzzer_sys::fuzz_target!(|text: &str| {
    for arg in split(text) {
        if check(&arg).is_ok() {
            assert_eq!(split(&arg), [arg]);
        }
    }
    if let Err(error) = parse_vendor("/fuzz.toml", text, "x86_64") {
        osctl_fuzz::located(&error);
    }
    if let Ok(owned) = Owned::from_json(text) {
        let again = Owned::from_json(&owned.to_json()).expect("what was written can be read");
        assert_eq!(owned.to_json(), again.to_json());
    }
});
