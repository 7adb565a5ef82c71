//! [`VmmUnits`] over D-Bus to systemd.
//!
//! One connection to the system bus, two match rules for signals, no polling. Methods are called by
//! their documented names (org.freedesktop.systemd1(5)); nothing is generated.

use std::fs::Permissions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_agent_core::process_end::ProcessEnd;
use berth_api::ids::VmId;
use tokio::sync::{broadcast, watch};
use zbus::message::Type as MessageType;
use zbus::{Connection, MatchRule, Message, MessageStream, OwnedObjectPath, OwnedVariant};

use super::properties::{Property, properties};
use super::{
    ListedUnit, STOP_SECONDS, UnitEnd, UnitError, UnitSpec, UnitState, VmmUnits, unit_name,
    vm_of_unit,
};

const DESTINATION: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const UNITS_PATH: &str = "/org/freedesktop/systemd1/unit";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
const UNIT_NOT_LOADED: &str = "org.freedesktop.systemd1.NotLoaded";
const UNKNOWN_OBJECT: &str = "org.freedesktop.DBus.Error.UnknownObject";

/// Changes kept for a slow listener before it is told to look at everything.
const CHANGES_KEPT: usize = 1024;
/// Longest wait for a signal before a unit is looked at again: a signal can be lost only when the
/// bus restarts, so this bounds the harm of that.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// The service manager of this host.
#[derive(Debug)]
pub struct SystemdUnits {
    connection: Connection,
    /// The root of all VMM units: a folder with nothing in it.
    empty: PathBuf,
    changes: broadcast::Sender<VmId>,
    /// Signalled when a task that reads signals ends, which means that the connection has ended.
    listening: watch::Sender<()>,
}

impl SystemdUnits {
    /// Connect to the system bus and subscribe to unit changes. A task of the current tokio runtime
    /// reads the signals until the connection ends. The folder `empty`, absolute, is made where it is
    /// missing; it becomes the root of every VMM.
    pub async fn connect(empty: PathBuf) -> Result<Self, UnitError> {
        ensure_open_to_all(&empty).map_err(|cause| UnitError::Root {
            path: empty.clone(),
            cause,
        })?;
        let connection = Connection::system().await.map_err(UnitError::Connect)?;
        let (changes, _) = broadcast::channel(CHANGES_KEPT);
        let listening = watch::Sender::new(());
        for rule in [changed_rule(), removed_rule()] {
            let stream =
                MessageStream::for_match_rule(rule.map_err(UnitError::Connect)?, &connection, None)
                    .await
                    .map_err(UnitError::Connect)?;
            let (changes, ended) = (changes.clone(), listening.clone());
            tokio::spawn(async move {
                forward_changes(stream, changes).await;
                ended.send_replace(());
            });
        }
        let units = Self {
            connection,
            empty,
            changes,
            listening,
        };
        units.manager("Subscribe", "berth.slice", &()).await?;
        Ok(units)
    }

    /// Returns when the connection has ended: the bus was restarted, and only a new agent hears of
    /// changes again.
    pub fn disconnected(&self) -> impl Future<Output = ()> + use<> {
        let mut listening = self.listening.subscribe();
        async move {
            // An error would mean that every sender is gone, which is an end as well.
            drop(listening.changed().await);
        }
    }

    async fn manager<B>(
        &self,
        call: &'static str,
        unit: &str,
        body: &B,
    ) -> Result<Message, UnitError>
    where
        B: serde::Serialize + zbus::wire::DynamicType,
    {
        self.connection
            .call_method(Some(DESTINATION), MANAGER_PATH, Some(MANAGER), call, body)
            .await
            .map_err(|cause| UnitError::Call {
                call,
                unit: unit.to_owned(),
                cause,
            })
    }

    async fn property<T>(
        &self,
        path: &OwnedObjectPath,
        interface: &'static str,
        name: &'static str,
    ) -> Result<T, UnitError>
    where
        T: TryFrom<OwnedVariant>,
    {
        let reply = self
            .connection
            .call_method(
                Some(DESTINATION),
                path,
                Some(PROPERTIES),
                "Get",
                &(interface, name),
            )
            .await
            .map_err(|cause| UnitError::Call {
                call: name,
                unit: path.to_string(),
                cause,
            })?;
        let value: OwnedVariant = reply
            .body()
            .deserialize()
            .map_err(|_| UnitError::Reply { call: name })?;
        T::try_from(value).map_err(|_| UnitError::Reply { call: name })
    }

    async fn object_of(&self, unit: &str) -> Result<Option<OwnedObjectPath>, UnitError> {
        match self.manager("GetUnit", unit, &(unit,)).await {
            Ok(reply) => reply
                .body()
                .deserialize()
                .map(Some)
                .map_err(|_| UnitError::Reply { call: "GetUnit" }),
            Err(error) if names(&error, &[NO_SUCH_UNIT]) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn state_at(&self, path: &OwnedObjectPath) -> Result<UnitState, UnitError> {
        // Before its start was begun a unit is inactive with a job. Asked for first: a job that ends
        // between the two questions leaves the unit active.
        let (job, _): (u32, OwnedObjectPath) = self.property(path, UNIT, "Job").await?;
        let active: String = self.property(path, UNIT, "ActiveState").await?;
        let sub: String = self.property(path, UNIT, "SubState").await?;
        match course(&active, &sub, job != 0) {
            Course::Over => self.end_at(path).await.map(UnitState::Ended),
            Course::UnderWay => {
                let id: Vec<u8> = self.property(path, UNIT, "InvocationID").await?;
                Ok(UnitState::Running {
                    pid: self.property(path, SERVICE, "MainPID").await?,
                    invocation_id: id.iter().map(|byte| format!("{byte:02x}")).collect(),
                })
            }
            Course::Ending => Ok(UnitState::Ending),
            Course::None => Ok(UnitState::Absent),
        }
    }

    async fn end_at(&self, path: &OwnedObjectPath) -> Result<UnitEnd, UnitError> {
        let code: i32 = self.property(path, SERVICE, "ExecMainCode").await?;
        let status: i32 = self.property(path, SERVICE, "ExecMainStatus").await?;
        Ok(UnitEnd {
            // The values of waitid(2)'s si_code: 1 exited, 2 killed, 3 killed with a core dump.
            status: match code {
                1 => ProcessEnd::Exited(status),
                2 | 3 => ProcessEnd::Killed(status),
                _ => ProcessEnd::NotRun,
            },
            result: self.property(path, SERVICE, "Result").await?,
        })
    }

    /// Ask for what brings the unit one step nearer to being gone. Each can find that the unit went
    /// by itself meanwhile.
    async fn push_away(&self, unit: &str, state: &UnitState) -> Result<(), UnitError> {
        let asked = match state {
            UnitState::Absent | UnitState::Ending => return Ok(()),
            UnitState::Running { .. } => self.manager("StopUnit", unit, &(unit, "replace")).await,
            UnitState::Ended(_) => {
                // A failed unit is forgotten by the first call, one that exited well by the second.
                match self.manager("ResetFailedUnit", unit, &(unit,)).await {
                    Ok(_) => self.manager("StopUnit", unit, &(unit, "replace")).await,
                    Err(error) => Err(error),
                }
            }
        };
        match asked {
            Ok(_) => Ok(()),
            Err(error) if names(&error, &[NO_SUCH_UNIT, UNIT_NOT_LOADED]) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn start_once(&self, unit: &UnitSpec, stdin: &OwnedFd) -> Result<(), UnitError> {
        let name = unit_name(unit.vm_id);
        let stdin = stdin.try_clone().map_err(|cause| UnitError::Call {
            call: "StartTransientUnit",
            unit: name.clone(),
            cause: cause.into(),
        })?;
        let properties = properties(unit, &self.empty, stdin);
        let auxiliary: Vec<(String, Vec<Property>)> = Vec::new();
        let body = (name.as_str(), "fail", properties, auxiliary);
        match self.manager("StartTransientUnit", &name, &body).await {
            Ok(_) => Ok(()),
            Err(error) if names(&error, &[UNIT_EXISTS]) => Err(UnitError::Exists { unit: name }),
            Err(error) => Err(error),
        }
    }
}

/// A folder that every user may enter and only root may change, whatever this process's mask is.
fn ensure_open_to_all(path: &Path) -> io::Result<()> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        Ok(()) | Err(_) => {}
    }
    std::fs::set_permissions(path, Permissions::from_mode(0o755))
}

/// Where a unit stands, before anything is asked of its process.
#[derive(Debug, PartialEq, Eq)]
enum Course {
    None,
    UnderWay,
    Ending,
    Over,
}

fn course(active: &str, sub: &str, has_job: bool) -> Course {
    match (active, sub) {
        ("active", "exited") | ("failed", _) => Course::Over,
        ("active" | "activating" | "reloading", _) => Course::UnderWay,
        ("deactivating", _) => Course::Ending,
        // Its start is still in systemd's queue.
        _ if has_job => Course::UnderWay,
        _ => Course::None,
    }
}

impl VmmUnits for SystemdUnits {
    async fn start(&self, unit: &UnitSpec, stdin: OwnedFd) -> Result<(), UnitError> {
        self.start_once(unit, &stdin).await
    }

    async fn state(&self, vm_id: VmId) -> Result<UnitState, UnitError> {
        let Some(path) = self.object_of(&unit_name(vm_id)).await? else {
            return Ok(UnitState::Absent);
        };
        match self.state_at(&path).await {
            // It went between the two questions.
            Err(error) if names(&error, &[NO_SUCH_UNIT, UNKNOWN_OBJECT]) => Ok(UnitState::Absent),
            state => state,
        }
    }

    async fn ensure_gone(&self, vm_id: VmId) -> Result<(), UnitError> {
        let unit = unit_name(vm_id);
        let waited = Duration::from_secs(STOP_SECONDS.saturating_mul(2));
        let deadline = tokio::time::Instant::now() + waited;
        let mut changes = self.changes.subscribe();
        loop {
            if self.object_of(&unit).await?.is_none() {
                return Ok(());
            }
            let state = self.state(vm_id).await?;
            self.push_away(&unit, &state).await?;
            if tokio::time::Instant::now() >= deadline {
                return Err(UnitError::StillThere { unit, waited });
            }
            wait_for(&mut changes, vm_id).await;
        }
    }

    async fn list(&self) -> Result<Vec<ListedUnit>, UnitError> {
        type Listed = (
            String,
            String,
            String,
            String,
            String,
            String,
            OwnedObjectPath,
            u32,
            String,
            OwnedObjectPath,
        );
        let pattern = "berth-vm-*.service";
        let none: Vec<&str> = Vec::new();
        let reply = self
            .manager("ListUnitsByPatterns", pattern, &(none, vec![pattern]))
            .await?;
        let listed: Vec<Listed> = reply.body().deserialize().map_err(|_| UnitError::Reply {
            call: "ListUnitsByPatterns",
        })?;
        Ok(listed
            .into_iter()
            .map(|(unit, ..)| ListedUnit {
                vm_id: vm_of_unit(&unit),
                unit,
            })
            .collect())
    }

    fn changes(&self) -> broadcast::Receiver<VmId> {
        self.changes.subscribe()
    }

    async fn host_is_stopping(&self) -> Result<bool, UnitError> {
        let manager = OwnedObjectPath::try_from(MANAGER_PATH).map_err(|_| UnitError::Reply {
            call: "SystemState",
        })?;
        let state: String = self.property(&manager, MANAGER, "SystemState").await?;
        Ok(state == "stopping")
    }
}

/// Return at this VM's next change, or when it is time to look again anyway.
async fn wait_for(changes: &mut broadcast::Receiver<VmId>, vm_id: VmId) {
    let next = async {
        loop {
            match changes.recv().await {
                Ok(changed) if changed != vm_id => {}
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    };
    if tokio::time::timeout(LOOK_AGAIN, next).await.is_err() {
        tracing::debug!(VM_ID = %vm_id, "no word from systemd, looking again");
    }
}

fn changed_rule() -> zbus::Result<MatchRule<'static>> {
    MatchRule::builder()
        .msg_type(MessageType::Signal)
        .sender(DESTINATION)
        .interface(PROPERTIES)
        .member("PropertiesChanged")
        .path_namespace(UNITS_PATH)
        .add_arg(UNIT)
        .build()
}

fn removed_rule() -> zbus::Result<MatchRule<'static>> {
    MatchRule::builder()
        .msg_type(MessageType::Signal)
        .sender(DESTINATION)
        .interface(MANAGER)
        .member("UnitRemoved")
        .build()
}

async fn forward_changes(mut stream: MessageStream, changes: broadcast::Sender<VmId>) {
    use futures_core::Stream as _;
    use std::pin::Pin;
    while let Some(message) = std::future::poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)).await {
        let Some(vm_id) = message.ok().as_ref().and_then(vm_of_signal) else {
            continue;
        };
        // No receiver means that nobody waits for a unit.
        drop(changes.send(vm_id));
    }
}

/// The VM that a signal is about: by the unit's name where it is an argument, else by the object's
/// path, in which systemd writes every byte but letters and digits as `_xx`.
fn vm_of_signal(message: &Message) -> Option<VmId> {
    let header = message.header();
    if header.member()?.as_str() == "UnitRemoved" {
        let (unit, _path): (String, OwnedObjectPath) = message.body().deserialize().ok()?;
        return vm_of_unit(&unit);
    }
    let escaped = header.path()?.as_str().strip_prefix(UNITS_PATH)?;
    vm_of_unit(&unescape(escaped.strip_prefix('/')?))
}

fn unescape(escaped: &str) -> String {
    let mut plain = String::with_capacity(escaped.len());
    let mut rest = escaped;
    while let Some(at) = rest.find('_') {
        plain.push_str(&rest[..at]);
        let Some(byte) = rest
            .get(at + 1..at + 3)
            .and_then(|hex| u8::from_str_radix(hex, 16).ok())
        else {
            return plain;
        };
        plain.push(char::from(byte));
        rest = &rest[at + 3..];
    }
    plain.push_str(rest);
    plain
}

fn names(error: &UnitError, wanted: &[&str]) -> bool {
    if let UnitError::Call {
        cause: zbus::Error::MethodError(name, _, _),
        ..
    } = error
    {
        wanted.contains(&name.as_str())
    } else {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_whose_start_has_not_begun_is_not_taken_for_one_that_was_stopped() {
        for (active, sub, has_job, expected) in [
            ("inactive", "dead", true, Course::UnderWay),
            ("inactive", "dead", false, Course::None),
            ("activating", "start", true, Course::UnderWay),
            ("active", "running", false, Course::UnderWay),
            ("active", "exited", false, Course::Over),
            ("failed", "failed", false, Course::Over),
            ("deactivating", "stop-sigterm", true, Course::Ending),
        ] {
            let found = course(active, sub, has_job);
            assert_eq!(found, expected, "{active} {sub} {has_job}");
        }
    }

    #[test]
    fn an_object_path_is_read_as_systemd_writes_it() {
        assert_eq!(
            unescape("berth_2dvm_2d01abc_2eservice"),
            "berth-vm-01abc.service"
        );
        assert_eq!(unescape("broken_2"), "broken");
    }
}
