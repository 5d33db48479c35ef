//! Generates the gRPC code of trackers, seeds and authorities. protox parses the `.proto` files, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const PROTOS: [&str; 3] = [
        "proto/lapwing/authority/v1/authority.proto",
        "proto/lapwing/seed/v1/seed.proto",
        "proto/lapwing/tracker/v1/tracker.proto",
    ];
    for proto in PROTOS {
        println!("cargo::rerun-if-changed={proto}");
    }
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
