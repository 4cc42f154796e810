//! Keeps all connections together below a number of bytes a second.

use std::num::NonZeroU64;
use std::sync::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// A limit that all connections share.
#[derive(Debug)]
pub(super) struct Rate {
    limit: Option<NonZeroU64>,
    /// When what was taken so far will have been allowed.
    free: Mutex<Option<Instant>>,
}

impl Rate {
    pub(super) fn new(limit: Option<NonZeroU64>) -> Rate {
        Rate { limit, free: Mutex::new(None) }
    }

    /// Waits until so many more bytes are allowed. What was not used is not saved up.
    pub(super) async fn take(&self, bytes: u64) {
        let Some(limit) = self.limit else { return };
        let until = {
            let mut free = self.free.lock().expect("no holder of this lock panics");
            let from = free.map_or_else(Instant::now, |free| free.max(Instant::now()));
            let until = from + Duration::from_secs_f64(bytes as f64 / limit.get() as f64);
            *free = Some(until);
            until
        };
        tokio::time::sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn connections_share_the_limit_and_save_nothing_up() {
        let rate = Rate::new(NonZeroU64::new(1000));
        let start = Instant::now();
        tokio::join!(rate.take(1000), rate.take(1000));
        assert_eq!(start.elapsed().as_secs(), 2);
        tokio::time::sleep(Duration::from_secs(60)).await;
        let start = Instant::now();
        rate.take(3000).await;
        assert_eq!(start.elapsed().as_secs(), 3);
        let start = Instant::now();
        Rate::new(None).take(u64::MAX).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
