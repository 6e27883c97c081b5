//! `LinuxHost` on real mounts, loop devices and filesystems.
//!
//! Every test has a process, a directory and a mount namespace of its own (see `privileged`). Needs root; without it
//! the tests fail and say so.

#[cfg(test)]
#[path = "privileged/host_filesystems.rs"]
mod filesystems;
#[cfg(test)]
#[path = "privileged/host_limits.rs"]
mod limits;
#[cfg(test)]
#[path = "privileged/host_limits_project.rs"]
mod limits_project;
#[cfg(test)]
#[path = "privileged/host_loops.rs"]
mod loops;
#[cfg(test)]
#[path = "privileged/host_managed.rs"]
mod managed;
#[cfg(test)]
#[path = "privileged/host_mounts.rs"]
mod mounts;
#[cfg(test)]
mod privileged;
#[cfg(test)]
#[path = "privileged/host_vm.rs"]
mod vm;
