//! Named fault points: places where a test kills the process or makes a step fail.
//!
//! Purpose: prove that every step that changes the disk or the kernel may be the last one before a crash.
//! A point is `fault::point!("store.commit.rename")?` beside the step, and `fault::step!("step.store.flush", fsync(fd))` is
//! a step between two points. Without the feature `fault` they are nothing more than the step; with it, the environment
//! arms one:
//!
//! - `ORLOP_FAULT=NAME:abort`, or `NAME:ENOSPC` and other errno names: each time that point is passed;
//! - `ORLOP_FAULT_PLAN=PATH`: once, at the Nth point that is passed after `N:abort` (or another action) was written to that
//!   file, whatever its name, which is then in the file beside it that ends in `.struck`; the plan is gone then.
//!
//! Must not: change behaviour when nothing is armed, or exist in a release build.

/// Hits the named point: aborts the process or returns an error when it is armed.
///
/// Expands to an expression of type `std::io::Result<()>`.
#[macro_export]
#[cfg(feature = "fault")]
macro_rules! fault_point {
    ($name:literal) => {{
        $crate::fault::submit! { $crate::fault::Point($name) }
        $crate::fault::hit($name)
    }};
}

/// Without the feature a point is a success that the compiler removes.
#[macro_export]
#[cfg(not(feature = "fault"))]
macro_rules! fault_point {
    ($name:literal) => {
        std::io::Result::Ok(())
    };
}

/// Does a step between two points of one name; behind it only a death strikes. Its result is that of the step, whose error
/// can be made from an errno.
#[macro_export]
#[cfg(feature = "fault")]
macro_rules! fault_step {
    ($name:literal, $step:expr) => {{
        $crate::fault::submit! { $crate::fault::Point($name) }
        $crate::fault::between($name, || $step)
    }};
}

/// Without the feature it is the step.
#[macro_export]
#[cfg(not(feature = "fault"))]
macro_rules! fault_step {
    ($name:literal, $step:expr) => {
        $step
    };
}

pub use fault_point as point;
pub use fault_step as step;

#[cfg(feature = "fault")]
pub use armed::{Point, all, between, hit, hit_behind};
#[cfg(feature = "fault")]
pub use inventory::submit;

#[cfg(feature = "fault")]
mod armed {
    use std::io;
    use std::path::{Path, PathBuf};
    use std::sync::{Mutex, OnceLock, PoisonError};

    use nix::errno::Errno;

    /// A point that exists in this binary.
    #[derive(Debug)]
    pub struct Point(pub &'static str);

    inventory::collect!(Point);

    /// The names of all points in this binary, sorted, each once.
    #[must_use]
    pub fn all() -> Vec<&'static str> {
        let mut names: Vec<_> = inventory::iter::<Point>.into_iter().map(|point| point.0).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Where a point is, seen from its step.
    #[derive(Debug, Clone, Copy)]
    enum Side {
        Before,
        Behind,
    }

    #[derive(Debug, Clone, Copy)]
    enum Action {
        Abort,
        Fail(Errno),
    }

    impl Action {
        fn read(word: &str) -> Self {
            match word {
                "abort" => Self::Abort,
                "ENOSPC" => Self::Fail(Errno::ENOSPC),
                "EDQUOT" => Self::Fail(Errno::EDQUOT),
                _ => Self::Fail(Errno::EIO),
            }
        }

        /// A step that failed was not done, so it does not fail afterwards.
        fn on(self, side: Side) -> Option<Self> {
            match (self, side) {
                (Self::Fail(_), Side::Behind) => None,
                (Self::Abort, _) | (Self::Fail(_), Side::Before) => Some(self),
            }
        }

        fn strike(self) -> Errno {
            match self {
                Self::Abort => std::process::abort(),
                Self::Fail(errno) => errno,
            }
        }
    }

    /// What the environment says.
    #[derive(Debug)]
    struct Armed {
        point: Option<(String, Action)>,
        plan: Option<PathBuf>,
        /// The plan that was read last, and how many points were passed since.
        passed: Mutex<(String, u64)>,
    }

    impl Armed {
        fn read() -> Self {
            let point = std::env::var("ORLOP_FAULT").ok().and_then(|value| {
                let (name, action) = value.split_once(':')?;
                Some((name.to_owned(), Action::read(action)))
            });
            let plan = std::env::var_os("ORLOP_FAULT_PLAN").map(PathBuf::from);
            Self { point, plan, passed: Mutex::default() }
        }

        fn at(&self, name: &str, side: Side) -> Option<Action> {
            match &self.point {
                Some((armed, action)) if armed == name => action.on(side),
                _ => self.plan.as_ref().and_then(|plan| self.planned(plan, name, side)),
            }
        }

        /// Counts the points that are passed while the plan is there. What strikes takes the plan away, and leaves its name.
        fn planned(&self, plan: &Path, name: &str, side: Side) -> Option<Action> {
            let text = std::fs::read_to_string(plan).ok()?;
            let (number, action) = text.trim().split_once(':')?;
            let action = Action::read(action).on(side)?;
            let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
            if passed.0 != text {
                *passed = (text.clone(), 0);
            }
            passed.1 += 1;
            if number.parse() != Ok(passed.1) {
                return None;
            }
            *passed = (String::new(), 0);
            replace(plan, name).ok()?;
            Some(action)
        }
    }

    #[expect(clippy::disallowed_methods, reason = "files of a test, not of a pool")]
    fn replace(plan: &Path, name: &str) -> io::Result<()> {
        // Whoever takes the plan away decides: a test that ends, or the point that is passed.
        std::fs::remove_file(plan)?;
        std::fs::write(plan.with_extension("struck"), name)
    }

    fn armed() -> &'static Armed {
        static ARMED: OnceLock<Armed> = OnceLock::new();
        ARMED.get_or_init(Armed::read)
    }

    /// Carries out what is armed for this point.
    ///
    /// # Errors
    /// The errno that is armed.
    pub fn hit(name: &'static str) -> io::Result<()> {
        Ok(strike(name, Side::Before)?)
    }

    fn strike(name: &'static str, side: Side) -> Result<(), Errno> {
        armed().at(name, side).map_or(Ok(()), |action| Err(action.strike()))
    }

    /// The same behind a step that was done.
    pub fn hit_behind(name: &'static str) {
        // Only a death strikes here.
        let _nothing = strike(name, Side::Behind);
    }

    /// Does a step between two points.
    ///
    /// # Errors
    /// Those of the step, or the errno that is armed.
    pub fn between<T, E: From<Errno>>(
        name: &'static str,
        step: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        strike(name, Side::Before)?;
        let done = step()?;
        hit_behind(name);
        Ok(done)
    }
}
