//! Makes the filesystem in a copied image one of its own: log replayed, new UUID, as large as its image.
//!
//! Two filesystems of one UUID cannot be mounted beside each other (XFS) or are taken for one (btrfs), and a read-only
//! stage must never have to write. So this happens at birth, before anybody else sees the image.
//!
//! Must not: be used on an image that is not the caller's own new copy.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::sys::stat::fstat;

use super::command::Programs;
use super::filesystem::{grow_at, probe};
use super::loops::Loops;
use super::mounts::fd_path;
use super::nowhere::Nowhere;
use crate::fault;
use crate::host::{HostError, Signature};
use crate::volume::{Allocation, ByteSize, Filesystem};

/// `s_errors`, and its value for a panic (EXT4_ERRORS_PANIC).
const EXT4_ERRORS: u64 = 0x43c;
const EXT4_ERRORS_PANIC: [u8; 2] = [3, 0];

/// What is known of a copy.
struct Copy<'a> {
    image: BorrowedFd<'a>,
    filesystem: Filesystem,
    sector: u32,
    length: ByteSize,
    /// Its blocks are reserved.
    reserved: bool,
    /// A pod made it, in whatever way.
    made_elsewhere: bool,
    /// A path to this very inode, wherever it is by now.
    path: String,
}

/// What the work is done with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tools<'a> {
    pub(super) programs: &'a Programs,
    pub(super) loops: &'a Loops,
}

pub(super) fn renew(
    tools: Tools<'_>,
    image: BorrowedFd<'_>,
    filesystem: Filesystem,
    sector: u32,
    made_elsewhere: bool,
) -> Result<(), HostError> {
    let failed = |e: Errno| HostError::call("renew the filesystem of", fd_path(image), e);
    let injected =
        |e: std::io::Error| HostError::call("renew the filesystem of", fd_path(image), e);
    let stat = fstat(image).map_err(failed)?;
    let length = u64::try_from(stat.st_size).unwrap_or(0);
    let allocated = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
    let signature = probe(image)?.filter(|signature| signature.filesystem == filesystem);
    let signature = signature.ok_or_else(|| HostError::Unexpected {
        what: format!("the copied image does not hold {filesystem}"),
        path: fd_path(image),
    })?;
    let copy = Copy {
        image,
        filesystem,
        sector,
        length: ByteSize::new(length),
        reserved: allocated >= length,
        made_elsewhere,
        path: format!("/proc/{}/fd/{}", std::process::id(), image.as_raw_fd()),
    };
    fault::point!("host.renew.start").map_err(injected)?;
    match filesystem {
        Filesystem::Ext4 => copy.renew_ext4(tools.programs, &signature)?,
        Filesystem::Xfs => copy.renew_xfs(tools.programs, tools.loops, &signature)?,
        Filesystem::Btrfs => copy.renew_btrfs(tools.programs, tools.loops, &signature)?,
    }
    fault::point!("host.renew.done").map_err(injected)
}

impl Copy<'_> {
    fn is_outgrown(&self, signature: &Signature) -> bool {
        // A filesystem uses whole blocks of 4096 bytes of its image.
        signature.size < self.length.round_down(4096)
    }

    /// All by programs on the image itself: a mounted ext4 does not grow without CAP_SYS_RESOURCE.
    fn renew_ext4(&self, programs: &Programs, signature: &Signature) -> Result<(), HostError> {
        let path = self.path.as_str();
        let outgrown = self.is_outgrown(signature);
        if outgrown || signature.needs_replay || signature.has_errors || self.made_elsewhere {
            // Replays the journal, repairs what needs no guess, and is what resize2fs asks for.
            programs.e2fsck.run(&["-f", "-p", path], &[0, 1])?;
        }
        if outgrown {
            programs.resize2fs.run(&[path], &[0])?;
        }
        // A pod that made it may have left mount options in it, which the kernel would follow on the node.
        let mut arguments = vec!["-U", "random", "-E", "mount_opts="];
        if self.read_at::<2>(EXT4_ERRORS)? == EXT4_ERRORS_PANIC {
            // Damage in one volume must not take the node down; as a mount option it is refused as well.
            arguments.extend(["-e", "remount-ro"]);
        }
        arguments.push(path);
        programs.tune2fs.run(&arguments, &[0])?;
        Ok(())
    }

    fn renew_xfs(
        &self,
        programs: &Programs,
        loops: &Loops,
        signature: &Signature,
    ) -> Result<(), HostError> {
        // Refused while the log has something in it, which its superblock does not tell.
        if !self.is_outgrown(signature) && self.has_new_xfs_uuid(programs)? {
            return Ok(());
        }
        self.mounted(loops)?;
        if self.has_new_xfs_uuid(programs)? {
            return Ok(());
        }
        Err(HostError::Unexpected {
            what: "xfs_db does not change the UUID of the copy".to_owned(),
            path: fd_path(self.image),
        })
    }

    /// Has xfs_db make a new UUID, and looks whether it did: it exits with zero also when it refuses.
    fn has_new_xfs_uuid(&self, programs: &Programs) -> Result<bool, HostError> {
        let before = self.xfs_uuid()?;
        let path = self.path.as_str();
        programs.xfs_db.run(&["-x", "-p", "xfs_admin", "-c", "uuid generate", path], &[0])?;
        Ok(self.xfs_uuid()? != before)
    }

    /// `sb_uuid`
    fn xfs_uuid(&self) -> Result<[u8; 16], HostError> {
        self.read_at(32)
    }

    fn read_at<const N: usize>(&self, place: u64) -> Result<[u8; N], HostError> {
        let failed = |e| HostError::call("read the superblock of", fd_path(self.image), e);
        let file = File::from(self.image.try_clone_to_owned().map_err(failed)?);
        let mut bytes = [0; N];
        file.read_exact_at(&mut bytes, place).map_err(failed)?;
        Ok(bytes)
    }

    fn renew_btrfs(
        &self,
        programs: &Programs,
        loops: &Loops,
        signature: &Signature,
    ) -> Result<(), HostError> {
        if signature.needs_replay {
            // With a new UUID the kernel would not find the log's trees any more.
            self.mounted(loops)?;
        }
        programs.btrfstune.run(&["-m", self.path.as_str()], &[0])?;
        if self.is_outgrown(signature) && !signature.needs_replay {
            self.mounted(loops)?;
        }
        Ok(())
    }

    /// Mounts it, which replays the log, and lets it have all of its image.
    fn mounted(&self, loops: &Loops) -> Result<(), HostError> {
        let nowhere = Nowhere {
            image: self.image,
            filesystem: self.filesystem,
            sector: self.sector,
            allocation: if self.reserved { Allocation::Thick } else { Allocation::Thin },
            is_copy: true,
            label: "orlop-copy",
            remedy: "load the filesystem's kernel module on the node; if it is damaged, publish and repair the source, then copy it again",
        };
        nowhere.with(loops, |root, _number| {
            grow_at(root, self.filesystem, self.length)
                .map_err(|e| HostError::call("grow the filesystem of", fd_path(self.image), e))?;
            nix::unistd::syncfs(root)
                .map_err(|e| HostError::call("flush the filesystem of", fd_path(self.image), e))
        })
    }
}
