//! A service manager in memory, whose services are threads that play a VMM.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use berth_agent_core::process_end::ProcessEnd;
use berth_api::ids::VmId;
use berth_api::vmm::{Denial, Disk, Event, Exit, Request};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::sync::broadcast;

use super::{Fuse, HeardStart, lock, receive_start};
use crate::vmm_unit::{ListedUnit, UnitEnd, UnitError, UnitSpec, UnitState, VmmUnits, unit_name};

/// What the guests of a [`FakeUnits`] do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestBehaviour {
    /// Runs until it is told to stop; obeys its power button.
    Obedient,
    /// Runs, and never powers off.
    Deaf,
    /// Its VMM refuses the machine, and has ended before anybody listens to it.
    Refused,
    /// Powers off at once.
    PowersOff,
    /// Resets at once, for ever.
    Resets,
    /// Its VMM crashes as soon as the guest runs.
    Crashes,
    /// As [`GuestBehaviour::Obedient`], under a VMM from before drives could be ejected.
    UnderOldVmm,
    /// Runs, under a VMM that has been asked for nothing that it answers.
    UnderSilentVmm,
}

#[derive(Debug)]
struct Unit {
    state: UnitState,
    launch: u32,
    /// What its process has open. Closed when that ends, as a kernel does.
    descriptors: Vec<Option<OwnedFd>>,
    /// The drives that it was told of.
    disks: Vec<Disk>,
    /// How often it was asked to take a medium out.
    ejections: u32,
}

#[derive(Debug)]
struct Shared {
    units: Mutex<BTreeMap<VmId, Unit>>,
    changed: Condvar,
    behaviour: Mutex<GuestBehaviour>,
    launches: Mutex<u32>,
    changes: broadcast::Sender<VmId>,
}

/// The fake. Clones with [`FakeUnits::for_next_agent`] share the services.
#[derive(Debug)]
pub struct FakeUnits {
    shared: Arc<Shared>,
    fuse: Fuse,
}

impl FakeUnits {
    /// No services; guests will behave so.
    #[must_use]
    pub fn new(behaviour: GuestBehaviour, fuse: Fuse) -> Self {
        let (changes, _) = broadcast::channel(64);
        Self {
            shared: Arc::new(Shared {
                units: Mutex::default(),
                changed: Condvar::new(),
                behaviour: Mutex::new(behaviour),
                launches: Mutex::new(0),
                changes,
            }),
            fuse,
        }
    }

    /// The same services for the next agent.
    #[must_use]
    pub fn for_next_agent(&self, fuse: Fuse) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            fuse,
        }
    }

    /// How guests behave from the next launch on.
    pub fn set_behaviour(&self, behaviour: GuestBehaviour) {
        *lock(&self.shared.behaviour) = behaviour;
    }

    /// How many processes were ever started.
    #[must_use]
    pub fn launches(&self) -> u32 {
        *lock(&self.shared.launches)
    }

    /// What the guest of a running VM reads from its drive with this serial number; `None` if it has
    /// none.
    #[must_use]
    pub fn drive(&self, vm_id: VmId, serial: &str) -> Option<(Disk, Vec<u8>)> {
        let (disk, file) = self.open_drive(vm_id, serial)?;
        let mut bytes = vec![0; usize::try_from(disk.expected_bytes).ok()?];
        file.read_exact_at(&mut bytes, 0).ok()?;
        Some((disk, bytes))
    }

    /// Which file is behind the drive with this serial number of a running VM.
    #[must_use]
    pub fn medium(&self, vm_id: VmId, serial: &str) -> Option<std::fs::Metadata> {
        self.open_drive(vm_id, serial)?.1.metadata().ok()
    }

    fn open_drive(&self, vm_id: VmId, serial: &str) -> Option<(Disk, File)> {
        let units = lock(&self.shared.units);
        let unit = units.get(&vm_id)?;
        let disk = unit.disks.iter().find(|disk| disk.serial == serial)?;
        let open = unit.descriptors.get(usize::try_from(disk.fd.0).ok()?)?;
        let copy = open.as_ref()?.try_clone().ok()?;
        Some((disk.clone(), File::from(copy)))
    }

    /// How often the VMM of a running VM was asked to take a medium out.
    #[must_use]
    pub fn ejections(&self, vm_id: VmId) -> u32 {
        let units = lock(&self.shared.units);
        units.get(&vm_id).map_or(0, |unit| unit.ejections)
    }

    /// A unit that nobody's record knows.
    pub fn plant(&self, vm_id: VmId) {
        let state = UnitState::Running {
            pid: 4242,
            invocation_id: "planted".to_owned(),
        };
        lock(&self.shared.units).insert(
            vm_id,
            Unit {
                state,
                launch: 0,
                descriptors: Vec::new(),
                disks: Vec::new(),
                ejections: 0,
            },
        );
    }

    /// End a service from outside, as a signal would.
    pub fn kill(&self, vm_id: VmId, signal: i32) {
        let launch = lock(&self.shared.units).get(&vm_id).map(|unit| unit.launch);
        if let Some(launch) = launch {
            self.shared
                .end(vm_id, launch, ProcessEnd::Killed(signal), "signal");
        }
    }

    /// Let the guest of a service reset itself.
    pub fn reset(&self, vm_id: VmId) {
        let launch = lock(&self.shared.units).get(&vm_id).map(|unit| unit.launch);
        if let Some(launch) = launch {
            let status = ProcessEnd::Exited(Exit::Reset.code().into());
            self.shared.end(vm_id, launch, status, "exit-code");
        }
    }

    /// Everything is gone, as after a reboot.
    pub fn reboot(&self) {
        lock(&self.shared.units).clear();
        self.shared.changed.notify_all();
    }

    fn guard<T>(&self, act: impl FnOnce() -> Result<T, UnitError>) -> Result<T, UnitError> {
        self.fuse.guard(|| UnitError::Injected, act)
    }
}

impl Shared {
    fn end(&self, vm_id: VmId, launch: u32, status: ProcessEnd, result: &str) {
        let mut units = lock(&self.units);
        if let Some(unit) = units.get_mut(&vm_id).filter(|unit| unit.launch == launch) {
            unit.state = UnitState::Ended(UnitEnd {
                status,
                result: result.to_owned(),
            });
            unit.descriptors.clear();
        }
        drop(units);
        self.changed.notify_all();
        // Nobody may be listening.
        drop(self.changes.send(vm_id));
    }

    /// Keeps descriptors open for as long as the service runs.
    fn keep_open(&self, vm_id: VmId, launch: u32, heard: HeardStart) {
        let mut units = lock(&self.units);
        let unit = units.get_mut(&vm_id);
        let running = unit.filter(|unit| {
            unit.launch == launch && matches!(unit.state, UnitState::Running { .. })
        });
        if let Some(unit) = running {
            unit.descriptors = heard.descriptors.into_iter().map(Some).collect();
            unit.disks = heard.start.disks;
        }
    }

    /// Closes what is behind a drive, and says how that went.
    fn eject(&self, vm_id: VmId, serial: String, behaviour: GuestBehaviour) -> Option<Event> {
        let mut units = lock(&self.units);
        let unit = units.get_mut(&vm_id)?;
        unit.ejections = unit.ejections.saturating_add(1);
        if behaviour == GuestBehaviour::UnderSilentVmm {
            return None;
        }
        if behaviour == GuestBehaviour::UnderOldVmm {
            return Some(denied("", Denial::Malformed));
        }
        let disk = unit.disks.iter().find(|disk| disk.serial == serial);
        let index = disk.and_then(|disk| usize::try_from(disk.fd.0).ok());
        let Some(open) = index.and_then(|index| unit.descriptors.get_mut(index)) else {
            return Some(denied("eject_disk", Denial::NoDevice));
        };
        *open = None;
        Some(Event::DiskEjected { serial })
    }

    fn is_current(&self, vm_id: VmId, launch: u32) -> bool {
        lock(&self.units).get(&vm_id).is_some_and(|unit| {
            unit.launch == launch && matches!(unit.state, UnitState::Running { .. })
        })
    }

    /// Block until the service was stopped from outside.
    fn wait_for_stop(&self, vm_id: VmId, launch: u32) {
        let mut units = lock(&self.units);
        while units.get(&vm_id).is_some_and(|unit| {
            unit.launch == launch && matches!(unit.state, UnitState::Running { .. })
        }) {
            units = self
                .changed
                .wait_timeout(units, Duration::from_millis(50))
                .map_or_else(|poisoned| poisoned.into_inner().0, |(units, _)| units);
        }
    }
}

fn say(stdin: &OwnedFd, event: &Event) {
    let message = serde_json::to_vec(event).unwrap_or_default();
    if let Err(errno) = send(stdin, &message, SendFlags::NOSIGNAL) {
        tracing::debug!(%errno, "no agent hears the fake VMM");
    }
}

fn denied(request: &str, reason: Denial) -> Event {
    Event::Denied {
        request: request.to_owned(),
        reason,
        remedy: "ask for something else".to_owned(),
    }
}

fn no_statistics() -> Event {
    Event::Statistics {
        exits: BTreeMap::new(),
        guest_errors: 0,
        console_dropped_bytes: 0,
        devices: Vec::new(),
    }
}

/// The life of one VMM process.
fn play_vmm(shared: &Shared, vm_id: VmId, launch: u32, stdin: &OwnedFd) {
    let exit = |exit: Exit| {
        say(stdin, &Event::Exited { exit, cause: None });
        shared.end(
            vm_id,
            launch,
            ProcessEnd::Exited(exit.code().into()),
            "success",
        );
    };
    let behaviour = *lock(&shared.behaviour);
    let Ok(heard) = receive_start(stdin) else {
        return shared.end(vm_id, launch, ProcessEnd::Exited(65), "exit-code");
    };
    shared.keep_open(vm_id, launch, heard);
    if behaviour == GuestBehaviour::Refused {
        say(
            stdin,
            &Event::Refused {
                field: "memory_mib".to_owned(),
                problem: "too much".to_owned(),
                remedy: "ask for less".to_owned(),
            },
        );
        return shared.end(vm_id, launch, ProcessEnd::Exited(65), "exit-code");
    }
    say(stdin, &Event::Running { pid: launch });
    match behaviour {
        GuestBehaviour::PowersOff => exit(Exit::PowerOff),
        GuestBehaviour::Resets => exit(Exit::Reset),
        GuestBehaviour::Crashes => shared.end(vm_id, launch, ProcessEnd::Killed(11), "core-dump"),
        GuestBehaviour::Obedient
        | GuestBehaviour::Deaf
        | GuestBehaviour::Refused
        | GuestBehaviour::UnderOldVmm
        | GuestBehaviour::UnderSilentVmm => {
            let mut buffer = vec![0; 1024];
            while let Ok((length, _)) = recv(stdin, &mut buffer[..], RecvFlags::empty()) {
                let request = serde_json::from_slice::<Request>(&buffer[..length]);
                match request {
                    Ok(Request::PowerButton)
                        if matches!(
                            behaviour,
                            GuestBehaviour::Obedient | GuestBehaviour::UnderOldVmm
                        ) =>
                    {
                        return exit(Exit::PowerOff);
                    }
                    Ok(Request::EjectDisk { serial }) => {
                        if let Some(answer) = shared.eject(vm_id, serial, behaviour) {
                            say(stdin, &answer);
                        }
                    }
                    Ok(Request::Stop) => return exit(Exit::Stopped),
                    Ok(Request::Statistics) => say(stdin, &no_statistics()),
                    Ok(
                        Request::PowerButton
                        | Request::Pause
                        | Request::Resume
                        | Request::Balloon { .. },
                    ) => {}
                    // The agent is gone, or this process was told to stop.
                    Err(_) => break,
                }
                if !shared.is_current(vm_id, launch) {
                    return;
                }
            }
            shared.wait_for_stop(vm_id, launch);
        }
    }
}

impl VmmUnits for FakeUnits {
    async fn start(&self, unit: &UnitSpec, stdin: OwnedFd) -> Result<(), UnitError> {
        let vm_id = unit.vm_id;
        self.guard(|| {
            let mut units = lock(&self.shared.units);
            if units.contains_key(&vm_id) {
                return Err(UnitError::Exists {
                    unit: unit_name(vm_id),
                });
            }
            let mut launches = lock(&self.shared.launches);
            *launches = launches.saturating_add(1);
            let launch = *launches;
            let state = UnitState::Running {
                pid: launch,
                invocation_id: format!("{launch:032x}"),
            };
            units.insert(
                vm_id,
                Unit {
                    state,
                    launch,
                    descriptors: Vec::new(),
                    disks: Vec::new(),
                    ejections: 0,
                },
            );
            let shared = Arc::clone(&self.shared);
            drop(units);
            let refuses = *lock(&shared.behaviour) == GuestBehaviour::Refused;
            let vmm = std::thread::spawn(move || play_vmm(&shared, vm_id, launch, &stdin));
            if refuses {
                drop(vmm.join());
            }
            Ok(())
        })
    }

    async fn state(&self, vm_id: VmId) -> Result<UnitState, UnitError> {
        Ok(lock(&self.shared.units)
            .get(&vm_id)
            .map_or(UnitState::Absent, |unit| unit.state.clone()))
    }

    async fn ensure_gone(&self, vm_id: VmId) -> Result<(), UnitError> {
        self.guard(|| {
            lock(&self.shared.units).remove(&vm_id);
            self.shared.changed.notify_all();
            drop(self.shared.changes.send(vm_id));
            Ok(())
        })
    }

    async fn list(&self) -> Result<Vec<ListedUnit>, UnitError> {
        Ok(lock(&self.shared.units)
            .keys()
            .map(|vm_id| ListedUnit {
                unit: unit_name(*vm_id),
                vm_id: Some(*vm_id),
            })
            .collect())
    }

    fn changes(&self) -> broadcast::Receiver<VmId> {
        self.shared.changes.subscribe()
    }

    async fn host_is_stopping(&self) -> Result<bool, UnitError> {
        Ok(false)
    }
}
