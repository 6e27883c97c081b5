//! The real binary, driven over its socket as external-provisioner and kubelet would, on real mounts and loop devices.
//!
//! Every test has a process, a directory and a mount namespace of its own (see `privileged`). Needs root; without it
//! the tests fail and say so. `ORLOP_KEEP=1` keeps what a failed test leaves, `ORLOP_SEED=N` repeats a random run.

#[cfg(test)]
mod access;
#[cfg(test)]
mod blocks;
#[cfg(test)]
mod burst;
#[cfg(test)]
mod client;
#[cfg(test)]
mod client_snapshots;
#[cfg(test)]
mod content;
#[cfg(test)]
mod cost;
#[cfg(test)]
mod crashes;
#[cfg(test)]
mod driver;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod fill_directories;
#[cfg(test)]
mod fill_images;
#[cfg(test)]
mod filling;
#[cfg(test)]
mod health;
#[cfg(test)]
mod import;
#[cfg(test)]
mod import_faults;
#[cfg(test)]
mod import_limits;
#[cfg(test)]
mod inline;
#[cfg(test)]
mod life;
#[cfg(test)]
mod limit_faults;
#[cfg(test)]
mod managed;
#[cfg(test)]
mod managed_faults;
#[cfg(test)]
mod obstacles;
#[cfg(test)]
mod pods;
#[cfg(test)]
mod pools;
#[cfg(test)]
#[path = "../privileged/mod.rs"]
mod privileged;
#[cfg(test)]
mod restarts;
#[cfg(test)]
mod snapshot_faults;
#[cfg(test)]
mod snapshots;
#[cfg(test)]
mod thick;
#[cfg(test)]
mod usage;
