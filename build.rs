//! Compiles `proto/csi.proto` with protox, so that no `protoc` has to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/csi.proto");
    let descriptors = protox::compile(["proto/csi.proto"], ["proto"])?;
    // It may have one field more than the contract: see src/csi/legacy.rs.
    let reply = "NodeGetVolumeStatsResponse";
    let ours = format!("crate::csi::legacy::{reply}");
    tonic_prost_build::configure()
        .extern_path(format!(".csi.v1.{reply}"), ours)
        .compile_fds(descriptors)?;
    Ok(())
}
