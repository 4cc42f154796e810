//! References and digests of images.
#![no_main]

use osctl_fuzz::model::image::{Digest, ImageRef, Transport};

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(image) = text.parse::<ImageRef>() {
        let again: ImageRef = image.to_string().parse().expect("what was shown can be read");
        assert_eq!(image, again);
        let digest = Digest::of(text.as_bytes());
        if image.transport == Transport::Registry {
            assert_eq!(image.pinned(&digest).digest(), Some(digest));
        }
        let _ = (image.tag(), image.repository());
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string().parse::<Digest>().expect("what was shown can be read"), digest);
    }
});
