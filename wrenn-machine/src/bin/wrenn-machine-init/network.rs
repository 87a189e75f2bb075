//! The machine's own network: the loopback, and the one interface that QEMU serves.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use crate::boot::{At, BootError};
use crate::sys;

const INTERFACE: &str = "eth0";
/// QEMU's user-mode network gives its first guest this address.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
/// The host, as QEMU's user-mode network shows it.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Passes questions on to the host's own name servers.
const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Passed in by QEMU: `open` or `closed`.
const SETTING_IN_FIRMWARE: &str = "/sys/firmware/qemu_fw_cfg/by_name/opt/wrenn/network/raw";

/// Brings both interfaces up. In a closed network there is no route to anywhere else, and
/// answers to forwarded connections stay on the link. An open one has a route and a name server.
pub(crate) fn up() -> Result<(), BootError> {
    let failed = |interface| move |source| BootError::Network { interface, source };
    sys::bring_up("lo").map_err(failed("lo"))?;
    if !Path::new("/sys/class/net").join(INTERFACE).exists() {
        return Err(failed(INTERFACE)(io::ErrorKind::NotFound.into()));
    }
    sys::set_address(INTERFACE, ADDRESS, MASK).map_err(failed(INTERFACE))?;
    sys::bring_up(INTERFACE).map_err(failed(INTERFACE))?;
    // Closed unless it is said to be open.
    if fs::read(SETTING_IN_FIRMWARE).is_ok_and(|setting| setting == b"open") {
        sys::add_default_route(GATEWAY).map_err(failed(INTERFACE))?;
        fs::write(RESOLV_CONF, format!("nameserver {NAME_SERVER}\n")).at("write", RESOLV_CONF)?;
    }
    Ok(())
}
