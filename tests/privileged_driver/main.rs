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
mod chance;
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
mod damage;
#[cfg(test)]
mod damage_check;
#[cfg(test)]
mod damage_hung;
#[cfg(test)]
mod damage_many;
#[cfg(test)]
mod damage_pool;
#[cfg(test)]
mod damage_release;
#[cfg(test)]
mod demonstration;
#[cfg(test)]
mod disks;
#[cfg(test)]
mod doctor;
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
mod orphans;
#[cfg(test)]
mod planted;
#[cfg(test)]
mod pods;
#[cfg(test)]
mod pools;
#[cfg(test)]
#[path = "../privileged/mod.rs"]
mod privileged;
#[cfg(test)]
mod random;
#[cfg(test)]
mod restarts;
#[cfg(test)]
mod shown;
#[cfg(test)]
mod snapshot_faults;
#[cfg(test)]
mod snapshots;
#[cfg(test)]
mod soak;
#[cfg(test)]
mod soak_calls;
#[cfg(test)]
mod soak_checks;
#[cfg(test)]
mod soak_client;
#[cfg(test)]
mod soak_contended;
#[cfg(test)]
mod soak_copies;
#[cfg(test)]
mod soak_invalid;
#[cfg(test)]
mod soak_model;
#[cfg(test)]
mod soak_node;
#[cfg(test)]
mod soak_volumes;
#[cfg(test)]
mod soak_world;
#[cfg(test)]
mod step_cases;
#[cfg(test)]
mod steps;
#[cfg(test)]
mod strays;
#[cfg(test)]
mod thick;
#[cfg(test)]
mod usage;
