//! SIGKILL at random moments.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a random moment is a random sleep"
)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::chance::seed;
use crate::driver::Driver;
use crate::life::{Kind, Life, check_nothing_left};
use crate::privileged::{Sandbox, privileged};
use crate::random::Random;

const ROUNDS: u64 = 20;

#[test]
fn a_driver_that_is_killed_at_any_moment_finishes_after_its_restart() {
    privileged(|sandbox| {
        let seed = seed();
        println!("ORLOP_SEED={seed}");
        let mut random = Random(seed);
        let mut kills = 0;
        for round in 0..ROUNDS {
            let kind = random.pick(&Kind::ALL);
            let delays = [(); 4].map(|()| Duration::from_micros(random.below(60_000)));
            println!("round {round}: {kind:?}, {delays:?}");
            kills += killed_life(&sandbox.sub(&round.to_string()), kind, &delays);
        }
        println!("{kills} kills were noticed in {ROUNDS} rounds");
        assert!(kills > 0);
    });
}

/// Lives in a driver that is killed after each of the delays; how often that was noticed.
fn killed_life(sandbox: &Sandbox, kind: Kind, delays: &[Duration]) -> usize {
    let mut driver = Driver::start(sandbox);
    driver.patient = true;
    let process = driver.process();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for delay in delays {
                std::thread::sleep(*delay);
                process.lock().unwrap().kill().unwrap();
            }
            done.store(true, Ordering::SeqCst);
        });
        let mut lives = 0;
        while lives == 0 || !done.load(Ordering::SeqCst) {
            lives += 1;
            Life::new(sandbox, kind, &format!("v{lives}")).whole(&mut driver);
        }
    });
    check_nothing_left(sandbox, &mut driver);
    driver.deaths
}
