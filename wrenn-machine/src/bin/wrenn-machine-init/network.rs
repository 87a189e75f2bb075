//! The machine's own network: the loopback, and the one interface that QEMU serves.

use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use crate::boot::BootError;
use crate::sys;

const INTERFACE: &str = "eth0";
/// QEMU's user-mode network gives its first guest this address.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);

/// Brings both interfaces up. There is no route to anywhere else: the network is closed, and
/// answers to forwarded connections stay on the link.
pub(crate) fn up() -> Result<(), BootError> {
    let failed = |interface| move |source| BootError::Network { interface, source };
    sys::bring_up("lo").map_err(failed("lo"))?;
    if !Path::new("/sys/class/net").join(INTERFACE).exists() {
        return Err(failed(INTERFACE)(io::ErrorKind::NotFound.into()));
    }
    sys::set_address(INTERFACE, ADDRESS, MASK).map_err(failed(INTERFACE))?;
    sys::bring_up(INTERFACE).map_err(failed(INTERFACE))
}
