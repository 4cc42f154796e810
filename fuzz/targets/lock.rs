//! Locks.
#![no_main]

use osctl_fuzz::model::lock::Lock;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(lock) = Lock::parse("fuzz", bytes) {
        let again = Lock::parse("fuzz", &lock.to_bytes()).expect("what was written can be read");
        assert_eq!(lock.digest(), again.digest());
        assert_eq!(lock.to_bytes(), again.to_bytes());
    }
});
