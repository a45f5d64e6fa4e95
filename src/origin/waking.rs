//! When the loop wakes without being told to.
//!
//! The directory is looked at every few seconds before anything else is done, so it never rests for
//! longer: whoever watches the stage sees by that that it is alive.

use std::time::Instant;

use super::session::Session;

impl Session<'_, '_> {
    /// When there is something to do next, if no input comes.
    pub(super) fn deadline(&self, now: Instant) -> Instant {
        let look = self.next_root_check;
        if self.halt.is_some() {
            // Nothing else is done, so nothing else that is due may wake us.
            return look;
        }
        if self.lacks_rules() {
            return soonest(now, look, [Some(self.next_poll)]);
        }
        if let Some(rollback) = &self.rollback {
            return soonest(now, look, [Some(rollback.due())]);
        }
        if self.report.full.is_some() {
            return soonest(now, look, [Some(self.next_room_check)]);
        }
        if self.gate.is_asking() {
            // Its answer wakes us, and nothing else is done before.
            return look;
        }
        let waits = [self.gate.deadline(), self.settle.deadline(now), self.commit_deadline(now)];
        soonest(now, look, waits.into_iter().chain([Some(self.next_poll), self.flush_at]))
    }
}

/// The look at the directory, which is done whenever it is due, or what comes before it. What else is
/// due by now and was not done waits for a thread, which wakes us.
fn soonest(
    now: Instant,
    look: Instant,
    others: impl IntoIterator<Item = Option<Instant>>,
) -> Instant {
    others.into_iter().flatten().filter(|at| *at > now).fold(look, Instant::min)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_idle_stage_is_awake_every_few_seconds() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let now = at(60);
        for (why, look, others, wakes) in [
            ("nothing else is due", at(65), [Some(at(120)), None], at(65)),
            ("a poll asks for a look at once", now, [Some(at(120)), None], now),
            ("a commit is due before", at(65), [Some(at(120)), Some(at(61))], at(61)),
            (
                "what waits for a thread does not keep us awake",
                at(65),
                [Some(at(59)), None],
                at(65),
            ),
        ] {
            assert_eq!(soonest(now, look, others), wakes, "{why}");
        }
    }
}
