//! Packages, or images to prefetch, that cannot be had: since when, why, and when it is tried again.

use super::request::Goal;
use super::time::utc;
use std::time::Duration;

/// Before the second attempt; twice that before the third, and so on.
const FIRST: u64 = 15 * 60;
/// Never longer.
const LONGEST: u64 = 24 * 3600;
/// What the administrator has for bringing a repository back, before `degraded-policy` counts.
pub const GRACE: Duration = Duration::from_secs(7 * 24 * 3600);

/// What to do where packages could not be had for longer than the grace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DegradedPolicy {
    /// Stay on what runs.
    #[default]
    Stay,
    /// Go on without the drop-ins that ask for them.
    Skip,
}

/// What is there instead of what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Instead {
    /// Nothing new: the job failed.
    Nothing,
    /// The packages of before.
    Kept,
    /// A tree without some drop-ins.
    LeftOut,
}

/// What this host asks for cannot be had. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Unavailable {
    /// When that was seen first.
    pub since: u64,
    /// How often it was tried.
    pub attempts: u32,
    /// When it is to be tried again.
    pub next: u64,
    /// What was to be done, and is done then.
    pub goal: Goal,
    /// Why.
    pub why: String,
    /// What is there instead.
    pub instead: Instead,
}

impl Unavailable {
    /// One more attempt that failed at `now`.
    #[must_use]
    pub fn again(
        before: Option<&Unavailable>,
        now: u64,
        goal: Goal,
        why: String,
        instead: Instead,
    ) -> Unavailable {
        let attempts = before.map_or(0, |b| b.attempts).saturating_add(1);
        let wait = FIRST.saturating_mul(1 << (attempts - 1).min(16)).min(LONGEST);
        // A clock that was set back counts from now on.
        let since = before.map_or(now, |b| b.since.min(now));
        Unavailable { since, attempts, next: now.saturating_add(wait), goal, why, instead }
    }

    /// Whether a job that did `goal` without such trouble has done what was wanted. `anew`: it asked the repositories.
    pub fn is_settled_by(&self, goal: &Goal, anew: bool) -> bool {
        anew || self.goal == *goal
    }

    /// Whether the next attempt is due. A clock that was set back does not make it wait longer than ever.
    pub fn is_due(&self, now: u64) -> bool {
        now >= self.next || self.next - now > LONGEST
    }

    /// Whether it has lasted longer than the administrator allows.
    pub fn is_over(&self, now: u64, grace: Duration) -> bool {
        now.saturating_sub(self.since) >= grace.as_secs()
    }

    /// The same of bound images to prefetch.
    pub fn describe_prefetch(&self) -> String {
        let (since, next) = (utc(self.since), utc(self.next));
        format!("images to prefetch are missing since {since}; next attempt {next}: {}", self.why)
    }

    /// What a person reads in the status.
    pub fn describe(&self) -> String {
        let instead = match self.instead {
            Instead::Nothing => "the system stays as it is",
            Instead::Kept => "those of before are used",
            Instead::LeftOut => "drop-ins were left out",
        };
        let (since, next) = (utc(self.since), utc(self.next));
        format!("packages cannot be had since {since}, {instead}; next attempt {next}: {}", self.why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attempt_waits_twice_as_long_but_never_longer_than_a_day() {
        let mut state: Option<Unavailable> = None;
        let mut waits = Vec::new();
        for now in (0..10).map(|n| 1000 + n) {
            let next =
                Unavailable::again(state.as_ref(), now, Goal::Upgrade, String::new(), Instead::Nothing);
            waits.push((next.next - now) / 60);
            assert_eq!(next.since, 1000);
            state = Some(next);
        }
        assert_eq!(waits, [15, 30, 60, 120, 240, 480, 960, 1440, 1440, 1440]);
        let mut many = state.unwrap();
        many.attempts = u32::MAX;
        assert_eq!(
            Unavailable::again(Some(&many), 5, Goal::Upgrade, String::new(), Instead::Kept).next,
            5 + LONGEST
        );
    }

    #[test]
    fn a_clock_that_is_wrong_neither_hides_nor_stops_it() {
        let first = Unavailable::again(None, 1_000_000, Goal::Upgrade, "x".into(), Instead::Nothing);
        assert!(!first.is_due(1_000_000));
        assert!(first.is_due(1_000_000 + FIRST));
        assert!(first.is_due(5), "the clock was set back by days");
        let second = Unavailable::again(Some(&first), 5, Goal::Upgrade, "x".into(), Instead::Nothing);
        assert_eq!(second.since, 5);
    }

    #[test]
    fn the_grace_counts_from_the_first_time() {
        let first = Unavailable::again(None, 100, Goal::Upgrade, "x".into(), Instead::Nothing);
        let last = Unavailable::again(
            Some(&first),
            100 + GRACE.as_secs() - 1,
            Goal::Upgrade,
            "x".into(),
            Instead::Nothing,
        );
        assert!(!last.is_over(100 + GRACE.as_secs() - 1, GRACE));
        assert!(last.is_over(100 + GRACE.as_secs(), GRACE));
    }

    #[test]
    fn only_what_does_the_same_or_asks_the_repositories_settles_it() {
        let state = Unavailable::again(None, 0, Goal::Upgrade, String::new(), Instead::Kept);
        assert!(state.is_settled_by(&Goal::Upgrade, true));
        assert!(!state.is_settled_by(&Goal::Reconcile, false));
        assert!(state.is_settled_by(&Goal::Reconcile, true));
    }

    #[test]
    fn the_status_says_since_when_what_instead_when_again_and_why() {
        let why = "the repository r does not answer".to_owned();
        let state = Unavailable::again(None, 0, Goal::Upgrade, why, Instead::Kept);
        assert_eq!(
            state.describe(),
            "packages cannot be had since 1970-01-01 00:00:00 UTC, those of before are used; \
             next attempt 1970-01-01 00:15:00 UTC: the repository r does not answer"
        );
    }
}
