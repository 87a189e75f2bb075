//! A large file and a large directory, up and down.

use std::io;
use std::path::Path;
use std::time::Instant;

use crate::pattern::{Checksum, Pattern};
use crate::program::ServerProcess;
use crate::{assert_bounded, parameter};

#[tokio::test(flavor = "multi_thread")]
async fn large_file_passes_in_bounded_memory() {
    let size_mib = parameter("WRENN_LOAD_FILE_MIB", 64);
    let server = ServerProcess::start("info").await;
    let sandbox = server.sdk().sandboxes().create("base").await.unwrap();
    let files = sandbox.files();
    // Connections, threads and buffers of the first use are no growth.
    files.write("small", vec![7; 1 << 20]).await.unwrap();
    files.read("small").await.unwrap();

    let pattern = Pattern::of(size_mib << 20);
    let expected = pattern.again().checksum();
    let before = server.memory();
    server.reset_peak();
    let since = Instant::now();
    let uploaded = files.write_from("large", pattern).await.unwrap();
    let up = since.elapsed();
    assert_eq!(uploaded.bytes, (size_mib << 20) as u64);
    assert_bounded(&server, before, "upload");
    let summed = sandbox.shell("sha256sum < large").await.unwrap();
    assert_eq!(summed.stdout_text()[..64], expected);

    server.reset_peak();
    let since = Instant::now();
    let mut received = Checksum::default();
    let size = files.read_to("large", &mut received).await.unwrap();
    let down = since.elapsed();
    assert_eq!(size, (size_mib << 20) as u64);
    assert_eq!(received.hex(), expected);
    assert_bounded(&server, before, "download");
    let speed = |elapsed: std::time::Duration| size_mib as f64 / elapsed.as_secs_f64();
    eprintln!(
        "{size_mib} MiB: up {:.0} MiB/s, down {:.0} MiB/s",
        speed(up),
        speed(down)
    );
}

/// The size of each file of the directory.
const FILE_MIB: usize = 16;

#[tokio::test(flavor = "multi_thread")]
async fn large_archive_passes_in_bounded_memory() {
    let size_mib = parameter("WRENN_LOAD_ARCHIVE_MIB", 64);
    let server = ServerProcess::start("info").await;
    let sandbox = server.sdk().sandboxes().create("base").await.unwrap();
    let files = sandbox.files();
    let directory = tempfile::tempdir().unwrap();
    let local = |name: &str| directory.path().join(name);
    // Connections, threads and buffers of the first use are no growth.
    std::fs::create_dir(local("small")).unwrap();
    std::fs::write(local("small/file"), vec![7; 1 << 20]).unwrap();
    files.upload_dir(local("small"), "small").await.unwrap();
    files.download_dir("small", local("back")).await.unwrap();

    std::fs::create_dir(local("large")).unwrap();
    let count = size_mib.div_ceil(FILE_MIB);
    for number in 0..count {
        let mut pattern = Pattern::of(FILE_MIB << 20);
        let path = local(&format!("large/{number:06}"));
        let mut file = tokio::fs::File::create(path).await.unwrap();
        tokio::io::copy(&mut pattern, &mut file).await.unwrap();
        tokio::io::AsyncWriteExt::flush(&mut file).await.unwrap();
    }
    let expected = checksum(&local("large"));
    let before = server.memory();
    server.reset_peak();
    let since = Instant::now();
    files.upload_dir(local("large"), "large").await.unwrap();
    let up = since.elapsed();
    assert_bounded(&server, before, "upload of a directory");
    let summed = sandbox.shell("cat large/* | sha256sum").await.unwrap();
    assert_eq!(summed.stdout_text()[..64], expected);

    server.reset_peak();
    let since = Instant::now();
    files.download_dir("large", local("copy")).await.unwrap();
    let down = since.elapsed();
    assert_bounded(&server, before, "download of a directory");
    assert_eq!(checksum(&local("copy")), expected);
    let speed = |elapsed: std::time::Duration| (count * FILE_MIB) as f64 / elapsed.as_secs_f64();
    eprintln!(
        "{count} files of {FILE_MIB} MiB: up {:.0} MiB/s, down {:.0} MiB/s",
        speed(up),
        speed(down)
    );
}

/// Of the contents of all files of a directory, in the order of their names.
fn checksum(directory: &Path) -> String {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let mut sum = Checksum::default();
    for path in paths {
        io::copy(&mut std::fs::File::open(path).unwrap(), &mut sum).unwrap();
    }
    sum.hex()
}
