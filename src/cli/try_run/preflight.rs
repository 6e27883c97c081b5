//! What must be there before anything is started. What is missing is named with its remedy.

use std::path::Path;

use super::kind::{Kind, Tool};
use crate::cli::Failure;
use crate::host::linux::{is_installed, lacks_filesystem};
use crate::volume::Filesystem;

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
    for problem in kinds.iter().flat_map(|kind| lacking(*kind)) {
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    }
    if problems.is_empty() {
        Ok(())
    } else {
        let problems = problems.join("\n  ");
        Err(format!(
            "nothing was started:\n  {problems}\n--only names the kinds of volumes that are shown"
        )
        .into())
    }
}

/// What such volumes need and is not here.
pub(super) fn lacking(kind: Kind) -> Vec<String> {
    let mut problems = Vec::new();
    if let Some(Tool { program, package }) = kind.tool().filter(|tool| !is_installed(tool.program))
    {
        problems.push(format!(
            "{program} is not installed: install the package {package} (apt-get install {package})"
        ));
    }
    if kind != Kind::Hostpath && !Path::new("/dev/loop-control").exists() {
        problems.push("/dev/loop-control is not there: load the module (modprobe loop)".to_owned());
    }
    let filesystem = kind.filesystem().and_then(Filesystem::from_word);
    if let Some(filesystem) = filesystem.filter(|filesystem| lacks_filesystem(*filesystem)) {
        problems.push(format!("this kernel has no {filesystem}"));
    }
    problems
}
