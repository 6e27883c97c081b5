//! `orlop try`.

use clap::Args;

use super::Failure;

#[derive(Debug, Args)]
pub(super) struct TryArgs {}

pub(super) fn run(_args: &TryArgs) -> Result<(), Failure> {
    Err("not written yet".into())
}
