//! The [Install] section of a unit: where its links go. The first line is the unit's name.
#![no_main]

use osctl_fuzz::model::dropin::install::{install_links, is_unit_name};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let (name, text) = text.split_once('\n').unwrap_or((text, ""));
    if !is_unit_name(name) {
        return;
    }
    for (link, _) in install_links(name, text).unwrap_or_default() {
        assert!(link.split('/').skip(1).all(|part| !["", ".", ".."].contains(&part)), "{link}");
    }
});
