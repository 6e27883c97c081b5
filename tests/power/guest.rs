//! One boot of the guest: look, finish, look again, work.

#![expect(clippy::print_stdout, clippy::exit, reason = "speaks to the host, and ends the guest")]

use std::path::Path;
use std::sync::Mutex;

use crate::check;
use crate::choice::{Chooser, Wanted};
use crate::ledger::{Event, LASTING, Line, Op, Pool, read};
use crate::life::Kind;
use crate::node::Node;
use crate::random::Random;
use crate::worker::{Ledger, Trap, Worker, wait_until_swept};
use crate::world::World;

/// How this boot ends, as the host has decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The host kills QEMU at some moment.
    Anywhere,
    /// The guest cuts its power when something was acknowledged.
    Acknowledged,
    /// The last boot: in good order.
    Orderly,
}

impl End {
    fn of(word: &str) -> Self {
        match word {
            "anywhere" => Self::Anywhere,
            "acknowledged" => Self::Acknowledged,
            "orderly" => Self::Orderly,
            _ => panic!("ORLOP_POWER_END={word}"),
        }
    }
}

/// The kinds of volumes that a cut waits for. The others are large, and rare.
const KINDS: [Kind; 4] = [Kind::Hostpath, Kind::Hostpath, Kind::Ext4, Kind::Block];

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// What the boots before this one have told the host, in files that are named in their order.
fn history(directory: &Path) -> World {
    let mut names = crate::node::names(directory);
    names.retain(|name| name.starts_with("events."));
    names.sort();
    let mut world = World::default();
    for name in names {
        let text = std::fs::read_to_string(directory.join(name)).unwrap();
        for event in read(&text) {
            world.hear(&event);
        }
    }
    world
}

/// A thread that panics must not wait for others that work on; and what the driver said is gone with the guest.
fn end_with_the_first_panic(log: &Path) {
    let log = log.to_owned();
    std::panic::set_hook(Box::new(move |panic| {
        println!("{panic}");
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<&str> = said.lines().collect();
        println!("--- the last that the driver said ---");
        println!("{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        std::process::exit(101);
    }));
}

fn complain(faults: &[String]) {
    assert!(faults.is_empty(), "{} findings:\n{}", faults.len(), faults.join("\n"));
}

#[test]
#[ignore = "needs power cuts: make power"]
fn what_was_acknowledged_is_there() {
    let mut random = Random(variable("ORLOP_SEED").parse().unwrap());
    let end = End::of(&variable("ORLOP_POWER_END"));
    let world = history(Path::new(&variable("ORLOP_POWER_HISTORY")));
    let line = Line::open(Path::new(&variable("ORLOP_POWER_PORT")));
    let mut ledger = Ledger::new(world, line);
    ledger.tell(&Event::Boot);
    let node = Node::new(ledger.world.pools.is_empty());
    end_with_the_first_panic(&node.sandbox.path("driver.log"));
    let known = ledger.world.pools.clone();
    for pool in known.iter().filter(|pool| **pool != Pool::Managed) {
        complain(&check::faults(&node, &ledger.world, *pool));
    }
    complain(&node.check_pools(known.iter().copied().filter(|pool| *pool != Pool::Managed)));
    let driver = node.start_driver();
    complain(&check::faults(&node, &ledger.world, Pool::Managed));
    ledger.tell(&Event::Ready { pools: Pool::ALL.into() });
    let ledger = Mutex::new(ledger);
    for_each_pool(|pool| recover(&node, &ledger, pool, Random(random.clone().next())));
    complain(&node.check_pools(Pool::ALL));
    ledger.lock().unwrap().tell(&Event::Checked);
    if end == End::Orderly {
        for_each_pool(|pool| put_away(&node, &ledger, pool));
        wait_until_swept(&node, &Pool::ALL, &["incoming", "trash"]);
        driver.terminate();
        node.end();
        report(&ledger.lock().unwrap().world);
        return;
    }
    work(&node, &ledger, end, &mut random);
}

fn for_each_pool(act: impl Fn(Pool) + Sync) {
    std::thread::scope(|scope| {
        for pool in Pool::ALL {
            let act = &act;
            scope.spawn(move || act(pool));
        }
    });
}

/// The clients of a pool that have made anything.
fn clients(world: &World, pool: Pool) -> Vec<String> {
    let ours = |client: &&String| client.split('-').next() == Some(pool.name());
    world.births.keys().filter(ours).cloned().collect()
}

/// Finishes what was begun, and looks at everything through the driver.
fn recover(node: &Node, ledger: &Mutex<Ledger>, pool: Pool, mut random: Random) {
    let world = ledger.lock().unwrap().world.clone();
    wait_until_swept(node, &[pool], &["incoming"]);
    let clients = clients(&world, pool);
    for client in &clients {
        let worker = Worker::new(node, ledger, client);
        if let Some(begun) = world.begun.get(client) {
            worker.finish(&begun.op);
        }
        let now = worker.ledger().world.clone();
        for name in now.volumes.keys().filter(|name| World::owner(name) == client) {
            worker.look_at(name);
        }
    }
    // One snapshot: to make a volume of it takes a while. One that nobody has read yet comes first.
    let now = ledger.lock().unwrap().world.clone();
    let snapshots = now.snapshots.iter().filter(|(_, snapshot)| snapshot.spec.pool == pool);
    let chosen = snapshots.min_by_key(|(_, snapshot)| (snapshot.read, random.next()));
    if let Some((name, _)) = chosen {
        Worker::new(node, ledger, World::owner(name)).look_at_snapshot(name);
    }
}

fn put_away(node: &Node, ledger: &Mutex<Ledger>, pool: Pool) {
    let world = ledger.lock().unwrap().world.clone();
    for client in clients(&world, pool) {
        let worker = Worker::new(node, ledger, &client);
        for name in world.volumes.keys().filter(|name| World::owner(name) == client) {
            worker.go(&Op::Down { volume: name.clone() });
        }
    }
}

/// Until the power is cut.
fn work(node: &Node, ledger: &Mutex<Ledger>, end: End, random: &mut Random) {
    let pick = |random: &mut Random, of: usize| {
        usize::try_from(random.below(u64::try_from(of).unwrap())).unwrap()
    };
    let mut trapped = None;
    if end == End::Acknowledged {
        let pool = Pool::ALL[pick(random, Pool::ALL.len())];
        let word = LASTING[pick(random, LASTING.len())];
        let wanted = Wanted { word, kind: KINDS[pick(random, KINDS.len())] };
        trapped = Some(pool);
        let (client, after) = (format!("{}-0", pool.name()), pick(random, 3));
        ledger.lock().unwrap().trap = Some(Trap { client, wanted, after });
    }
    ledger.lock().unwrap().tell(&Event::Working);
    std::thread::scope(|scope| {
        for pool in Pool::ALL {
            // What somebody else flushes on a filesystem may be what a client was told is flushed.
            let alone = match (trapped, pool) {
                (Some(Pool::Ext4), Pool::Managed) | (Some(Pool::Managed), Pool::Ext4) => continue,
                // It is small.
                (_, Pool::Managed) => true,
                (Some(trapped), pool) => trapped == pool,
                (None, _) => false,
            };
            let number = if alone { 1 } else { 1 + random.below(2) };
            for client in 0..number {
                let name = format!("{}-{client}", pool.name());
                let random = Random(random.next());
                scope.spawn(move || {
                    live(&Worker::new(node, ledger, &name), pool, random);
                });
            }
        }
    });
}

fn live(worker: &Worker<'_>, pool: Pool, mut random: Random) -> ! {
    loop {
        let op = {
            let ledger = worker.ledger();
            let client = worker.name.as_str();
            let wanted = ledger.wanted(client);
            Chooser { world: &ledger.world, pool, client }.next(&mut random, wanted)
        };
        worker.go(&op);
    }
}

/// What the host adds up.
fn report(world: &World) {
    let (cuts, checked, in_flight) = (world.boots - 1, world.checked, world.in_flight);
    // libtest's line has no end yet.
    println!("\npower: {cuts} cuts, {checked} acknowledged, {in_flight} in-flight");
}
