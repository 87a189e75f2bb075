//! The first serial port, a 16550 UART (vm-superio), on the port bus.

use std::io;
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, SerialState as UartState, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::devices::bus::BusDevice;
use crate::devices::console::ConsoleInput;
use crate::sync::lock;

/// Raises an interrupt line through an irqfd.
#[derive(Debug)]
pub struct Line(pub EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Tells the main thread that the guest has room for more input.
#[derive(Debug)]
pub struct InputWanted(EventFd);

impl SerialEvents for InputWanted {
    fn buffer_read(&self) {}

    fn out_byte(&self) {}

    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        if let Err(error) = self.0.write(1) {
            log::debug!("serial input event: {error}");
        }
    }
}

/// The port's registers, for a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    /// Version of this structure.
    pub version: u32,
    /// Low byte of the baud rate divisor.
    pub baud_divisor_low: u8,
    /// High byte of the baud rate divisor.
    pub baud_divisor_high: u8,
    /// Interrupt enable register.
    pub interrupt_enable: u8,
    /// Interrupt identification register.
    pub interrupt_identification: u8,
    /// Line control register.
    pub line_control: u8,
    /// Line status register.
    pub line_status: u8,
    /// Modem control register.
    pub modem_control: u8,
    /// Modem status register.
    pub modem_status: u8,
    /// Scratch register.
    pub scratch: u8,
    /// Input that the guest has not read.
    pub in_buffer: Vec<u8>,
}

impl SerialState {
    /// The layout of this structure.
    pub const VERSION: u32 = 1;
}

/// The serial port.
pub struct SerialPort {
    uart: Mutex<Serial<Line, InputWanted, ConsoleInput>>,
}

impl SerialPort {
    /// A port that prints to `console`, interrupts through `line`, and signals `wanted`
    /// when the guest has read all input.
    pub fn new(line: Line, console: ConsoleInput, wanted: EventFd) -> Self {
        Self {
            uart: Mutex::new(Serial::with_events(line, InputWanted(wanted), console)),
        }
    }

    /// How many bytes of input the port can take now.
    pub fn input_capacity(&self) -> usize {
        lock(&self.uart).fifo_capacity()
    }

    /// Gives the guest input. Bytes beyond the capacity are dropped, as a UART does.
    pub fn input(&self, bytes: &[u8]) {
        if let Err(error) = lock(&self.uart).enqueue_raw_bytes(bytes) {
            log::debug!("serial input: {error:?}");
        }
    }

    /// The registers.
    pub fn state(&self) -> SerialState {
        let state = lock(&self.uart).state();
        SerialState {
            version: SerialState::VERSION,
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.in_buffer,
        }
    }

    /// A port with saved registers.
    ///
    /// # Errors
    /// If the input does not fit the port or the interrupt cannot be raised.
    pub fn restore(
        state: SerialState,
        line: Line,
        console: ConsoleInput,
        wanted: EventFd,
    ) -> Result<Self, vm_superio::serial::Error<io::Error>> {
        let state = UartState {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.in_buffer,
        };
        let uart = Serial::from_state(&state, line, InputWanted(wanted), console)?;
        Ok(Self {
            uart: Mutex::new(uart),
        })
    }
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // Registers are one byte wide; a wider access finds an empty bus.
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset)) {
            *byte = lock(&self.uart).read(offset);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let ([byte], Ok(offset)) = (data, u8::try_from(offset))
            && let Err(error) = lock(&self.uart).write(offset, *byte)
        {
            log::debug!("serial port: {error:?}");
        }
    }
}
