//! `make bench`: what the driver costs, beside what the machine asks for the same.
//!
//! A release build serves its socket, on a pool of this machine's own disk, with real mounts and loop devices. Each figure
//! stands beside its floor: the system calls and programs that cannot be done without, measured in the same run. The ratio of
//! the two is what is worth comparing between machines.
//!
//! - `ORLOP_BIN`: the binary; `ORLOP_BASE`: another one to compare it with, measured in the same run.
//! - `ORLOP_BENCH_AT`: a directory on the disk that is measured, `/var/tmp` otherwise.
//! - `ORLOP_BENCH_COUNT`: calls of each kind, 200 otherwise; `ORLOP_BENCH_KEPT`: volumes that lie in the pool meanwhile, in
//!   words, `0 1000 10000` otherwise.
//!
//! Must not: judge. It says what was measured, and fails only when a call fails.

#[cfg(test)]
mod calls;
#[cfg(test)]
mod copies;
#[cfg(test)]
mod driver;
#[cfg(test)]
mod floor;
#[cfg(test)]
#[expect(dead_code, unused_imports, reason = "the privileged tests use all of it")]
#[path = "../privileged/mod.rs"]
mod privileged;
#[cfg(test)]
mod report;
#[cfg(test)]
mod suite;

fn main() {
    #[cfg(test)]
    suite::main();
}
