//! When a failed transfer is tried again.

use crate::model::Result;
use crate::pull::pulse;
use crate::sys::skopeo::may_pass;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long a registry is waited for, and how often it is asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patience {
    /// The first wait; each further one is twice as long.
    pub first: Duration,
    /// The longest wait of our own choice.
    pub longest: Duration,
    /// The longest wait that a registry may ask for (Retry-After); one that asks for more has failed.
    pub asked: Duration,
    /// How often a blob is asked for in a row without a byte of it coming.
    pub tries: u32,
    /// A connection on which nothing comes for so long is given up.
    pub stall: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            first: Duration::from_millis(500),
            longest: Duration::from_secs(30),
            asked: Duration::from_secs(300),
            tries: 6,
            stall: Duration::from_secs(30),
        }
    }
}

impl Patience {
    /// For a question that somebody waits for the answer of.
    pub(in crate::pull) fn short(self) -> Patience {
        Patience { tries: self.tries.min(3), ..self }
    }

    /// Asks again as long as the failure is one that may pass, for a question that somebody waits for the answer of.
    pub async fn again<T, F: Future<Output = Result<T>>>(self, ask: impl Fn() -> F) -> Result<T> {
        let patience = self.short();
        let mut tries = 0;
        loop {
            let error = match ask().await {
                // Skopeo waits by itself for a registry that asks to slow down.
                Err(error) if may_pass(&error) => error,
                outcome => return outcome,
            };
            tries += 1;
            let Some(wait) = patience.wait(tries, None, dice()) else { return Err(error) };
            tracing::debug!(error = %error.chain(), "asking again");
            tokio::time::sleep(wait).await;
            pulse::tick();
        }
    }

    /// How long to wait after so many tries, the first of which is 1; `None` to give up. `asked` is what the registry
    /// wants, `dice` a random number from 0 to 1: hosts that failed together must not come back together.
    pub(in crate::pull) fn wait(&self, tries: u32, asked: Option<Duration>, dice: f64) -> Option<Duration> {
        if tries >= self.tries || asked.is_some_and(|asked| asked > self.asked) {
            return None;
        }
        let doubled = self.first.saturating_mul(1 << tries.saturating_sub(1).min(20)).min(self.longest);
        // Half of it is certain: a wait of nothing would be no back-off.
        let own = doubled.mul_f64(0.5 + dice.clamp(0.0, 1.0) / 2.0);
        Some(own.max(asked.unwrap_or_default()))
    }
}

/// A random number from 0 to 1; the keys of the standard library's hash are random.
pub(in crate::pull) fn dice() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    random as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_limit_and_heed_the_registry() {
        let patience = Patience::default();
        let seconds = Duration::from_secs_f64;
        for (tries, asked, dice, expected) in [
            (1, None, 1.0, Some(seconds(0.5))),
            (1, None, 0.0, Some(seconds(0.25))),
            (2, None, 1.0, Some(seconds(1.0))),
            (5, None, 1.0, Some(seconds(8.0))),
            (6, None, 1.0, None),
            (1, Some(seconds(7.0)), 1.0, Some(seconds(7.0))),
            (1, Some(seconds(301.0)), 1.0, None),
        ] {
            assert_eq!(patience.wait(tries, asked, dice), expected, "{tries} {asked:?} {dice}");
        }
        let endless = Patience { tries: u32::MAX, ..patience };
        assert_eq!(endless.wait(4000, None, 1.0), Some(seconds(30.0)));
    }
}
