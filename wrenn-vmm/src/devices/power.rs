//! The ACPI sleep registers: how a guest that knows ACPI powers off.

use vmm_sys_util::eventfd::EventFd;

use crate::boot::acpi::SLEEP_POWER_OFF;
use crate::devices::bus::BusDevice;

/// Sleep control (offset 0) and sleep status (offset 1).
#[derive(Debug)]
pub struct SleepRegisters {
    power_off: EventFd,
}

impl SleepRegisters {
    /// Registers that signal `power_off`.
    pub fn new(power_off: EventFd) -> Self {
        Self { power_off }
    }
}

impl BusDevice for SleepRegisters {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if (offset, data) == (0, &[SLEEP_POWER_OFF])
            && let Err(error) = self.power_off.write(1)
        {
            log::error!("cannot pass on the guest's power-off: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_power_off_value_powers_off() {
        let event = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let registers = SleepRegisters::new(event.try_clone().unwrap());
        for value in (0..=u8::MAX).filter(|value| *value != SLEEP_POWER_OFF) {
            registers.write(0, &[value]);
        }
        registers.write(1, &[SLEEP_POWER_OFF]);
        assert!(event.read().is_err());
        registers.write(0, &[SLEEP_POWER_OFF]);
        assert_eq!(event.read().unwrap(), 1);
    }
}
