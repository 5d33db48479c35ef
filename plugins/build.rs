//! Compiles the services of containerd that are called from `proto/` (API of containerd 2.3) without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const SERVICES: [&str; 7] = [
        "services/containers/v1/containers.proto",
        "services/content/v1/content.proto",
        "services/events/v1/events.proto",
        "services/images/v1/images.proto",
        "services/introspection/v1/introspection.proto",
        "services/leases/v1/leases.proto",
        "services/namespaces/v1/namespace.proto",
    ];
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(SERVICES, ["proto"])?;
    tonic_prost_build::configure()
        .build_server(false)
        .emit_rerun_if_changed(false)
        .include_file("containerd.rs")
        .compile_fds(files)?;
    Ok(())
}
