//! A large file up and down.

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
