//! Random histories on the engine and on a small reference: both must say the same, and the disk and the kernel must
//! look as the reference says, whatever crashed, rebooted or failed in between.
//!
//! A step with a fault may fail; the same step without it must then succeed as if nothing had happened.

#[cfg(test)]
mod accounts;
#[cfg(test)]
#[path = "../common/mod.rs"]
mod common;
#[cfg(test)]
mod history;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod world;
