//! Much output through a slow reader whose connection breaks.

use std::process::Command;
use std::time::{Duration, Instant};

use wrenn_sdk::ProcessEvent;
use wrenn_testing::Link;

use crate::pattern::Checksum;
use crate::program::ServerProcess;
use crate::{assert_bounded, parameter};

const CUTS: usize = 3;
/// The reader rests after so many bytes.
const STRETCH: usize = 1 << 20;
const REST: Duration = Duration::from_millis(10);
/// Long enough for everything on the way to fill up.
const STALL: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn output_survives_slow_reader_and_reconnects() {
    let size_mib = parameter("WRENN_LOAD_OUTPUT_MIB", 32);
    let size = size_mib << 20;
    let script = format!("seq 1 100000000 | head -c {size}");
    let expected = checksum_of(&script);
    let server = ServerProcess::start("info").await;
    let link = Link::to(server.address).unwrap();
    let sandboxes = server.sdk_at(link.address()).sandboxes();
    let sandbox = sandboxes.create("base").await.unwrap();
    let warm_up = sandbox.spawn("head", ["-c", "1000000", "/dev/zero"]);
    warm_up.await.unwrap().wait().await.unwrap();

    let before = server.memory();
    server.reset_peak();
    let since = Instant::now();
    let mut process = sandbox.spawn("sh", ["-c", &script]).await.unwrap();
    let mut received = Checksum::default();
    let mut cuts = 0;
    let mut rested_at = 0;
    let status = loop {
        match process.next().await.unwrap().unwrap() {
            ProcessEvent::Stdout(bytes) => received.update(&bytes),
            ProcessEvent::Exit(status) => break status,
            other => panic!("{other:?}"),
        }
        if received.bytes > (cuts + 1) * size / (CUTS + 1) && cuts < CUTS {
            cuts += 1;
            tokio::time::sleep(STALL).await;
            link.cut();
        } else if received.bytes - rested_at > STRETCH {
            rested_at = received.bytes;
            tokio::time::sleep(REST).await;
        }
    };
    assert!(status.success(), "{status:?}");
    assert_eq!((received.bytes, cuts), (size, CUTS));
    assert_eq!(received.hex(), expected);
    eprintln!("{size_mib} MiB of output in {:.1?}", since.elapsed());
    assert_bounded(&server, before, "output");
}

#[allow(clippy::disallowed_methods, reason = "the same command, on this host")]
fn checksum_of(script: &str) -> String {
    let output = Command::new("sh")
        .args(["-c", &format!("{{ {script}; }} | sha256sum")])
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout)[..64].to_owned()
}
