//! The keyboard controller (Intel 8042): how a guest resets the machine, and how the
//! host presses Ctrl-Alt-Del. No keyboard is behind it but the one that acknowledges
//! whatever it is told.
//!
//! ```text
//! 0x60 data     read: next byte of the output buffer   write: parameter or to keyboard
//! 0x64 status   read: bit 0 output waits, bit 3 parameter awaited, bit 4 unlocked
//!      command  write: 0x20 read control, 0x60 write control, 0xd0/0xd1 output port,
//!               0xaa self test, 0xab port test, 0xfe reset the machine
//! ```

use std::collections::VecDeque;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use crate::devices::bus::BusDevice;
use crate::sync::lock;

const DATA: u64 = 0;
const STATUS: u64 = 4;

const STATUS_OUTPUT: u8 = 1 << 0;
const STATUS_PARAMETER: u8 = 1 << 3;
const STATUS_UNLOCKED: u8 = 1 << 4;

const CONTROL_INTERRUPT: u8 = 1 << 0;
const CONTROL_SELF_TEST_PASSED: u8 = 1 << 2;

const COMMAND_READ_CONTROL: u8 = 0x20;
const COMMAND_WRITE_CONTROL: u8 = 0x60;
const COMMAND_SELF_TEST: u8 = 0xaa;
const COMMAND_PORT_TEST: u8 = 0xab;
const COMMAND_READ_OUTPUT_PORT: u8 = 0xd0;
const COMMAND_WRITE_OUTPUT_PORT: u8 = 0xd1;
const COMMAND_RESET_MACHINE: u8 = 0xfe;

const SELF_TEST_PASSED: u8 = 0x55;
const PORT_TEST_PASSED: u8 = 0x00;
const ACKNOWLEDGE: u8 = 0xfa;

/// Scan codes (set 2) of the three keys going down.
const CONTROL_ALT_DELETE: [u8; 4] = [0x14, 0x11, 0xe0, 0x71];

const BUFFER_CAPACITY: usize = 16;

/// The controller's registers, for a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyboardState {
    /// Version of this structure.
    pub version: u32,
    control: u8,
    output_port: u8,
    awaits_parameter_of: Option<u8>,
    buffer: VecDeque<u8>,
}

impl KeyboardState {
    /// The layout of this structure.
    pub const VERSION: u32 = 1;
}

impl Default for KeyboardState {
    fn default() -> Self {
        Self {
            version: Self::VERSION,
            control: CONTROL_INTERRUPT | CONTROL_SELF_TEST_PASSED,
            output_port: 0,
            awaits_parameter_of: None,
            buffer: VecDeque::with_capacity(BUFFER_CAPACITY),
        }
    }
}

/// The guest has not read earlier keys yet.
#[derive(Debug, thiserror::Error)]
#[error("the keyboard buffer is full")]
pub struct KeyboardBufferFull;

/// The keyboard controller.
#[derive(Debug)]
pub struct KeyboardController {
    state: Mutex<KeyboardState>,
    interrupt: EventFd,
    reset: EventFd,
}

impl KeyboardController {
    /// A controller that interrupts through one event and resets through the other.
    pub fn new(state: KeyboardState, interrupt: EventFd, reset: EventFd) -> Self {
        Self {
            state: Mutex::new(state),
            interrupt,
            reset,
        }
    }

    /// The registers.
    pub fn state(&self) -> KeyboardState {
        lock(&self.state).clone()
    }

    /// Presses Ctrl-Alt-Del.
    ///
    /// # Errors
    /// If the guest has not read earlier keys.
    pub fn press_control_alt_delete(&self) -> Result<(), KeyboardBufferFull> {
        let mut state = lock(&self.state);
        if state.buffer.len() + CONTROL_ALT_DELETE.len() > BUFFER_CAPACITY {
            return Err(KeyboardBufferFull);
        }
        state.buffer.extend(CONTROL_ALT_DELETE);
        self.interrupt(&state);
        Ok(())
    }

    fn interrupt(&self, state: &KeyboardState) {
        if state.control & CONTROL_INTERRUPT != 0
            && let Err(error) = self.interrupt.write(1)
        {
            log::warn!("cannot raise the keyboard interrupt: {error}");
        }
    }

    /// Puts the one answer to a command, in place of whatever waited.
    fn answer(state: &mut KeyboardState, byte: u8) {
        state.buffer.clear();
        state.buffer.push_back(byte);
    }

    fn command(&self, state: &mut KeyboardState, command: u8) {
        match command {
            COMMAND_RESET_MACHINE => {
                if let Err(error) = self.reset.write(1) {
                    log::error!("cannot pass on the guest's reset: {error}");
                }
            }
            COMMAND_READ_CONTROL => {
                let control = state.control;
                Self::answer(state, control);
            }
            COMMAND_READ_OUTPUT_PORT => {
                let port = state.output_port;
                Self::answer(state, port);
            }
            COMMAND_SELF_TEST => Self::answer(state, SELF_TEST_PASSED),
            COMMAND_PORT_TEST => Self::answer(state, PORT_TEST_PASSED),
            COMMAND_WRITE_CONTROL | COMMAND_WRITE_OUTPUT_PORT => {
                state.buffer.clear();
                state.awaits_parameter_of = Some(command);
            }
            _ => {}
        }
    }

    fn data(&self, state: &mut KeyboardState, byte: u8) {
        match state.awaits_parameter_of.take() {
            Some(COMMAND_WRITE_CONTROL) => state.control = byte,
            Some(_) => state.output_port = byte,
            None => {
                Self::answer(state, ACKNOWLEDGE);
                self.interrupt(state);
            }
        }
    }
}

impl BusDevice for KeyboardController {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let [byte] = data else { return };
        let mut state = lock(&self.state);
        match offset {
            STATUS => {
                *byte = STATUS_UNLOCKED;
                if !state.buffer.is_empty() {
                    *byte |= STATUS_OUTPUT;
                }
                if state.awaits_parameter_of.is_some() {
                    *byte |= STATUS_PARAMETER;
                }
            }
            DATA => {
                *byte = state.buffer.pop_front().unwrap_or(0);
                if !state.buffer.is_empty() {
                    self.interrupt(&state);
                }
            }
            _ => {}
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let [byte] = data else { return };
        let mut state = lock(&self.state);
        match offset {
            STATUS => self.command(&mut state, *byte),
            DATA => self.data(&mut state, *byte),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controller() -> KeyboardController {
        let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        KeyboardController::new(KeyboardState::default(), event(), event())
    }

    fn read(controller: &KeyboardController, offset: u64) -> u8 {
        let mut data = [0xff];
        controller.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn reset_command_signals_once() {
        let controller = controller();
        controller.write(STATUS, &[COMMAND_RESET_MACHINE]);
        assert_eq!(controller.reset.read().unwrap(), 1);
        assert!(controller.reset.read().is_err());
    }

    #[test]
    fn control_alt_delete_arrives_key_by_key_with_interrupts() {
        let controller = controller();
        controller.press_control_alt_delete().unwrap();
        let mut keys = Vec::new();
        while read(&controller, STATUS) & STATUS_OUTPUT != 0 {
            assert_eq!(controller.interrupt.read().unwrap(), 1);
            keys.push(read(&controller, DATA));
        }
        assert_eq!(keys, CONTROL_ALT_DELETE);
        assert!(controller.interrupt.read().is_err());
    }

    #[test]
    fn unread_keys_do_not_pile_up() {
        let controller = controller();
        for _ in 0..4 {
            controller.press_control_alt_delete().unwrap();
        }
        assert!(controller.press_control_alt_delete().is_err());
    }

    #[test]
    fn control_register_is_written_and_read_back() {
        let controller = controller();
        controller.write(STATUS, &[COMMAND_WRITE_CONTROL]);
        assert_ne!(read(&controller, STATUS) & STATUS_PARAMETER, 0);
        controller.write(DATA, &[0x44]);
        assert_eq!(read(&controller, STATUS) & STATUS_PARAMETER, 0);
        controller.write(STATUS, &[COMMAND_READ_CONTROL]);
        assert_eq!(read(&controller, DATA), 0x44);
    }

    #[test]
    fn wide_and_stray_accesses_change_nothing() {
        let controller = controller();
        let before = controller.state();
        for offset in 0..8 {
            controller.write(offset, &[0xfe, 0xfe]);
            controller.write(offset, &[]);
        }
        controller.write(1, &[0xfe]);
        assert_eq!(controller.state(), before);
        assert!(controller.reset.read().is_err());
    }
}
