//! Nothing is lost: random calls from several clients at once, with a driver that is killed again and again.
//!
//! Four pools (ext4, xfs, btrfs, and an xfs that the driver made) are used by all clients at once, while the driver is
//! killed, or armed to die at a random fault point, and started again. What each client was told has to hold: the codes
//! (`soak_model`), and between the rounds, when nobody calls, the whole state (`soak_checks`). At the end everything is
//! deleted, and the pools are as empty as they were.
//!
//! `ORLOP_SEED=N` repeats the choices of a run, not the order in which they meet. `ORLOP_SOAK=N` (`make soak`) makes it N
//! times as long: it is bounded by numbers of steps and kills, never by time. A failure shows the last steps of each
//! client and the driver's log.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a random moment is a random sleep"
)]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::chance::seed;
use crate::client::Client;
use crate::driver::Driver;
use crate::life::check_nothing_left_in;
use crate::managed::orlop;
use crate::privileged::{loops_below, poll, privileged, run};
use crate::random::Random;
use crate::soak_checks::{check, check_empty_rooms, remove_kept, start_afresh};
use crate::soak_client::Actor;
use crate::soak_world::{PoolIn, World, make_pools};

const CLIENTS: usize = 4;
const ROUNDS: u64 = 4;
/// Steps of each client in a round.
const STEPS: u64 = 120;
/// Kills in a round.
const KILLS: u64 = 16;

fn factor() -> u64 {
    std::env::var("ORLOP_SOAK").map_or(1, |text| text.parse().unwrap())
}

#[test]
fn nothing_is_lost_whatever_is_asked_and_whenever_the_driver_dies() {
    privileged(|sandbox| {
        let seed = seed();
        println!("ORLOP_SEED={seed}");
        make_pools(sandbox);
        let mut driver = Driver::start_configured(sandbox, None);
        let rooms = PoolIn::ALL.map(|pool| driver.client.room_in(pool.name()).unwrap());
        let world = Arc::new(World::new(sandbox, CLIENTS));
        let client = |number| Actor::new(&world, number, seed.wrapping_add(number as u64 + 1));
        let mut actors: Vec<Actor> = (0..CLIENTS).map(client).collect();
        let mut random = Random(seed);
        let lived = catch_unwind(AssertUnwindSafe(|| {
            let rounds = ROUNDS * factor();
            for number in 1..=rounds {
                // One driver lives through the last round, so that what it forgets to give back adds up.
                let kills = if number == rounds { 0 } else { KILLS };
                round(&world, &mut driver, &mut actors, &mut random, kills);
                check(&world, &mut driver, &mut actors);
                if number < rounds {
                    start_afresh(&world, &mut driver, &mut actors);
                }
            }
            end(&world, &mut driver, &mut actors, rooms);
        }));
        println!("ORLOP_SEED={seed}");
        println!("{:?}", world.counted());
        if let Err(panic) = lived {
            println!("{}", world.traces());
            resume_unwind(panic);
        }
        println!("nothing was lost");
        take_apart(&world, driver);
    });
}

/// All clients at once, and the driver is killed meanwhile.
fn round(
    world: &Arc<World>,
    driver: &mut Driver,
    actors: &mut [Actor],
    random: &mut Random,
    kills: u64,
) {
    let done = AtomicBool::new(false);
    let begun = world.calls.load(Ordering::SeqCst);
    let mut kills: Vec<u64> =
        (0..kills).map(|_| begun + random.below(STEPS * CLIENTS as u64)).collect();
    kills.sort_unstable();
    let ended = std::thread::scope(|scope| {
        let live = |actor: &mut Actor| (0..STEPS).for_each(|_| actor.step());
        let clients: Vec<_> = actors
            .iter_mut()
            .map(|actor| scope.spawn(move || or_end_all(world, || live(actor))))
            .collect();
        let done = &done;
        let killer =
            scope.spawn(move || or_end_all(world, || kill_at(world, driver, &kills, random, done)));
        let mut ended: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        done.store(true, Ordering::SeqCst);
        ended.push(killer.join().unwrap());
        ended
    });
    for lived in ended {
        if let Err(panic) = lived {
            resume_unwind(panic);
        }
    }
}

/// What panics ends the clients as well, which would wait for long otherwise.
fn or_end_all(world: &World, run: impl FnOnce()) -> std::thread::Result<()> {
    let lived = catch_unwind(AssertUnwindSafe(run));
    if lived.is_err() {
        world.fail();
    }
    lived
}

/// Kills the driver when so many calls were begun, and restarts it; now and then with a fault point at which it dies by
/// itself.
fn kill_at(
    world: &World,
    driver: &mut Driver,
    kills: &[u64],
    random: &mut Random,
    done: &AtomicBool,
) {
    let points = orlop::fault::all();
    // Those that decide whether something exists, more often.
    let stores: Vec<_> = points.iter().copied().filter(|name| name.starts_with("store.")).collect();
    let mut kills = kills.iter().peekable();
    let mut is_armed = false;
    while !done.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(1));
        if driver.is_dead() {
            world.count("(died at a fault point)");
            world.note_start();
            driver.start_again(None);
            world.note_start();
            is_armed = false;
        }
        let now = world.calls.load(Ordering::SeqCst);
        if kills.next_if(|at| **at <= now).is_none() {
            continue;
        }
        std::thread::sleep(Duration::from_micros(random.below(10_000)));
        world.count("(killed)");
        world.note_start();
        driver.kill();
        let point = if random.one_in(2) { random.pick(&points) } else { random.pick(&stores) };
        let point = format!("{point}:abort");
        driver.deaths = 0;
        is_armed = random.one_in(2);
        driver.start_again(is_armed.then_some(&point));
        world.note_start();
        if driver.deaths > 0 {
            world.count("(died while it started)");
            is_armed = false;
        }
    }
    // Whoever checks must not run into a fault point. Otherwise the one that has done all this goes on.
    if is_armed || driver.is_dead() {
        driver.restart();
    }
}

/// Takes everything down and deletes it; then the pools are as they were.
fn end(world: &Arc<World>, driver: &mut Driver, actors: &mut [Actor], rooms: [u64; 4]) {
    for actor in actors.iter_mut() {
        actor.clear();
    }
    let shared: Vec<String> = driver.client.volumes_in_pages(0).unwrap().into_keys().collect();
    for id in shared {
        driver.client.delete(&id).unwrap();
    }
    let pools = PoolIn::ALL.map(|pool| pool.dir(&world.sandbox));
    check_nothing_left_in(&world.sandbox, driver, &pools);
    check_empty_rooms(driver, actors, rooms);
    driver.kill();
    remove_kept(world, actors);
}

fn take_apart(world: &World, driver: Driver) {
    let sandbox = &world.sandbox;
    drop(driver);
    for pool in [PoolIn::Ext4, PoolIn::Xfs, PoolIn::Btrfs] {
        run("umount", &[pool.dir(sandbox)]);
    }
    orlop(sandbox, &["pool", "unmount", PoolIn::Managed.name()]).unwrap();
    poll("the loop devices are gone", || loops_below(sandbox.dir()).is_empty());
}

impl Actor {
    /// Takes down and deletes all that this client has.
    fn clear(&mut self) {
        for slot in 0..self.slots.len() {
            if self.slots[slot].volume.is_some() {
                self.take_down(slot);
                self.delete_now(slot);
                self.claim(self.slots[slot].volume.is_none(), "the last volume is deleted");
            }
        }
        for snapshot in self.snapshots.clone().into_iter().flatten() {
            let step = ("delete a snapshot", snapshot.id.clone());
            self.insist(step, |c: &Client| c.delete_snapshot(&snapshot.id));
        }
        self.delete_group();
    }
}
