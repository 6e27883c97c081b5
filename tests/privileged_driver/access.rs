//! Who may write where.

use nix::errno::Errno;
use orlop::csi::proto::volume_capability::access_mode::Mode;
use tonic::Code;

use crate::driver::Driver;
use crate::life::{Kind, Life, check_nothing_left, read, try_write, write};
use crate::privileged::{loops_below, poll, privileged};

/// The kernel refuses to write there.
fn cannot_write(kind: Kind, target: &std::path::Path) {
    let error = try_write(kind, target, "forbidden").unwrap_err();
    let errno = error.raw_os_error().map(Errno::from_raw);
    let refused = matches!(errno, Some(Errno::EROFS | Errno::EPERM | Errno::EACCES));
    assert!(refused, "{kind:?}: {error}");
}

#[test]
fn one_target_writes_and_the_others_only_read() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        for kind in Kind::ALL {
            let life = Life::new(sandbox, kind, &format!("{kind:?}"));
            let mut life = life.with_mode(Mode::MultiNodeSingleWriter);
            life.born(&mut driver);
            life.up(&mut driver);
            write(kind, &life.target, "by the writer");
            let reader = life.other_target("reader");
            for _again in 0..2 {
                driver.insist("publish", |c| life.try_publish_readonly(c, &reader));
            }
            life.check_loops();
            cannot_write(kind, &reader);
            assert_eq!(read(kind, &reader), "by the writer");
            write(kind, &life.target, "by the writer again");
            let second = life.try_publish(&driver.client, &life.other_target("second"));
            assert_eq!(second.unwrap_err().code(), Code::FailedPrecondition);
            if kind == Kind::Block {
                // The reader's device lies on the writer's.
                let early = driver.client.unstage(&life.id, &life.staging);
                assert_eq!(early.unwrap_err().code(), Code::FailedPrecondition);
            }
            driver.insist("unpublish", |c| c.unpublish(&life.id, &reader));
            poll("the reader's device is gone", || {
                !loops_below(sandbox.dir()).iter().any(|found| found.is_view)
            });
            assert_eq!(read(kind, &life.target), "by the writer again");
            life.down(&mut driver);
            life.gone(&mut driver);
        }
        check_nothing_left(sandbox, &mut driver);
    });
}

#[test]
fn a_volume_for_readers_is_read_only_everywhere() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        for kind in Kind::ALL {
            let mut life = Life::new(sandbox, kind, &format!("{kind:?}"));
            life.born(&mut driver);
            life.up(&mut driver);
            write(kind, &life.target, "before");
            life.down(&mut driver);
            life.mode = Mode::MultiNodeReaderOnly;
            life.up(&mut driver);
            let second = life.other_target("second");
            driver.insist("publish", |c| life.try_publish(c, &second));
            for target in [&life.target, &second] {
                cannot_write(kind, target);
                assert_eq!(read(kind, target), "before");
            }
            life.mode = Mode::SingleNodeMultiWriter;
            let writer = life.try_publish(&driver.client, &life.other_target("writer"));
            assert_eq!(writer.unwrap_err().code(), Code::FailedPrecondition, "{kind:?}");
            driver.insist("unpublish", |c| c.unpublish(&life.id, &second));
            life.down(&mut driver);
            life.gone(&mut driver);
        }
        check_nothing_left(sandbox, &mut driver);
    });
}

#[test]
fn a_volume_for_one_pod_has_one_target() {
    privileged(|sandbox| {
        let mut driver = Driver::start(sandbox);
        for kind in Kind::ALL {
            let life = Life::new(sandbox, kind, &format!("{kind:?}"));
            let mut life = life.with_mode(Mode::SingleNodeSingleWriter);
            life.born(&mut driver);
            life.up(&mut driver);
            let other = life.other_target("other");
            let second = life.try_publish(&driver.client, &other);
            assert_eq!(second.unwrap_err().code(), Code::FailedPrecondition, "{kind:?}");
            assert!(!other.exists());
            driver.insist("unpublish", |c| c.unpublish(&life.id, &life.target));
            driver.insist("publish", |c| life.try_publish(c, &other));
            driver.insist("unpublish", |c| c.unpublish(&life.id, &other));
            life.down(&mut driver);
            life.gone(&mut driver);
        }
        check_nothing_left(sandbox, &mut driver);
    });
}
