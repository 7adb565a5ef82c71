//! MSI-X: the vector table, the pending bits and when a message may leave.
//!
//! Owns the decision whether a vector's message is sent, kept pending or dropped. It does not know
//! what a vector is for, nor how a message reaches the guest. One lock of the owner covers a whole
//! signal or a whole register write, so a driver that masked a vector sees no later message.
//!
//! ```text
//! signal -> MSI-X off or no such vector: dropped (there is no INTx to fall back to)
//!        -> function or vector masked:   pending bit
//!        -> otherwise:                   sent
//! unmask (vector or function) -> pending bit cleared, sent
//! ```

use std::fmt;
use std::sync::Arc;

use crate::guest_error::{GuestError, GuestErrors};
use crate::interrupt::{MsiMessage, MsiSender};

/// Length of one table entry, in bytes.
pub const MSIX_ENTRY_BYTES: u64 = 16;
/// Most vectors that one function can have.
pub const MSIX_MAX_VECTORS: u16 = 2048;
/// The vector number that means "no interrupt".
pub const MSIX_NO_VECTOR: u16 = 0xffff;
/// Message control: MSI-X is on.
pub const MSIX_CONTROL_ENABLE: u16 = 1 << 15;
/// Message control: every vector is masked.
pub const MSIX_CONTROL_FUNCTION_MASK: u16 = 1 << 14;

const VECTOR_MASKED: u32 = 1;
const ADDRESS_LOW_WRITABLE: u32 = !0b11;
const PENDING_BITS_PER_WORD: u16 = 64;

/// One vector as the four registers of its table entry.
#[derive(Clone, Copy, Debug)]
struct Vector {
    address_low: u32,
    address_high: u32,
    data: u32,
    control: u32,
    pending: bool,
}

impl Vector {
    const AFTER_RESET: Self = Self {
        address_low: 0,
        address_high: 0,
        data: 0,
        control: VECTOR_MASKED,
        pending: false,
    };

    fn is_masked(&self) -> bool {
        self.control & VECTOR_MASKED != 0
    }

    fn message(&self) -> MsiMessage {
        let address = u64::from(self.address_high) << 32 | u64::from(self.address_low);
        MsiMessage {
            address,
            data: self.data,
        }
    }

    fn register(&self, index: u64) -> u32 {
        match index {
            0 => self.address_low,
            1 => self.address_high,
            2 => self.data,
            _ => self.control,
        }
    }

    fn set_register(&mut self, index: u64, value: u32) {
        match index {
            0 => self.address_low = value & ADDRESS_LOW_WRITABLE,
            1 => self.address_high = value,
            2 => self.data = value,
            _ => self.control = value & VECTOR_MASKED,
        }
    }
}

/// The MSI-X state of one function.
pub struct Msix {
    vectors: Box<[Vector]>,
    is_enabled: bool,
    is_function_masked: bool,
    sender: Arc<dyn MsiSender>,
    errors: Arc<GuestErrors>,
}

impl Msix {
    /// `vectors` vectors (1 to [`MSIX_MAX_VECTORS`]; other numbers are brought into that range),
    /// all masked, with MSI-X off.
    #[must_use]
    pub fn new(vectors: u16, sender: Arc<dyn MsiSender>, errors: Arc<GuestErrors>) -> Self {
        let count = usize::from(vectors.clamp(1, MSIX_MAX_VECTORS));
        Self {
            vectors: vec![Vector::AFTER_RESET; count].into_boxed_slice(),
            is_enabled: false,
            is_function_masked: false,
            sender,
            errors,
        }
    }

    /// Number of vectors.
    #[must_use]
    pub fn vector_count(&self) -> u16 {
        u16::try_from(self.vectors.len()).expect("there are at most 2048 vectors")
    }

    /// Length of the pending bit array in bytes: whole 8-byte words.
    #[must_use]
    pub fn pending_bytes(&self) -> u64 {
        u64::from(self.vector_count().div_ceil(PENDING_BITS_PER_WORD)) * 8
    }

    /// Whether MSI-X is on.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.is_enabled
    }

    /// The message that a signal of `vector` would send now, if it would send one.
    #[must_use]
    pub fn deliverable(&self, vector: u16) -> Option<MsiMessage> {
        let may_send = self.is_enabled && !self.is_function_masked;
        self.vectors
            .get(usize::from(vector))
            .filter(|vector| may_send && !vector.is_masked())
            .map(Vector::message)
    }

    /// Number of vectors up to the last one that the driver has given an address: what it is going
    /// to use, whether masked or not.
    #[must_use]
    pub fn programmed_count(&self) -> u16 {
        let is_programmed = |vector: &Vector| vector.message().address != 0;
        let last = self.vectors.iter().rposition(is_programmed);
        last.map_or(0, |last| {
            u16::try_from(last + 1).expect("there are at most 2048 vectors")
        })
    }

    /// Back to the state after power-on: off, every vector masked and empty.
    pub fn reset(&mut self) {
        self.is_enabled = false;
        self.is_function_masked = false;
        self.vectors.fill(Vector::AFTER_RESET);
    }

    /// Takes the message control word after a configuration write, and sends what that unmasks.
    pub fn set_control(&mut self, control: u16) {
        self.is_enabled = control & MSIX_CONTROL_ENABLE != 0;
        self.is_function_masked = control & MSIX_CONTROL_FUNCTION_MASK != 0;
        self.send_unmasked();
    }

    /// Interrupts through `vector`; see the module's picture. [`MSIX_NO_VECTOR`] and vectors
    /// beyond the table do nothing.
    pub fn signal(&mut self, vector: u16) {
        let may_send = !self.is_function_masked;
        let Some(vector) = self
            .vectors
            .get_mut(usize::from(vector))
            .filter(|_| self.is_enabled)
        else {
            return;
        };
        if may_send && !vector.is_masked() {
            self.sender.send(vector.message());
        } else {
            vector.pending = true;
        }
    }

    /// Forgets pending interrupts: what the device signalled before its reset concerns nobody.
    pub fn clear_pending(&mut self) {
        for vector in &mut self.vectors {
            vector.pending = false;
        }
    }

    /// Reads the vector table; all ones unless the access is 4 or 8 bytes, aligned and inside.
    pub fn table_read(&self, offset: u64, data: &mut [u8]) {
        let Some(first) = self.table_register(offset, data.len()) else {
            return data.fill(0xff);
        };
        for (register, bytes) in (first..).zip(data.chunks_exact_mut(4)) {
            let (vector, field) = Self::place(register);
            bytes.copy_from_slice(&self.vectors[vector].register(field).to_le_bytes());
        }
    }

    /// Writes the vector table; ignored unless the access is 4 or 8 bytes, aligned and inside.
    pub fn table_write(&mut self, offset: u64, data: &[u8]) {
        let Some(first) = self.table_register(offset, data.len()) else {
            return;
        };
        for (register, bytes) in (first..).zip(data.chunks_exact(4)) {
            let (vector, field) = Self::place(register);
            let value = bytes
                .try_into()
                .map(u32::from_le_bytes)
                .expect("chunks are of 4 bytes");
            self.vectors[vector].set_register(field, value);
        }
        self.send_unmasked();
    }

    /// Reads the pending bits; all ones unless the access is 4 or 8 bytes, aligned and inside.
    /// There is no way to write them.
    pub fn pending_read(&self, offset: u64, data: &mut [u8]) {
        if !self.is_access_valid(offset, data.len(), self.pending_bytes()) {
            return data.fill(0xff);
        }
        let first = usize::try_from(offset * 8).unwrap_or(usize::MAX);
        data.fill(0);
        for (bit, vector) in self
            .vectors
            .iter()
            .skip(first)
            .take(data.len() * 8)
            .enumerate()
        {
            data[bit / 8] |= u8::from(vector.pending) << (bit % 8);
        }
    }

    fn send_unmasked(&mut self) {
        if !self.is_enabled || self.is_function_masked {
            return;
        }
        for vector in self.vectors.iter_mut().filter(|vector| vector.pending) {
            if !vector.is_masked() {
                vector.pending = false;
                self.sender.send(vector.message());
            }
        }
    }

    /// The number of the 4-byte register that a good access starts at.
    fn table_register(&self, offset: u64, width: usize) -> Option<u64> {
        let bytes = u64::from(self.vector_count()) * MSIX_ENTRY_BYTES;
        self.is_access_valid(offset, width, bytes)
            .then_some(offset / 4)
    }

    fn is_access_valid(&self, offset: u64, width: usize, bytes: u64) -> bool {
        let width = match width {
            4 => 4,
            8 => 8,
            _ => 0,
        };
        // Both structures are whole 8-byte words: what is aligned and starts inside ends inside.
        let is_valid = width != 0 && offset.is_multiple_of(width) && offset < bytes;
        if !is_valid {
            self.errors.bump(GuestError::MsixAccess);
        }
        is_valid
    }

    /// Vector and field of the 4-byte register `register`, which was checked to be in the table.
    fn place(register: u64) -> (usize, u64) {
        (
            usize::try_from(register / 4).unwrap_or(usize::MAX),
            register % 4,
        )
    }
}

impl fmt::Debug for Msix {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Msix")
            .field("vectors", &self.vectors)
            .field("is_enabled", &self.is_enabled)
            .field("is_function_masked", &self.is_function_masked)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Sent(Mutex<Vec<MsiMessage>>);

    impl MsiSender for Sent {
        fn send(&self, message: MsiMessage) {
            self.0.lock().unwrap().push(message);
        }
    }

    impl Sent {
        fn take(&self) -> Vec<u32> {
            self.0
                .lock()
                .unwrap()
                .drain(..)
                .map(|message| message.data)
                .collect()
        }
    }

    fn msix(vectors: u16) -> (Msix, Arc<Sent>, Arc<GuestErrors>) {
        let (sent, errors) = (Arc::new(Sent::default()), Arc::new(GuestErrors::default()));
        (
            Msix::new(vectors, sent.clone(), errors.clone()),
            sent,
            errors,
        )
    }

    /// Programs `vector` to send its own number plus 100.
    fn program(msix: &mut Msix, vector: u16, control: u32) {
        let entry = u64::from(vector) * MSIX_ENTRY_BYTES;
        msix.table_write(entry, &0xfee0_0000_u64.to_le_bytes());
        msix.table_write(entry + 8, &(u32::from(vector) + 100).to_le_bytes());
        msix.table_write(entry + 12, &control.to_le_bytes());
    }

    fn pending(msix: &Msix, word: u64) -> u64 {
        let mut bytes = [0; 8];
        msix.pending_read(word * 8, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    #[test]
    fn an_enabled_unmasked_vector_sends_its_message() {
        let (mut msix, sent, _) = msix(2);
        program(&mut msix, 1, 0);
        msix.set_control(MSIX_CONTROL_ENABLE);
        msix.signal(1);
        let expected = MsiMessage {
            address: 0xfee0_0000,
            data: 101,
        };
        assert_eq!(*sent.0.lock().unwrap(), [expected]);
        assert_eq!(pending(&msix, 0), 0);
    }

    #[test]
    fn a_masked_vector_pends_and_is_sent_once_on_unmask() {
        let (mut msix, sent, _) = msix(2);
        program(&mut msix, 1, 1);
        msix.set_control(MSIX_CONTROL_ENABLE);
        msix.signal(1);
        msix.signal(1);
        assert!(sent.take().is_empty());
        assert_eq!(pending(&msix, 0), 0b10);
        program(&mut msix, 1, 0);
        assert_eq!(sent.take(), [101]);
        assert_eq!(pending(&msix, 0), 0);
        program(&mut msix, 1, 1);
        program(&mut msix, 1, 0);
        assert!(sent.take().is_empty());
    }

    #[test]
    fn the_function_mask_holds_every_vector_back() {
        let (mut msix, sent, _) = msix(3);
        program(&mut msix, 0, 0);
        program(&mut msix, 1, 1);
        program(&mut msix, 2, 0);
        msix.set_control(MSIX_CONTROL_ENABLE | MSIX_CONTROL_FUNCTION_MASK);
        for vector in 0..3 {
            msix.signal(vector);
        }
        assert_eq!(pending(&msix, 0), 0b111);
        msix.set_control(MSIX_CONTROL_ENABLE);
        assert_eq!(sent.take(), [100, 102]);
        assert_eq!(pending(&msix, 0), 0b010);
    }

    #[test]
    fn nothing_is_sent_or_kept_while_msix_is_off() {
        let (mut msix, sent, _) = msix(1);
        program(&mut msix, 0, 0);
        msix.signal(0);
        msix.set_control(MSIX_CONTROL_FUNCTION_MASK);
        msix.signal(0);
        assert_eq!(pending(&msix, 0), 0);
        msix.set_control(MSIX_CONTROL_ENABLE);
        assert!(sent.take().is_empty());
    }

    #[test]
    fn a_pending_vector_is_not_sent_by_unmasking_while_msix_is_off() {
        let (mut msix, sent, _) = msix(1);
        program(&mut msix, 0, 1);
        msix.set_control(MSIX_CONTROL_ENABLE);
        msix.signal(0);
        msix.set_control(0);
        program(&mut msix, 0, 0);
        assert!(sent.take().is_empty());
        msix.set_control(MSIX_CONTROL_ENABLE);
        assert_eq!(sent.take(), [100]);
    }

    #[test]
    fn no_vector_and_vectors_out_of_bounds_do_nothing() {
        let (mut msix, sent, _) = msix(2);
        msix.set_control(MSIX_CONTROL_ENABLE);
        for vector in [2, 3, 2047, MSIX_NO_VECTOR] {
            msix.signal(vector);
        }
        assert!(sent.take().is_empty());
        assert_eq!(pending(&msix, 0), 0);
    }

    #[test]
    fn entries_are_masked_after_reset_and_reserved_bits_read_zero() {
        let (mut msix, _, _) = msix(1);
        let mut entry = [0; 8];
        msix.table_read(8, &mut entry);
        assert_eq!(entry, [0, 0, 0, 0, 1, 0, 0, 0]);
        msix.table_write(0, &[0xff; 8]);
        msix.table_write(8, &[0xff; 8]);
        msix.table_read(0, &mut entry);
        assert_eq!(entry, [0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
        msix.table_read(8, &mut entry);
        assert_eq!(entry, [0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
    }

    #[test]
    fn accesses_out_of_bounds_or_of_bad_width_are_ignored_and_counted() {
        let (mut msix, _, errors) = msix(2);
        let bad = [
            (32, 4),
            (28, 8),
            (u64::MAX, 4),
            (u64::MAX - 7, 8),
            (0, 1),
            (0, 2),
            (4, 8),
            (2, 4),
        ];
        for (offset, width) in bad {
            let mut data = vec![0; width];
            msix.table_read(offset, &mut data);
            assert!(data.iter().all(|&byte| byte == 0xff), "{offset:#x} {width}");
            msix.table_write(offset, &data);
        }
        assert_eq!(errors.count(GuestError::MsixAccess), 2 * 8);
        let mut data = [0; 8];
        msix.table_read(0, &mut data);
        assert_eq!(data, [0; 8]);
        for (offset, width) in [(8, 4), (8, 8), (4, 8), (0, 1), (u64::MAX - 7, 8)] {
            let mut data = vec![0; width];
            msix.pending_read(offset, &mut data);
            assert!(data.iter().all(|&byte| byte == 0xff), "{offset:#x} {width}");
        }
    }

    #[test]
    fn pending_bits_sit_in_the_word_of_their_vector() {
        let (mut msix, _, _) = msix(130);
        msix.set_control(MSIX_CONTROL_ENABLE);
        for vector in [0, 63, 64, 129] {
            msix.signal(vector);
        }
        assert_eq!(msix.pending_bytes(), 24);
        let words = [pending(&msix, 0), pending(&msix, 1), pending(&msix, 2)];
        assert_eq!(words, [1 | 1 << 63, 1, 0b10]);
        let mut half = [0; 4];
        msix.pending_read(4, &mut half);
        assert_eq!(half, [0, 0, 0, 0x80]);
        msix.clear_pending();
        assert_eq!(pending(&msix, 0), 0);
    }

    proptest! {
        #[test]
        fn random_register_traffic_never_panics_and_never_sends_while_masked(
            steps in prop::collection::vec((0_u8..5, any::<u64>(), any::<u64>(), 0_usize..9), 0..64)
        ) {
            let (mut msix, sent, _) = msix(3);
            for (kind, offset, value, width) in steps {
                let offset = if kind % 2 == 0 { offset } else { offset % 64 };
                match kind {
                    0 | 1 => msix.table_write(offset, &value.to_le_bytes()[..width]),
                    2 => msix.pending_read(offset, &mut value.to_le_bytes()[..width]),
                    3 => msix.signal(u16::try_from(offset % 5).unwrap()),
                    _ => msix.set_control(u16::try_from(value & 0xffff).unwrap()),
                }
                if !msix.is_enabled || msix.is_function_masked {
                    prop_assert!(sent.take().is_empty());
                }
                sent.take();
                let deliverable = msix.is_enabled && !msix.is_function_masked;
                prop_assert!(!deliverable || msix.vectors.iter().all(|v| !v.pending || v.is_masked()));
            }
        }
    }
}
