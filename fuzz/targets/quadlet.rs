//! Quadlet files of every type.
#![no_main]

use osctl_fuzz::model::quadlet::{Type, Unit};

libfuzzer_sys::fuzz_target!(|text: &str| {
    for (kind, file) in [
        (Type::Container, "/fuzz.container"),
        (Type::Image, "/fuzz.image"),
        (Type::Kube, "/fuzz.kube"),
        (Type::Volume, "/fuzz.volume"),
    ] {
        let found = Unit::parse(text, file).and_then(|unit| unit.wants(kind, file));
        if let Err(error) = found {
            osctl_fuzz::located(&error);
        }
    }
});
