//! Compiles the .proto files with a compiler written in Rust, so that a build needs
//! no `protoc`, and turns them into message types and service traits.

use std::error::Error;
use std::path::PathBuf;

use buffa_codegen::{BytesRepr, CodeGenConfig};

const FILES: [&str; 3] = [
    "envd/process.proto",
    "envd/filesystem.proto",
    "hostagent/hostagent.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let out_dir = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }

    let descriptors = protox::Compiler::new(["."])?
        .include_source_info(true)
        .include_imports(true)
        .open_files(FILES)?
        .encode_file_descriptor_set();
    let set = out_dir.join("descriptors.bin");
    std::fs::write(&set, descriptors)?;

    let mut messages = CodeGenConfig::default();
    messages.generate_json = true;
    // Output is handed to several readers: `Bytes` shares it instead of copying.
    messages.bytes_fields = vec![(".".to_owned(), BytesRepr::Bytes)];
    // Fields of newer peers are ignored, not carried along.
    messages.preserve_unknown_fields = false;

    connectrpc_build::Config::new()
        .buffa_config(messages)
        .descriptor_set(set)
        .files(&FILES)
        .include_file("_connectrpc.rs")
        .gate_client_feature(true)
        // It would have cargo watch the set, which is newer than the start of this program:
        // the next build would run it again, and compile all that is above it.
        .emit_rerun_directives(false)
        .compile()?;
    Ok(())
}
