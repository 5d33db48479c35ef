//! Compiles containerd's snapshots and diff services from `proto/` (API of containerd 2.3) without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["services/diff/v1/diff.proto", "services/snapshots/v1/snapshots.proto"], ["proto"])?;
    tonic_prost_build::configure().emit_rerun_if_changed(false).include_file("containerd.rs").compile_fds(files)?;
    Ok(())
}
