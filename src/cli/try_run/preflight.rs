//! What must be there before anything is started. What is missing is named with its remedy.

use std::path::Path;

use super::kind::{Kind, Tool};
use crate::cli::Failure;
use crate::host::linux::is_installed;

/// Everything that the kinds need is here.
///
/// # Errors
/// All that is not, in one message.
pub(super) fn check(kinds: &[Kind]) -> Result<(), Failure> {
    let mut problems = Vec::new();
    if !nix::unistd::geteuid().is_root() {
        problems.push(
            "it makes mounts and loop devices, so it must run as root: sudo orlop try".to_owned(),
        );
    }
    let missing = |tool: &Tool| !is_installed(tool.program);
    for tool in kinds.iter().filter_map(|kind| kind.tool()).filter(missing) {
        problems.push(format!(
            "{} is not installed: install the package {} (apt-get install {})",
            tool.program, tool.package, tool.package
        ));
    }
    if kinds.iter().any(|kind| *kind != Kind::Hostpath) && !Path::new("/dev/loop-control").exists()
    {
        problems.push("/dev/loop-control is not there: load the module (modprobe loop)".to_owned());
    }
    for kind in kinds {
        if let Some(filesystem) = kind.filesystem().filter(|name| kernel_lacks(name)) {
            problems
                .push(format!("this kernel has no {filesystem}: name the other kinds with --only"));
        }
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(format!("nothing was started:\n  {}", problems.join("\n  ")).into())
    }
}

/// The kernel certainly cannot mount it. Where its modules cannot be seen (in a container), a try will tell.
fn kernel_lacks(filesystem: &str) -> bool {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let Some((known, release)) = read("/proc/filesystems").zip(read("/proc/sys/kernel/osrelease"))
    else {
        return false;
    };
    if known.split_whitespace().any(|word| word == filesystem) {
        return false;
    }
    let modules = format!("/lib/modules/{}", release.trim());
    let Some(loadable) = read(&format!("{modules}/modules.dep")) else {
        return false;
    };
    !loadable.contains(&format!("/{filesystem}.ko"))
}
