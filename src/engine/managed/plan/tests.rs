//! The planner against a small world that is interrupted anywhere.

use proptest::prelude::*;

use super::*;
use crate::host::{Signature, Superblock};

const OURS: FilesystemUuid = FilesystemUuid::from_bytes([1; 16]);
const OTHERS: FilesystemUuid = FilesystemUuid::from_bytes([2; 16]);
const GIB: u64 = 1 << 30;

fn filesystem(uuid: FilesystemUuid, is_ours: bool, size: u64) -> Content {
    let signature = Signature {
        filesystem: Filesystem::Btrfs,
        size: ByteSize::new(size),
        has_errors: false,
        needs_replay: false,
    };
    Content::Filesystem(Superblock { signature, uuid, is_ours })
}

fn wish(size: Option<u64>) -> Wish {
    Wish {
        name: "p".to_owned(),
        base: PathBuf::from("/images/p.img"),
        filesystem: Filesystem::Btrfs,
        size: size.map(ByteSize::new),
        sparse: false,
    }
}

fn record(making: Making, on_device: bool) -> ManagedRecord {
    ManagedRecord { filesystem: Filesystem::Btrfs, uuid: OURS, on_device, making }
}

/// Nothing is there.
fn nothing() -> Seen {
    Seen::default()
}

/// Made, and not mounted.
fn made() -> Seen {
    Seen {
        record: Some(record(Making::Made, false)),
        known: true,
        content: Some(filesystem(OURS, true, GIB)),
        length: ByteSize::new(GIB),
        allocated: ByteSize::new(GIB),
        ..nothing()
    }
}

fn steps(wish: &Wish, seen: &Seen) -> Vec<Step> {
    match plan(wish, seen).unwrap() {
        Plan::Use { steps, .. } => steps,
        other @ (Plan::Make(_) | Plan::Remember(_)) => panic!("{other:?}"),
    }
}

const WHOLE: LoopSeen = LoopSeen { number: 7, is_whole: true, size: ByteSize::new(GIB) };

#[test]
fn a_life_without_accidents() {
    let wish = wish(Some(GIB));
    assert_eq!(plan(&wish, &nothing()), Ok(Plan::Make(None)));
    let named = Seen { record: Some(record(Making::Begun, false)), known: false, ..made() };
    assert_eq!(plan(&wish, &named), Ok(Plan::Remember(record(Making::Made, false))));
    let fresh = Seen { known: false, ..made() };
    assert_eq!(steps(&wish, &fresh), [Step::Attach, Step::Mount, Step::EnableQuota]);
    assert_eq!(steps(&wish, &made()), [Step::Attach, Step::Mount]);
    let mounted = MountSeen { uuid: Some(OURS), is_base: true, source: "btrfs".to_owned() };
    let mounted = Seen { loops: vec![WHOLE], mounted: Some(mounted), ..made() };
    assert_eq!(steps(&wish, &mounted), [Step::Hold(7)]);
    let larger = Wish { size: Some(ByteSize::new(2 * GIB)), ..wish };
    let (extend, grow) = (Step::Extend(ByteSize::new(2 * GIB)), Step::GrowFilesystem);
    assert_eq!(steps(&larger, &mounted), [extend, Step::Hold(7), Step::RefreshLoop(7), grow]);
    assert_eq!(steps(&larger, &made()), [extend, Step::Attach, Step::Mount, grow]);
    let smaller = Wish { size: Some(ByteSize::new(GIB / 2)), ..larger };
    assert_eq!(steps(&smaller, &mounted), [Step::Hold(7)]);
    assert!(matches!(plan(&smaller, &mounted), Ok(Plan::Use { notes, .. }) if notes.len() == 1));
}

#[test]
fn what_is_in_doubt_is_refused() {
    let image = wish(Some(GIB));
    let sparse = Content::Foreign("data".to_owned());
    let mount =
        |uuid, is_base| Some(MountSeen { uuid, is_base, source: "btrfs on /dev/x".to_owned() });
    let half = LoopSeen { is_whole: false, ..WHOLE };
    for (seen, reason) in [
        (Seen { known: true, ..nothing() }, "was here before"),
        (Seen { content: None, ..made() }, "is gone"),
        (Seen { content: Some(filesystem(OTHERS, true, GIB)), ..made() }, "another filesystem"),
        (Seen { content: Some(Content::Blank), ..made() }, "does not begin with"),
        (Seen { content: Some(sparse.clone()), ..nothing() }, "move it away"),
        (Seen { content: Some(Content::Blank), ..nothing() }, "move it away"),
        (Seen { content: Some(filesystem(OTHERS, false, GIB)), ..nothing() }, "move it away"),
        (Seen { loops: vec![WHOLE, LoopSeen { number: 8, ..WHOLE }], ..made() }, "several loop"),
        (Seen { loops: vec![half], ..made() }, "only a part"),
        (
            Seen { loops: vec![WHOLE], mounted: mount(Some(OTHERS), true), ..made() },
            "something else",
        ),
        (
            Seen { loops: vec![WHOLE], mounted: mount(Some(OURS), false), ..made() },
            "something else",
        ),
        (Seen { mounted: mount(None, false), ..nothing() }, "something is mounted"),
        (Seen { elsewhere: Some("/mnt".into()), ..made() }, "mounted at /mnt"),
        (Seen { private: Some("not shared".to_owned()), ..made() }, "not shared"),
        (Seen { private: Some("not shared".to_owned()), ..nothing() }, "not shared"),
        (Seen { record: Some(record(Making::Made, true)), ..made() }, "on a device"),
    ] {
        let refused = plan(&image, &seen).expect_err(reason);
        assert!(refused.contains(reason), "{reason}: {refused}");
    }
}

#[test]
fn a_disk_is_formatted_only_when_it_is_blank_or_carries_the_claim_of_this_making() {
    let disk = wish(None);
    let begun = || Some(record(Making::Begun, true));
    let on =
        |content: Content| Seen { content: Some(content), length: ByteSize::new(GIB), ..nothing() };
    assert_eq!(plan(&disk, &on(Content::Blank)), Ok(Plan::Make(None)));
    let again = Seen { record: begun(), ..on(Content::Claimed(OURS)) };
    assert_eq!(plan(&disk, &again), Ok(Plan::Make(Some(OURS))));
    let whole = Seen { record: begun(), ..on(filesystem(OURS, true, GIB)) };
    assert_eq!(plan(&disk, &whole), Ok(Plan::Remember(record(Making::Made, true))));
    let adopted = plan(&disk, &on(filesystem(OURS, true, GIB)));
    assert_eq!(adopted, Ok(Plan::Remember(record(Making::Adopted, true))));
    for seen in [
        on(Content::Claimed(OURS)),
        Seen { record: begun(), ..on(Content::Claimed(OTHERS)) },
        Seen { record: begun(), ..on(filesystem(OTHERS, false, GIB)) },
        Seen { record: begun(), ..on(Content::Foreign("data".to_owned())) },
        Seen { record: Some(record(Making::Made, true)), ..on(Content::Blank) },
        Seen { record: Some(record(Making::Made, true)), ..on(Content::Claimed(OURS)) },
        Seen { user: Some("it is mounted".to_owned()), ..on(Content::Blank) },
        Seen { known: true, ..on(Content::Blank) },
        Seen { known: true, record: begun(), ..on(Content::Claimed(OURS)) },
        Seen { record: begun(), ..nothing() },
        on(filesystem(OURS, false, GIB)),
    ] {
        assert!(plan(&disk, &seen).is_err(), "{seen:?}");
    }
}

/// A machine, as far as a managed pool in an image goes.
#[derive(Debug, Clone)]
struct World {
    seen: Seen,
    /// How often mkfs ran on something that had a name.
    made: u32,
}

impl World {
    /// Does one thing that was planned; `false` when there was nothing to do.
    fn advance(&mut self, wish: &Wish) -> Result<bool, String> {
        let size = wish.size.unwrap();
        match plan(wish, &self.seen)? {
            Plan::Make(uuid) => {
                self.made += 1;
                let uuid = uuid.unwrap_or(OURS);
                self.seen.record = Some(ManagedRecord { uuid, ..record(Making::Begun, false) });
                self.seen.content = Some(filesystem(uuid, true, size.bytes()));
                (self.seen.length, self.seen.allocated) = (size, size);
            }
            Plan::Remember(record) => self.seen.record = Some(record),
            Plan::Use { steps, .. } => {
                let mut more = false;
                for step in steps {
                    more |= self.step(step);
                }
                more |= !self.seen.known;
                self.seen.known = true;
                return Ok(more);
            }
        }
        Ok(true)
    }

    fn step(&mut self, step: Step) -> bool {
        match step {
            Step::Extend(size) => (self.seen.length, self.seen.allocated) = (size, size),
            Step::FillHoles => self.seen.allocated = self.seen.length,
            Step::Attach => {
                self.seen.loops.push(LoopSeen { size: self.seen.length, ..WHOLE });
            }
            Step::RefreshLoop(_) => self.seen.loops[0].size = self.seen.length,
            Step::Mount => {
                let source = "btrfs".to_owned();
                self.seen.mounted = Some(MountSeen { uuid: Some(OURS), is_base: true, source });
            }
            Step::GrowFilesystem => {
                let size = self.seen.loops[0].size;
                self.seen.content = Some(filesystem(OURS, true, size.bytes()));
            }
            Step::Hold(_) | Step::EnableQuota => return false,
        }
        assert!(self.seen.loops.len() <= 1, "a second loop device");
        true
    }

    /// What a crash at any instant leaves of what was planned: some of the steps, or a making without its name.
    fn crash(&mut self, wish: &Wish, after: usize) {
        match plan(wish, &self.seen) {
            Ok(Plan::Make(uuid)) => {
                let uuid = uuid.unwrap_or(OURS);
                self.seen.record = Some(ManagedRecord { uuid, ..record(Making::Begun, false) });
            }
            Ok(Plan::Use { steps, .. }) => {
                for step in steps.into_iter().take(after) {
                    self.step(step);
                }
            }
            Ok(Plan::Remember(_)) | Err(_) => {}
        }
        // AUTOCLEAR
        if self.seen.mounted.is_none() {
            self.seen.loops.clear();
        }
    }
}

proptest! {
    #[test]
    fn whatever_happens_it_ends_mounted_made_once_and_as_large_as_it_should_be(
        events in proptest::collection::vec((0_u8..5, 0_usize..6), 0..20)
    ) {
        let mut world = World { seen: nothing(), made: 0 };
        let mut wish = wish(Some(GIB));
        for (event, after) in events {
            match event {
                0 => drop(world.advance(&wish)),
                1 | 2 => world.crash(&wish, after),
                // A reboot.
                3 => (world.seen.mounted, world.seen.loops) = (None, Vec::new()),
                _ => wish.size = wish.size.map(|size| size.saturating_add(ByteSize::new(GIB))),
            }
        }
        let mut rounds = 0;
        while world.advance(&wish).unwrap() {
            rounds += 1;
            prop_assert!(rounds < 6, "it never ends: {:?}", world);
        }
        prop_assert_eq!(world.made, 1);
        prop_assert!(world.seen.mounted.is_some());
        prop_assert_eq!(world.seen.loops.len(), 1);
        let size = wish.size.unwrap();
        prop_assert_eq!(world.seen.content, Some(filesystem(OURS, true, size.bytes())));
    }

    #[test]
    fn nothing_is_made_unless_there_is_nothing(
        content in prop_oneof![
            Just(None),
            Just(Some(Content::Blank)),
            Just(Some(Content::Claimed(OURS))),
            Just(Some(Content::Claimed(OTHERS))),
            Just(Some(Content::Foreign("x".to_owned()))),
            (any::<bool>(), any::<bool>()).prop_map(|(ours, label)| {
                Some(filesystem(if ours { OURS } else { OTHERS }, label, GIB))
            }),
        ],
        making in prop_oneof![
            Just(None),
            Just(Some(Making::Begun)),
            Just(Some(Making::Made)),
            Just(Some(Making::Adopted)),
        ],
        known in any::<bool>(),
        on_device in any::<bool>(),
    ) {
        let wish = wish((!on_device).then_some(GIB));
        let record = making.map(|making| record(making, on_device));
        let seen = Seen { record, known, content: content.clone(), ..nothing() };
        if let Ok(Plan::Make(uuid)) = plan(&wish, &seen) {
            prop_assert!(!known && !matches!(making, Some(Making::Made | Making::Adopted)));
            match content {
                None => prop_assert!(!on_device),
                Some(Content::Blank) => prop_assert!(on_device),
                Some(Content::Claimed(claim)) => {
                    prop_assert!(on_device && making.is_some() && uuid == Some(claim));
                }
                other => prop_assert!(false, "made over {:?}", other),
            }
        }
    }
}
