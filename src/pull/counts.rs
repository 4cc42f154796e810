//! Progress of layers that are read where they lie.

use super::types::{Layer, Report, Reporter};
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Progress is told each time so much was read.
const TELL_EVERY: u64 = 1 << 20;

/// What was read of all layers.
#[derive(Clone)]
pub(super) struct Counts {
    report: Reporter,
    done: Arc<AtomicU64>,
    total: u64,
}

impl std::fmt::Debug for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counts").field("done", &self.done).field("total", &self.total).finish_non_exhaustive()
    }
}

impl Counts {
    /// Nothing yet, of layers of these sizes. They are the manifest's, and may be anything.
    pub(super) fn new(report: &Reporter, sizes: impl Iterator<Item = u64>) -> Counts {
        let total = sizes.fold(0_u64, u64::saturating_add);
        Counts { report: report.clone(), done: Arc::default(), total }
    }

    /// A reader that counts.
    pub(super) fn counted<R: Read>(&self, layer: &Layer, inner: R) -> Counted<R> {
        Counted {
            inner,
            counts: self.clone(),
            name: layer.digest.to_string(),
            size: layer.size,
            done: 0,
            told: 0,
        }
    }
}

/// Counts what is read of a layer.
#[derive(Debug)]
pub(super) struct Counted<R> {
    inner: R,
    counts: Counts,
    name: String,
    size: u64,
    done: u64,
    told: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        // A layer that is larger than it should be is refused by others.
        self.done = self.done.saturating_add(n as u64).min(self.size);
        if self.done - self.told >= TELL_EVERY || n == 0 && self.done > self.told {
            let new = self.done - self.told;
            self.told = self.done;
            let Counts { report, done, total } = &self.counts;
            report(Report::Part { name: self.name.clone(), done: self.done, total: self.size });
            let all = done.fetch_add(new, Ordering::Relaxed) + new;
            report(Report::Bytes { done: all.min(*total), total: *total });
        }
        Ok(n)
    }
}
