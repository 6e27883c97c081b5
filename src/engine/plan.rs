//! The planner of the node side: a pure function from what is asked and what was seen to steps.
//!
//! Invariants: with everything as asked the plan is empty; a plan that was cut off anywhere and made again ends in the
//! same state; nothing is ever unmounted or detached to make way for something else.
//!
//! Must not: do I/O, or know a volume's record.

use std::path::{Path, PathBuf};

use crate::volume::MountAttributes;

/// What a volume is to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory of the pool, bound.
    Directory,
    /// A filesystem on a loop device, mounted.
    Filesystem,
    /// A loop device, its node bound.
    Device,
}

/// What lies at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// No mount.
    Nothing,
    /// This volume, with these attributes.
    Same(MountAttributes),
    /// Something else, in words.
    Other(String),
}

/// A loop device on the volume's image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoopSeen {
    /// N of /dev/loopN.
    pub number: u32,
    /// It refuses writes.
    pub read_only: bool,
    /// It goes away with its last user.
    pub autoclear: bool,
    /// It does not show the whole image.
    pub partial: bool,
}

/// One change. Each is carried out by `engine::apply` with system calls, and can be taken back until the plan is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Makes the directory that is mounted on, if it is not there.
    MakeDirectory(PathBuf),
    /// Makes the staging directory of a device, if it is not there; the file in it may be a leftover of a killed stage.
    EnsureDirectory(PathBuf),
    /// Makes the empty file that a device node is bound on, if it is not there.
    MakeFile(PathBuf),
    /// Binds the volume's own directory.
    BindData(PathBuf, MountAttributes),
    /// Binds what is staged.
    BindStaged(PathBuf, MountAttributes),
    /// Sets up a loop device on the image.
    Attach {
        /// It refuses writes.
        read_only: bool,
        /// It goes away with its last user.
        autoclear: bool,
    },
    /// Keeps the loop device that is there.
    Hold(u32),
    /// Looks at the filesystem, and repairs it when its superblock asks for that.
    Check,
    /// Grows the filesystem before it is mounted.
    GrowUnmounted,
    /// Mounts the filesystem of the loop device that was set up or kept.
    MountFilesystem(PathBuf, MountAttributes),
    /// Grows the mounted filesystem to its device.
    Grow(PathBuf),
    /// Sets up a read-only loop device on the volume's loop device: a bound device node cannot be read-only.
    AttachView,
    /// Binds the node of the loop device that was set up or kept.
    BindDevice(PathBuf),
}

/// Why no plan leads from what was seen to what is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The path holds something else: ALREADY_EXISTS.
    Conflict(String),
    /// The volume's state forbids it: FAILED_PRECONDITION.
    Precondition(String),
}

/// All that staging depends on.
#[derive(Debug, Clone)]
pub struct StageView {
    /// What the volume is.
    pub kind: Kind,
    /// Where it is mounted; for a device the file beneath the staging path.
    pub path: PathBuf,
    /// The staging path itself.
    pub staging: PathBuf,
    /// How it is to be mounted; `read_only` for readers.
    pub attributes: MountAttributes,
    /// What lies at `path`.
    pub seen: Seen,
    /// The loop devices on the image.
    pub loops: Vec<LoopSeen>,
    /// The filesystem is smaller than its image.
    pub outgrown: bool,
    /// It can grow while it is mounted.
    pub grows_mounted: bool,
}

/// Every attribute that is asked for is there, and writing is possible exactly when it should be.
fn satisfies(seen: MountAttributes, asked: MountAttributes) -> bool {
    // `strictatime` and the absence of others cannot be told from the kernel's defaults.
    seen.read_only == asked.read_only
        && (seen.no_suid || !asked.no_suid)
        && (seen.no_dev || !asked.no_dev)
        && (seen.no_exec || !asked.no_exec)
        && (seen.no_atime || !asked.no_atime)
        && (seen.no_dir_atime || !asked.no_dir_atime)
        && (seen.no_symlink_follow || !asked.no_symlink_follow)
}

/// Whether what lies at a path is what is asked for; `Ok(false)` when nothing lies there.
fn settled(path: &Path, seen: &Seen, asked: MountAttributes) -> Result<bool, Refusal> {
    match seen {
        Seen::Nothing => Ok(false),
        Seen::Same(attributes) if satisfies(*attributes, asked) => Ok(true),
        Seen::Same(attributes) => Err(Refusal::Conflict(format!(
            "the volume is mounted at {} already, but with other attributes (read-only: {}, asked: {}); unmount it there first",
            path.display(),
            attributes.read_only,
            asked.read_only
        ))),
        Seen::Other(what) => Err(Refusal::Conflict(format!(
            "{} is taken: {what} is mounted there; unmount it first",
            path.display()
        ))),
    }
}

/// The steps that stage a volume.
///
/// # Errors
/// Something else is in the way.
pub fn stage(view: &StageView) -> Result<Vec<Step>, Refusal> {
    let settled = settled(&view.path, &view.seen, view.attributes)?;
    let target = || view.path.clone();
    match view.kind {
        Kind::Directory | Kind::Device if settled => Ok(Vec::new()),
        Kind::Directory => {
            Ok(vec![Step::MakeDirectory(target()), Step::BindData(target(), view.attributes)])
        }
        Kind::Filesystem => {
            let writable = !view.attributes.read_only;
            let mut steps = Vec::new();
            if !settled {
                steps.push(Step::MakeDirectory(target()));
                // Also for readers the device is writable: a journal has to be replayed before it can be read.
                steps.push(loop_step(view, false, true)?);
                steps.push(Step::Check);
                if writable && view.outgrown && !view.grows_mounted {
                    steps.push(Step::GrowUnmounted);
                }
                steps.push(Step::MountFilesystem(target(), view.attributes));
            }
            if writable && view.outgrown && view.grows_mounted {
                steps.push(Step::Grow(target()));
            }
            Ok(steps)
        }
        Kind::Device => Ok(vec![
            Step::EnsureDirectory(view.staging.clone()),
            Step::MakeFile(target()),
            loop_step(view, view.attributes.read_only, false)?,
            Step::BindDevice(target()),
        ]),
    }
}

/// Use the loop device that is there, or set one up. One image has one loop device, ever.
fn loop_step(view: &StageView, read_only: bool, autoclear: bool) -> Result<Step, Refusal> {
    match view.loops.as_slice() {
        [] => Ok(Step::Attach { read_only, autoclear }),
        [one] if one.partial => Err(Refusal::Precondition(format!(
            "/dev/loop{} shows only a part of the image; it is not from this driver: detach it with losetup -d",
            one.number
        ))),
        [one] if one.read_only != read_only => Err(Refusal::Precondition(format!(
            "/dev/loop{} on the image is {}, asked is the opposite; unstage the volume first",
            one.number,
            if one.read_only { "read-only" } else { "writable" }
        ))),
        // A bound device node does not hold its loop device, so this one could vanish under a pod.
        [one] if one.autoclear && !autoclear => Err(Refusal::Precondition(format!(
            "/dev/loop{} on the image would go away with its last user; detach it with losetup -d",
            one.number
        ))),
        [one] => Ok(Step::Hold(one.number)),
        several => Err(Refusal::Precondition(format!(
            "{} loop devices are on one image, which would destroy it; detach all but one: {}",
            several.len(),
            several.iter().map(|l| format!("/dev/loop{}", l.number)).collect::<Vec<_>>().join(", ")
        ))),
    }
}

/// Another target path of the volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherTarget {
    /// Where.
    pub path: PathBuf,
    /// It cannot be written through.
    pub read_only: bool,
}

/// All that publishing depends on.
#[derive(Debug, Clone)]
pub struct PublishView {
    /// What the volume is.
    pub kind: Kind,
    /// The staging path (for a device: the file beneath it).
    pub staging: PathBuf,
    /// What lies there.
    pub staged: Seen,
    /// The loop device behind a staged device.
    pub device: Option<LoopSeen>,
    /// The target path.
    pub target: PathBuf,
    /// How it is to be mounted; `read_only` for readers.
    pub attributes: MountAttributes,
    /// What lies at the target path.
    pub seen: Seen,
    /// The access mode allows one target only.
    pub exclusive: bool,
    /// The access mode allows one writer only.
    pub one_writer: bool,
    /// The volume's other targets.
    pub others: Vec<OtherTarget>,
}

/// The steps that publish a staged volume.
///
/// # Errors
/// It is not staged, something else is in the way, or the access mode forbids another target.
pub fn publish(view: &PublishView) -> Result<Vec<Step>, Refusal> {
    let staged = match &view.staged {
        Seen::Same(attributes) => *attributes,
        Seen::Nothing => {
            return Err(Refusal::Precondition(format!(
                "the volume is not staged at {}; call NodeStageVolume first",
                view.staging.display()
            )));
        }
        Seen::Other(what) => {
            return Err(Refusal::Precondition(format!(
                "the staging path holds {what}, not this volume; unstage it first"
            )));
        }
    };
    if staged.read_only && !view.attributes.read_only {
        return Err(Refusal::Precondition(
            "the volume is staged read-only; unstage it and stage it for writing".to_owned(),
        ));
    }
    if settled(&view.target, &view.seen, view.attributes)? {
        return Ok(Vec::new());
    }
    check_mode(view)?;
    let target = || view.target.clone();
    match (view.kind, view.device) {
        (Kind::Directory | Kind::Filesystem, _) => {
            Ok(vec![Step::MakeDirectory(target()), Step::BindStaged(target(), view.attributes)])
        }
        (Kind::Device, Some(device)) => {
            let mut steps = vec![Step::MakeFile(target()), Step::Hold(device.number)];
            if view.attributes.read_only && !device.read_only {
                steps.push(Step::AttachView);
            }
            steps.push(Step::BindDevice(target()));
            Ok(steps)
        }
        (Kind::Device, None) => Err(Refusal::Precondition(
            "the loop device behind the staged volume is gone; unstage and stage it again"
                .to_owned(),
        )),
    }
}

fn check_mode(view: &PublishView) -> Result<(), Refusal> {
    let list = |others: &mut dyn Iterator<Item = &OtherTarget>| {
        others.map(|other| other.path.display().to_string()).collect::<Vec<_>>().join(", ")
    };
    if view.exclusive && !view.others.is_empty() {
        return Err(Refusal::Precondition(format!(
            "the access mode allows one target path and the volume is published at {}; unpublish it there first",
            list(&mut view.others.iter())
        )));
    }
    let mut writers = view.others.iter().filter(|other| !other.read_only).peekable();
    if view.one_writer && !view.attributes.read_only && writers.peek().is_some() {
        return Err(Refusal::Precondition(format!(
            "the access mode allows one writer and the volume is published for writing at {}",
            list(&mut writers)
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attributes(read_only: bool) -> MountAttributes {
        MountAttributes { read_only, ..MountAttributes::default() }
    }

    fn device() -> LoopSeen {
        LoopSeen { number: 3, read_only: false, autoclear: true, partial: false }
    }

    fn view(kind: Kind, read_only: bool, outgrown: bool) -> StageView {
        StageView {
            kind,
            path: "/s/path".into(),
            staging: "/s".into(),
            attributes: attributes(read_only),
            seen: Seen::Nothing,
            loops: Vec::new(),
            outgrown,
            grows_mounted: true,
        }
    }

    /// What the kernel shows after a step.
    fn carry_out(view: &mut StageView, step: &Step) {
        match step {
            Step::Attach { read_only, autoclear } => view.loops.push(LoopSeen {
                number: 3,
                read_only: *read_only,
                autoclear: *autoclear,
                partial: false,
            }),
            Step::BindData(_, attributes) | Step::MountFilesystem(_, attributes) => {
                view.seen = Seen::Same(*attributes);
            }
            Step::BindDevice(_) => view.seen = Seen::Same(attributes(view.attributes.read_only)),
            Step::Grow(_) | Step::GrowUnmounted => view.outgrown = false,
            Step::MakeDirectory(_)
            | Step::EnsureDirectory(_)
            | Step::MakeFile(_)
            | Step::Hold(_)
            | Step::Check
            | Step::AttachView
            | Step::BindStaged(..) => {}
        }
    }

    fn kinds() -> impl Strategy<Value = Kind> {
        prop_oneof![Just(Kind::Directory), Just(Kind::Filesystem), Just(Kind::Device)]
    }

    proptest! {
        #[test]
        fn a_stage_that_is_cut_anywhere_and_repeated_ends_in_an_empty_plan(
            kind in kinds(), read_only: bool, outgrown: bool, grows_mounted: bool, cut in 0_usize..8,
        ) {
            let mut view = view(kind, read_only, outgrown);
            view.grows_mounted = grows_mounted;
            for step in stage(&view).unwrap().iter().take(cut) {
                carry_out(&mut view, step);
            }
            // A crash closes the device: one with AUTOCLEAR that is not mounted goes away.
            if view.seen == Seen::Nothing {
                view.loops.retain(|l| !l.autoclear);
            }
            for step in stage(&view).unwrap() {
                carry_out(&mut view, &step);
            }
            prop_assert_eq!(stage(&view).unwrap(), Vec::new());
            prop_assert!(view.loops.len() <= 1, "one loop device per image");
            let grown = kind != Kind::Filesystem || read_only || !view.outgrown;
            prop_assert!(grown, "a writable filesystem is as large as its image");
        }
    }

    #[test]
    fn what_is_in_the_way_is_refused_and_never_removed() {
        for kind in [Kind::Directory, Kind::Filesystem, Kind::Device] {
            let mut taken = view(kind, false, false);
            taken.seen = Seen::Other("tmpfs".to_owned());
            assert!(matches!(stage(&taken), Err(Refusal::Conflict(_))));
            taken.seen = Seen::Same(attributes(true));
            assert!(
                matches!(stage(&taken), Err(Refusal::Conflict(_))),
                "read-only is not writable"
            );
        }
    }

    #[test]
    fn loop_devices_that_are_not_right_are_refused() {
        let partial = LoopSeen { partial: true, ..device() };
        let read_only = LoopSeen { read_only: true, ..device() };
        for (kind, loops) in [
            (Kind::Filesystem, vec![device(), device()]),
            (Kind::Filesystem, vec![partial]),
            (Kind::Filesystem, vec![read_only]),
            (Kind::Device, vec![device()]),
        ] {
            let mut view = view(kind, false, false);
            view.loops = loops;
            assert!(matches!(stage(&view), Err(Refusal::Precondition(_))), "{view:?}");
        }
        let mut half = view(Kind::Filesystem, false, false);
        half.loops = vec![device()];
        assert!(stage(&half).unwrap().contains(&Step::Hold(3)), "a half-done attach is taken over");
    }

    fn publish_view(kind: Kind, read_only: bool) -> PublishView {
        PublishView {
            staging: "/s".into(),
            kind,
            staged: Seen::Same(attributes(false)),
            device: Some(LoopSeen { autoclear: false, ..device() }),
            target: "/t".into(),
            attributes: attributes(read_only),
            seen: Seen::Nothing,
            exclusive: false,
            one_writer: false,
            others: Vec::new(),
        }
    }

    #[test]
    fn publishing_again_does_nothing() {
        for kind in [Kind::Directory, Kind::Filesystem, Kind::Device] {
            for read_only in [false, true] {
                let mut view = publish_view(kind, read_only);
                assert!(!publish(&view).unwrap().is_empty());
                view.seen = Seen::Same(attributes(read_only));
                // Also in a mode that allows one target, this target is not another one.
                view.exclusive = true;
                assert_eq!(publish(&view), Ok(Vec::new()));
                view.seen = Seen::Same(attributes(!read_only));
                assert!(matches!(publish(&view), Err(Refusal::Conflict(_))));
            }
        }
    }

    #[test]
    fn a_device_is_read_only_by_a_view() {
        let steps = publish(&publish_view(Kind::Device, true)).unwrap();
        assert!(steps.contains(&Step::AttachView));
        let steps = publish(&publish_view(Kind::Device, false)).unwrap();
        assert!(!steps.contains(&Step::AttachView));
    }

    #[test]
    fn publishing_needs_the_stage_and_the_mode() {
        let refused = |change: &dyn Fn(&mut PublishView)| {
            let mut view = publish_view(Kind::Directory, false);
            change(&mut view);
            matches!(publish(&view), Err(Refusal::Precondition(_)))
        };
        let other = |read_only| OtherTarget { path: "/o".into(), read_only };
        assert!(refused(&|view| view.staged = Seen::Nothing));
        assert!(refused(&|view| view.staged = Seen::Other("x".to_owned())));
        assert!(refused(&|view| view.staged = Seen::Same(attributes(true))));
        assert!(refused(&|view| {
            view.exclusive = true;
            view.others = vec![other(true)];
        }));
        assert!(refused(&|view| {
            view.one_writer = true;
            view.others = vec![other(false)];
        }));
        assert!(!refused(&|view| {
            view.one_writer = true;
            view.others = vec![other(true)];
        }));
        assert!(!refused(&|view| view.others = vec![other(false)]));
    }
}
