//! What random tests of this binary do with random numbers; `ORLOP_SEED=N` repeats a run.

use crate::random::Random;

impl Random {
    /// Once in so many times.
    pub(crate) fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    pub(crate) fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(u64::try_from(length).unwrap())).unwrap()
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.index(from.len())]
    }
}

/// That of the environment, or another one each time.
pub(crate) fn seed() -> u64 {
    if let Ok(text) = std::env::var("ORLOP_SEED") {
        return text.parse().unwrap();
    }
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).unwrap();
    u64::from_ne_bytes(bytes)
}
