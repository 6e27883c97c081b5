//! What a shell and `man` are told of the command line: both are printed from its definition.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, Failure};

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// An existing directory for the pages: orlop.1, orlop-serve.1 and so on
    directory: PathBuf,
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "orlop", &mut script);
    // In one go: the generator panics when nobody reads.
    Ok(io::Write::write_all(&mut io::stdout(), &script)?)
}

pub(super) fn man(args: &ManArgs) -> Result<(), Failure> {
    let directory: &Path = &args.directory;
    clap_mangen::generate_to(Cli::command(), directory)
        .map_err(|error| format!("write manual pages to {}: {error}", directory.display()).into())
}
