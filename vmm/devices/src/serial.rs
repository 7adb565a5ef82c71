//! A 16550 serial port on vm-superio's register model.
//!
//! Owns the port's lock and the meeting of the register model with our bus and interrupt line. The
//! writer decides what happens to output that nobody takes: it must not block, as the caller is a
//! vCPU. Input is bounded by the model's FIFO of 64 bytes; the rest stays with the caller.

use std::fmt;
use std::io::Write;
use std::sync::{Arc, Mutex};

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial as Registers};

use crate::bus::BusDevice;
use crate::interrupt::IrqLine;
use crate::sync::lock;

/// Length of the port's range, in bytes.
pub const SERIAL_BYTES: u64 = 8;

struct LineTrigger(Arc<dyn IrqLine>);

impl Trigger for LineTrigger {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.pulse();
        Ok(())
    }
}

/// One serial port, a bus device of [`SERIAL_BYTES`].
pub struct Serial {
    registers: Mutex<Registers<LineTrigger, NoEvents, Box<dyn Write + Send>>>,
}

impl Serial {
    /// A port whose output goes to `output`, byte by byte and flushed, and which pulses `line`.
    /// An error of `output` loses the byte and nothing else.
    #[must_use]
    pub fn new(line: Arc<dyn IrqLine>, output: Box<dyn Write + Send>) -> Self {
        Self {
            registers: Mutex::new(Registers::new(LineTrigger(line), output)),
        }
    }

    /// Gives `input` to the guest and returns how many bytes it had room for. The caller keeps the
    /// rest and must not keep it without bound.
    pub fn enqueue(&self, input: &[u8]) -> usize {
        // The only errors are a full FIFO, which means no byte was taken, and an interrupt that
        // cannot be sent, which `LineTrigger` rules out.
        lock(&self.registers).enqueue_raw_bytes(input).unwrap_or(0)
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Serial").finish_non_exhaustive()
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (u8::try_from(offset), data) {
            (Ok(register), [byte]) => *byte = lock(&self.registers).read(register),
            (_, data) => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(register), &[byte]) = (u8::try_from(offset), data) {
            // A failed write lost a byte of output; the guest cannot be told, the writer counts.
            lock(&self.registers).write(register, byte).unwrap_or(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const DATA: u64 = 0;
    const INTERRUPT_ENABLE: u64 = 1;
    const LINE_STATUS: u64 = 5;

    #[derive(Default)]
    struct CountedLine(AtomicUsize);

    impl IrqLine for CountedLine {
        fn pulse(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[derive(Clone, Default)]
    struct SharedOutput(Arc<Mutex<Vec<u8>>>);

    impl Write for SharedOutput {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn read(serial: &Serial, register: u64) -> u8 {
        let mut byte = [0];
        serial.read(register, &mut byte);
        byte[0]
    }

    #[test]
    fn output_reaches_the_writer_and_interrupts_for_more() {
        let (line, output) = (Arc::new(CountedLine::default()), SharedOutput::default());
        let serial = Serial::new(line.clone(), Box::new(output.clone()));
        serial.write(INTERRUPT_ENABLE, &[0b10]);
        let armed = line.0.load(Ordering::SeqCst);
        for &byte in b"hello" {
            serial.write(DATA, &[byte]);
            // Reading the identification register acknowledges, as Linux' handler does.
            read(&serial, 2);
        }
        assert_eq!(*output.0.lock().unwrap(), b"hello");
        assert!(line.0.load(Ordering::SeqCst) > armed);
    }

    #[test]
    fn input_is_bounded_and_reaches_the_guest_in_order() {
        let serial = Serial::new(Arc::new(CountedLine::default()), Box::new(io::sink()));
        let taken = serial.enqueue(&[7; 1000]);
        assert_eq!(taken, 64);
        assert_eq!(serial.enqueue(b"x"), 0);
        for _ in 0..taken {
            assert_eq!(read(&serial, LINE_STATUS) & 1, 1);
            assert_eq!(read(&serial, DATA), 7);
        }
        assert_eq!(read(&serial, LINE_STATUS) & 1, 0);
    }

    #[test]
    fn wide_accesses_and_a_failing_writer_are_harmless() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let serial = Serial::new(Arc::new(CountedLine::default()), Box::new(Broken));
        serial.write(DATA, b"x");
        serial.write(DATA, b"wide");
        let mut wide = [0; 4];
        serial.read(DATA, &mut wide);
        assert_eq!(wide, [0xff; 4]);
    }
}
