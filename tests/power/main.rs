//! Power cuts: what the driver has acknowledged is there after each of them.
//!
//! The guest of `tests/vm/power.sh` runs `guest`: it looks at what the last cut has left, finishes what was begun, looks at
//! that through the driver, and works until its power is cut. What is done is told to the host line by line (`ledger`), so
//! that the next boot knows it (`world`). The other tests here are about the means: a check that finds nothing when
//! something is lost would be worth nothing.

#[cfg(test)]
mod check;
#[cfg(test)]
mod check_tests;
#[cfg(test)]
mod choice;
#[cfg(test)]
#[expect(dead_code, reason = "privileged_driver uses all of it")]
#[path = "../privileged_driver/client.rs"]
mod client;
#[cfg(test)]
#[expect(dead_code, reason = "privileged_driver uses all of it")]
#[path = "../privileged_driver/client_snapshots.rs"]
mod client_snapshots;
#[cfg(test)]
mod content;
#[cfg(test)]
mod disk;
#[cfg(test)]
#[expect(dead_code, reason = "privileged_driver uses all of it")]
#[path = "../privileged_driver/driver.rs"]
mod driver;
#[cfg(test)]
mod guest;
#[cfg(test)]
mod ledger;
#[cfg(test)]
#[expect(dead_code, reason = "privileged_driver uses all of it")]
#[path = "../privileged_driver/life.rs"]
mod life;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod node;
#[cfg(test)]
#[expect(dead_code, reason = "privileged_driver uses all of it")]
#[path = "../privileged/mod.rs"]
mod privileged;
#[cfg(test)]
#[path = "../privileged_driver/random.rs"]
mod random;
#[cfg(test)]
mod worker;
#[cfg(test)]
mod world;
