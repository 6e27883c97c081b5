//! The CSI services over a real socket, on the model of the kernel.

#[cfg(test)]
mod attach;
#[cfg(test)]
mod burst;
#[cfg(test)]
mod capabilities;
#[cfg(test)]
#[path = "../common/mod.rs"]
mod common;
#[cfg(test)]
mod concurrency;
#[cfg(test)]
mod driver;
#[cfg(test)]
mod elsewhere;
#[cfg(test)]
mod health;
#[cfg(test)]
mod health_of_pools;
#[cfg(test)]
mod import;
#[cfg(test)]
mod inline;
#[cfg(test)]
mod input_controller;
#[cfg(test)]
mod input_node;
#[cfg(test)]
mod life;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod listing;
#[cfg(test)]
mod logs;
#[cfg(test)]
mod metrics;
#[cfg(test)]
mod modes;
#[cfg(test)]
mod operator;
#[cfg(test)]
mod orphans;
#[cfg(test)]
mod overcommit;
#[cfg(test)]
mod pools;
#[cfg(test)]
mod sizes;
#[cfg(test)]
mod snapshots;
#[cfg(test)]
mod teardown;
#[cfg(test)]
mod usage;
