//! The `orlop` program: see `orlop --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    orlop::cli::run()
}
