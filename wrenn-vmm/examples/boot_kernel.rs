//! Boots a kernel with an initrd and its console on this terminal:
//!
//! ```text
//! cargo run --package wrenn-vmm --example boot_kernel -- vmlinux initrd.img
//! ```

use std::io::Write;
use std::process::ExitCode;

use wrenn_vmm::arguments::Arguments;

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut paths = std::env::args().skip(1);
    let (Some(kernel), Some(initrd)) = (paths.next(), paths.next()) else {
        return Err("usage: boot_kernel KERNEL INITRD".into());
    };
    let config_path = std::env::temp_dir().join(format!("boot-kernel-{}", std::process::id()));
    let config = format!(
        r#"{{
            "boot-source": {{
                "kernel_image_path": {kernel:?},
                "initrd_path": {initrd:?},
                "boot_args": "console=ttyS0 reboot=k panic=-1"
            }},
            "machine-config": {{ "vcpu_count": 1, "mem_size_mib": 256 }}
        }}"#
    );
    std::fs::File::create_new(&config_path)?.write_all(config.as_bytes())?;
    let ended = wrenn_vmm::run::run(Arguments {
        id: "example".to_owned(),
        config_file: Some(config_path.clone()),
        seccomp: true,
        ..Default::default()
    });
    std::fs::remove_file(&config_path)?;
    Ok(ended?.into())
}
