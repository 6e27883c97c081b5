//! Named fault points: places where a test kills the process or makes a step fail.
//!
//! Purpose: prove that every step that changes the disk or the kernel may be the last one before a crash.
//! A point is `fault::point!("store.commit.rename")?` beside the step. Without the feature `fault` it is nothing;
//! with it, the environment variable `ORLOP_FAULT` (`NAME:abort`, or `NAME:ENOSPC` and other errno names) arms one.
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

pub use fault_point as point;

#[cfg(feature = "fault")]
pub use armed::{Point, all, hit};
#[cfg(feature = "fault")]
pub use inventory::submit;

#[cfg(feature = "fault")]
mod armed {
    use std::io;
    use std::sync::OnceLock;

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

    /// What the environment arms: a name and what happens there.
    fn armed() -> Option<&'static (String, String)> {
        static ARMED: OnceLock<Option<(String, String)>> = OnceLock::new();
        ARMED
            .get_or_init(|| {
                let value = std::env::var("ORLOP_FAULT").ok()?;
                let (name, action) = value.split_once(':')?;
                Some((name.to_owned(), action.to_owned()))
            })
            .as_ref()
    }

    /// Carries out what is armed for this point.
    ///
    /// # Errors
    /// The errno that is armed.
    pub fn hit(name: &'static str) -> io::Result<()> {
        let Some((armed, action)) = armed() else {
            return Ok(());
        };
        if armed != name {
            return Ok(());
        }
        let errno = match action.as_str() {
            "abort" => std::process::abort(),
            "ENOSPC" => nix::errno::Errno::ENOSPC,
            "EDQUOT" => nix::errno::Errno::EDQUOT,
            _ => nix::errno::Errno::EIO,
        };
        Err(io::Error::from(errno))
    }
}
