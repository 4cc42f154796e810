//! Keeps an import from filling the file system: what a layer unpacks to is not said anywhere.

use crate::model::{Error, ErrorKind, Result};

/// What is left of the file system, whatever a layer unpacks to.
const RESERVE: u64 = 64 << 20;
/// After so many unpacked bytes, the free space is looked at again.
const LOOK_EVERY: u64 = 64 << 20;

/// What one layer may still write.
#[derive(Debug, Default)]
pub(super) struct Space {
    /// What may be written before the next look.
    left: u64,
}

impl Space {
    /// Takes `size` bytes, where `free` looks how many there are.
    pub(super) fn take(&mut self, size: u64, free: impl FnOnce() -> Result<u64>) -> Result<()> {
        // An object is at least one block.
        let size = size.max(4096);
        if self.left < size {
            let free = free()?;
            let usable = free.saturating_sub(RESERVE);
            if usable < size {
                return Err(Error::new(
                    ErrorKind::NoSpace,
                    format!("it needs {size} bytes more, and {free} are free"),
                )
                .detail("need", size)
                .detail("have", free));
            }
            self.left = usable.min(LOOK_EVERY).max(size);
        }
        self.left -= size;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_system_is_never_filled() {
        let mut space = Space::default();
        let looks = std::cell::Cell::new(0);
        let mut take = |size, free| {
            space.take(size, || {
                looks.set(looks.get() + 1);
                Ok(free)
            })
        };
        let plenty = RESERVE + (1 << 40);
        take(1 << 30, plenty).unwrap();
        for _ in 0..LOOK_EVERY / 4096 {
            take(1, plenty).unwrap();
        }
        assert_eq!(looks.get(), 2, "one look for the large file, and one for many small ones");
        for (size, free) in [(1, RESERVE), (1 << 30, RESERVE + (1 << 30) - 1), (u64::MAX, plenty)] {
            assert_eq!(take(size, free).unwrap_err().kind, ErrorKind::NoSpace, "{size} of {free}");
        }
        take(4096, RESERVE + 4096).unwrap();
    }
}
