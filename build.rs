//! Compiles the files in `proto/` with protox, so that no `protoc` has to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["proto/csi.proto", "proto/orlop.proto"];
    for file in files {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    // It may have one field more than the contract: see src/csi/legacy.rs.
    let reply = "NodeGetVolumeStatsResponse";
    let ours = format!("crate::csi::legacy::{reply}");
    tonic_prost_build::configure()
        .extern_path(format!(".csi.v1.{reply}"), ours)
        .compile_fds(descriptors)?;
    Ok(())
}
