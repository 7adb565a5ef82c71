//! Interrupts that the host's kernel raises by itself: VFIO's and vhost's vectors.
//!
//! Owns KVM's table of interrupt numbers (GSIs) beyond the I/O APIC's pins, and the order of its
//! changes: a route is in the table before its event may use it, and leaves it after. While a vector
//! is disconnected its event collects what the kernel raises, so that a masked vector is pending and
//! is delivered once it is connected again. Called from vCPU threads; a whole change of several
//! vectors costs one call to KVM. What a vector is for is not known here.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_vmm_devices::interrupt::MsiMessage;
use berth_vmm_devices::ioapic::IOAPIC_PINS;
use berth_vmm_sys::{Event, MsiRoute, Vm};

/// KVM's limit on GSIs and on the lines of its table (`KVM_MAX_IRQ_ROUTES`).
const MAX_GSIS: u32 = 4096;
const FIRST_GSI: u32 = IOAPIC_PINS as u32;

/// Why a vector could not be connected.
#[derive(Debug, thiserror::Error)]
pub enum IrqRouteError {
    /// Every number is in use.
    #[error("all {} interrupt numbers of KVM are in use", MAX_GSIS - FIRST_GSI)]
    Exhausted,
    /// KVM did not take the table.
    #[error("KVM did not take the table of interrupt routes")]
    SetRoutes(#[source] io::Error),
    /// KVM did not take the event.
    #[error("KVM did not take the event of interrupt {gsi}")]
    Connect {
        /// KVM's number.
        gsi: u32,
        /// What KVM said.
        #[source]
        cause: io::Error,
    },
}

/// What KVM is asked; a test records it.
trait Table: Send + Sync {
    fn set_routes(&self, routes: &[MsiRoute]) -> io::Result<()>;
    fn connect(&self, event: &Event, gsi: u32) -> io::Result<()>;
    fn disconnect(&self, event: &Event, gsi: u32) -> io::Result<()>;
}

impl Table for Arc<Vm> {
    fn set_routes(&self, routes: &[MsiRoute]) -> io::Result<()> {
        self.set_msi_routes(routes)
    }

    fn connect(&self, event: &Event, gsi: u32) -> io::Result<()> {
        self.interrupt_on_event(event, gsi)
    }

    fn disconnect(&self, event: &Event, gsi: u32) -> io::Result<()> {
        self.forget_event(event, gsi)
    }
}

/// All vectors of one machine.
pub struct IrqRoutes {
    table: Box<dyn Table>,
    gsis: Mutex<Gsis>,
}

/// Every GSI beyond the I/O APIC's pins.
#[derive(Default)]
struct Gsis {
    /// One place for each, as far as they were ever used.
    places: Vec<Gsi>,
    /// Whether KVM's table lacks a change. Stays so if KVM did not take it.
    is_dirty: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Gsi {
    Free,
    /// A vector has it and it leads nowhere.
    Taken,
    Routed(MsiMessage),
}

impl std::fmt::Debug for IrqRoutes {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("IrqRoutes").finish_non_exhaustive()
    }
}

impl IrqRoutes {
    /// An empty table.
    #[must_use]
    pub fn new(vm: Arc<Vm>) -> Arc<Self> {
        Self::over(vm)
    }

    fn over(table: impl Table + 'static) -> Arc<Self> {
        Arc::new(Self {
            table: Box::new(table),
            gsis: Mutex::default(),
        })
    }

    /// Makes a vector with an event of its own, disconnected. It gets a number when it is first
    /// connected: drives have thousands of vectors, of which their drivers use a few.
    ///
    /// # Errors
    /// If there is no descriptor left.
    pub fn vector(self: &Arc<Self>) -> io::Result<IrqVector> {
        Ok(IrqVector {
            routes: Arc::clone(self),
            event: Event::new()?,
            gsi: None,
            is_connected: false,
        })
    }

    /// Connects vectors of this table, or changes the message of those that are connected, by one
    /// change of the table.
    ///
    /// # Errors
    /// What KVM says; vectors before the one that failed are connected.
    pub fn connect<'a>(
        &self,
        changes: impl IntoIterator<Item = (&'a mut IrqVector, MsiMessage)>,
    ) -> Result<(), IrqRouteError> {
        let mut gsis = self.lock();
        let mut vectors = Vec::new();
        for (vector, message) in changes {
            let gsi = match vector.gsi {
                Some(gsi) => gsi,
                None => gsis.take().ok_or(IrqRouteError::Exhausted)?,
            };
            vector.gsi = Some(gsi);
            gsis.set(gsi, Gsi::Routed(message));
            vectors.push((vector, gsi));
        }
        if gsis.is_dirty {
            self.table
                .set_routes(&gsis.routes())
                .map_err(IrqRouteError::SetRoutes)?;
            gsis.is_dirty = false;
        }
        let disconnected = |(vector, _): &(&mut IrqVector, u32)| !vector.is_connected;
        for (vector, gsi) in vectors.into_iter().filter(disconnected) {
            self.table
                .connect(&vector.event, gsi)
                .map_err(|cause| IrqRouteError::Connect { gsi, cause })?;
            vector.is_connected = true;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Gsis> {
        self.gsis.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gsis {
    fn take(&mut self) -> Option<u32> {
        let free = self.places.iter().position(|gsi| *gsi == Gsi::Free);
        let position = free.unwrap_or(self.places.len());
        let number = u32::try_from(position).ok()?.checked_add(FIRST_GSI)?;
        if number >= MAX_GSIS {
            return None;
        }
        if free.is_none() {
            self.places.push(Gsi::Free);
        }
        self.set(number, Gsi::Taken);
        Some(number)
    }

    fn set(&mut self, number: u32, state: Gsi) {
        let position = usize::try_from(number - FIRST_GSI).unwrap_or(usize::MAX);
        if let Some(place) = self.places.get_mut(position) {
            let before = std::mem::replace(place, state);
            self.is_dirty |= before != state && matches!(state, Gsi::Routed(_));
        }
    }

    fn routes(&self) -> Vec<MsiRoute> {
        (FIRST_GSI..)
            .zip(&self.places)
            .filter_map(|(gsi, state)| match state {
                Gsi::Routed(MsiMessage { address, data }) => Some(MsiRoute {
                    gsi,
                    address: *address,
                    data: *data,
                }),
                Gsi::Free | Gsi::Taken => None,
            })
            .collect()
    }
}

/// One interrupt of a device that the host's kernel serves. Its number is free again after a drop.
#[derive(Debug)]
pub struct IrqVector {
    routes: Arc<IrqRoutes>,
    event: Event,
    gsi: Option<u32>,
    is_connected: bool,
}

impl IrqVector {
    /// What the kernel signals to interrupt.
    #[must_use]
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// Whether a signal reaches the guest.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.is_connected
    }

    /// Whether an interrupt waits for the vector to be connected; forgets it.
    #[must_use]
    pub fn take_pending(&self) -> bool {
        !self.is_connected && self.event.take()
    }

    /// Lets signals reach the guest as `message`, beginning with one that waits.
    ///
    /// # Errors
    /// What KVM says.
    pub fn connect(&mut self, message: MsiMessage) -> Result<(), IrqRouteError> {
        let routes = Arc::clone(&self.routes);
        routes.connect([(self, message)])
    }

    /// Keeps signals from the guest: they wait.
    ///
    /// The route stays in the table, where nothing uses it: to take it out would cost as much as to
    /// put it in, and a vector that is masked is soon unmasked with the same message.
    pub fn disconnect(&mut self) {
        let was_connected = std::mem::replace(&mut self.is_connected, false);
        if let Some(gsi) = self.gsi.filter(|_| was_connected) {
            // KVM refuses only what it never took.
            self.routes.table.disconnect(&self.event, gsi).unwrap_or(());
        }
    }
}

impl Drop for IrqVector {
    fn drop(&mut self) {
        self.disconnect();
        // The line goes out of KVM's table with the table's next change; nothing leads to it.
        if let Some(gsi) = self.gsi {
            self.routes.lock().set(gsi, Gsi::Free);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, PartialEq, Eq, Debug)]
    enum Call {
        Routes(Vec<(u32, u32)>),
        Connect(u32),
        Disconnect(u32),
    }

    #[derive(Clone, Default)]
    struct Recorder(Arc<Mutex<Vec<Call>>>);

    impl Recorder {
        fn push(&self, call: Call) -> io::Result<()> {
            self.0.lock().unwrap().push(call);
            Ok(())
        }

        fn take(&self) -> Vec<Call> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    impl Table for Recorder {
        fn set_routes(&self, routes: &[MsiRoute]) -> io::Result<()> {
            let routes = routes.iter().map(|route| (route.gsi, route.data));
            self.push(Call::Routes(routes.collect()))
        }
        fn connect(&self, _: &Event, gsi: u32) -> io::Result<()> {
            self.push(Call::Connect(gsi))
        }
        fn disconnect(&self, _: &Event, gsi: u32) -> io::Result<()> {
            self.push(Call::Disconnect(gsi))
        }
    }

    fn message(data: u32) -> MsiMessage {
        MsiMessage {
            address: 0xfee0_0000,
            data,
        }
    }

    fn routes() -> (Arc<IrqRoutes>, Recorder) {
        let recorder = Recorder::default();
        (IrqRoutes::over(recorder.clone()), recorder)
    }

    #[test]
    fn the_route_is_there_before_the_event_uses_it() {
        let (routes, recorder) = routes();
        let mut vector = routes.vector().unwrap();
        vector.connect(message(7)).unwrap();
        assert_eq!(
            recorder.take(),
            [Call::Routes(vec![(24, 7)]), Call::Connect(24)]
        );
        drop(vector);
        assert_eq!(recorder.take(), [Call::Disconnect(24)]);
    }

    #[test]
    fn a_vector_without_a_message_takes_no_number() {
        let (routes, recorder) = routes();
        let (_idle, mut busy) = (routes.vector().unwrap(), routes.vector().unwrap());
        busy.connect(message(3)).unwrap();
        assert_eq!(
            recorder.take(),
            [Call::Routes(vec![(24, 3)]), Call::Connect(24)]
        );
    }

    #[test]
    fn many_vectors_change_the_table_once() {
        let (routes, recorder) = routes();
        let mut vectors: Vec<_> = (0..3).map(|_| routes.vector().unwrap()).collect();
        routes
            .connect(vectors.iter_mut().zip((5..).map(message)))
            .unwrap();
        assert_eq!(
            recorder.take(),
            [
                Call::Routes(vec![(24, 5), (25, 6), (26, 7)]),
                Call::Connect(24),
                Call::Connect(25),
                Call::Connect(26)
            ]
        );
    }

    #[test]
    fn masking_and_unmasking_with_the_same_message_leaves_the_table_alone() {
        let (routes, recorder) = routes();
        let mut vector = routes.vector().unwrap();
        vector.connect(message(1)).unwrap();
        recorder.take();
        vector.disconnect();
        vector.disconnect();
        vector.connect(message(1)).unwrap();
        assert_eq!(recorder.take(), [Call::Disconnect(24), Call::Connect(24)]);
        vector.connect(message(2)).unwrap();
        assert_eq!(recorder.take(), [Call::Routes(vec![(24, 2)])]);
    }

    #[test]
    fn a_disconnected_vector_is_pending_until_it_is_asked() {
        let (routes, _) = routes();
        let mut vector = routes.vector().unwrap();
        vector.event().signal();
        assert!(vector.take_pending());
        assert!(!vector.take_pending());
        vector.connect(message(1)).unwrap();
        vector.event().signal();
        assert!(!vector.take_pending(), "KVM takes it");
    }

    #[test]
    fn numbers_are_bounded_and_come_back() {
        let mut gsis = Gsis::default();
        let count = MAX_GSIS - FIRST_GSI;
        for expected in FIRST_GSI..MAX_GSIS {
            assert_eq!(gsis.take(), Some(expected));
        }
        assert_eq!(gsis.take(), None);
        assert_eq!(gsis.places.len(), usize::try_from(count).unwrap());
        gsis.set(1000, Gsi::Free);
        assert_eq!(gsis.take(), Some(1000));
        assert_eq!(gsis.take(), None);
    }
}
