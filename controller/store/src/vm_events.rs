//! Carrying out what `berth_controller_core::vm::transition` decides, in the running transaction.

use berth_api::agent::StopMode;
use berth_api::ids::{NodeId, OperationId, TenantId, VmId};
use berth_api::rest::{Operation, StateReason, Vm, VmState};
use berth_controller_core::deadline::deadline_s;
use berth_controller_core::quota::{QuotaDenied, Resource};
use berth_controller_core::stop::StopOrder;
use berth_controller_core::vm::{Denied, Effect, Event, Record, TaskKind, transition};
use serde_json::json;

use crate::error::StoreError;
use crate::ledger::{Cause, NewEvent};
use crate::rows::{rfc3339, state_text};
use crate::tenants::object;
use crate::vms::{StoredVm, VmRef};
use crate::writer::WriteTx;

/// What a tenant wants of an existing VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmWish {
    /// That it runs.
    Start,
    /// That it stops in this way.
    Stop(StopOrder),
    /// That it is gone.
    Delete,
}

impl VmWish {
    fn event(self) -> Event {
        match self {
            Self::Start => Event::Start,
            Self::Stop(order) => match order.mode() {
                StopMode::Graceful => Event::Stop,
                StopMode::Hard => Event::StopHard,
            },
            Self::Delete => Event::Delete,
        }
    }

    fn stop_order(self) -> StopOrder {
        match self {
            Self::Stop(order) => order,
            Self::Start | Self::Delete => StopOrder::default(),
        }
    }
}

/// An event, and what is known of it beyond its name.
struct Happening {
    event: Event,
    reason: Option<StateReason>,
    /// How to stop the VM, where the event leads to that.
    stop: StopOrder,
}

/// An operation that ends by what happened.
struct EndedWork {
    operation: OperationId,
    took_ms: u64,
}

/// Why a wish was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ActOnVmDenied {
    /// There is no such VM in this namespace.
    #[error("there is no such VM")]
    NotFound,
    /// Not possible in its state.
    #[error(transparent)]
    State(#[from] Denied),
    /// Not possible while this operation is under way.
    #[error("operation {operation} works on the VM")]
    InProgress {
        /// The operation that has to end first.
        operation: OperationId,
        /// What its state allows.
        denied: Denied,
    },
    /// An operator suspended the tenant.
    #[error("the tenant is suspended")]
    Suspended,
    /// The tenant may not start VMs.
    #[error("the tenant may not start VMs")]
    NotAllowed,
    /// A start would go over a ceiling.
    #[error(transparent)]
    Quota(#[from] QuotaDenied),
}

impl WriteTx<'_> {
    /// Take a wish about a VM of this tenant; the VM and the operation that works on it.
    pub fn act_on_vm(
        &mut self,
        tenant: &TenantId,
        vm: &VmRef,
        wish: VmWish,
        cause: &Cause,
    ) -> Result<Result<(Vm, Operation), ActOnVmDenied>, StoreError> {
        let found = self
            .find_vm(Some(tenant), vm)?
            .filter(|(row, _)| row.vm.state != VmState::Deleted);
        let Some((mut row, _)) = found else {
            return Ok(Err(ActOnVmDenied::NotFound));
        };
        let again = self.is_under_way(&row.vm, wish)?;
        let wished = Happening {
            event: wish.event(),
            reason: None,
            stop: wish.stop_order(),
        };
        if wish == VmWish::Start
            && let Err(denied) = self.permit_start(&row.vm, cause)?
        {
            return Ok(Err(denied));
        }
        if !again && let Err(denied) = self.apply(&mut row, &wished, cause)? {
            return self.denied_now(&row.vm, denied).map(Err);
        }
        let vm = row.vm;
        let operation = match vm.operation {
            None => None,
            Some(id) => self.operation(Some(tenant), id)?,
        };
        let operation = operation.ok_or(StoreError::Corrupt {
            what: "VM's operation",
        })?;
        Ok(Ok((vm, operation)))
    }

    /// A start is charged like a creation. What is refused for its charge is in the ledger.
    fn permit_start(
        &mut self,
        vm: &Vm,
        cause: &Cause,
    ) -> Result<Result<(), ActOnVmDenied>, StoreError> {
        let Some(standing) = self.tenant_standing(&vm.tenant_id)? else {
            return Ok(Err(ActOnVmDenied::NotFound));
        };
        if standing.is_suspended {
            return Ok(Err(ActOnVmDenied::Suspended));
        }
        if !standing.allows("vm.start") {
            return Ok(Err(ActOnVmDenied::NotAllowed));
        }
        if let Err(denied) = transition(vm.state, Event::Start) {
            return self.denied_now(vm, denied).map(Err);
        }
        let Err(denied) = self.charge_start(vm, cause)? else {
            return Ok(Ok(()));
        };
        self.append(
            NewEvent {
                event_type: "VM_START_DENIED",
                tenant_id: Some(vm.tenant_id.clone()),
                vm_id: Some(vm.id),
                node_id: vm.node_id,
                outcome: "denied",
                code: Some("quota_exceeded".to_owned()),
                detail: object(json!({ "quota": denied.to_detail() })),
                ..NewEvent::default()
            },
            cause,
        )?;
        Ok(Err(denied.into()))
    }

    /// Charge for what runs from here on, if its guest can be given what it is to be given.
    fn charge_start(
        &mut self,
        vm: &Vm,
        cause: &Cause,
    ) -> Result<Result<(), QuotaDenied>, StoreError> {
        if vm.guest_token {
            // The run before is over, and so is its token, whose place the next one takes.
            self.end_guest_tokens(&vm.tenant_id, vm.id)?;
            if let Err(denied) = self.would_admit_token(&vm.tenant_id)? {
                return Ok(Err(denied));
            }
        }
        self.charge_as_running(vm, cause)
    }

    /// Why a wish is not taken: its state, or the operation that will end it. After a deletion there
    /// is nothing to wait for.
    fn denied_now(&self, vm: &Vm, denied: Denied) -> Result<ActOnVmDenied, StoreError> {
        let at_work = match vm.operation {
            Some(id) if denied.state != VmState::Deleting => {
                self.operation(Some(&vm.tenant_id), id)?
            }
            Some(_) | None => None,
        };
        Ok(match at_work {
            Some(operation) if operation.state == "running" => ActOnVmDenied::InProgress {
                operation: operation.id,
                denied,
            },
            Some(_) | None => denied.into(),
        })
    }

    /// Whether the same order is unanswered: a repeat is the same operation.
    fn is_under_way(&self, vm: &Vm, wish: VmWish) -> Result<bool, StoreError> {
        match (wish.event(), vm.state) {
            (Event::Delete, VmState::Deleting) => {
                self.has_pending_task(vm.id, Some(TaskKind::Delete))
            }
            (Event::StopHard, VmState::Stopping) => {
                Ok(self.unanswered_stop(vm.id)? == Some(StopMode::Hard))
            }
            (_, _) => Ok(false),
        }
    }

    /// Let an event happen to a VM that is no tenant's wish: store its next state, then carry out
    /// the effects in order.
    pub(crate) fn apply_event(
        &mut self,
        vm_id: VmId,
        event: Event,
        reason: Option<StateReason>,
        cause: &Cause,
    ) -> Result<Result<(), Denied>, StoreError> {
        let happening = Happening {
            event,
            reason,
            stop: StopOrder::default(),
        };
        let mut stored = self
            .stored_vm(vm_id)?
            .ok_or(StoreError::Corrupt { what: "VM" })?;
        self.apply(&mut stored, &happening, cause)
    }

    /// A node was found for a VM that waits for one: promise it the room there, and order its making.
    pub(crate) fn place_on(
        &mut self,
        stored: &mut StoredVm,
        node: NodeId,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE vm SET node_id = ?2 WHERE vm_id = ?1")?
            .send((stored.vm.id.to_string(), node.to_string()))?;
        stored.vm.node_id = Some(node);
        self.take_room(node, &stored.vm)?;
        let placed = Happening {
            event: Event::Placed,
            reason: None,
            stop: StopOrder::default(),
        };
        self.apply(stored, &placed, &Cause::controller())?
            .map_err(|_| StoreError::Corrupt { what: "pending VM" })
    }

    /// See [`WriteTx::apply_event`]. `stored` is what the database has, before and after.
    fn apply(
        &mut self,
        stored: &mut StoredVm,
        happening: &Happening,
        cause: &Cause,
    ) -> Result<Result<(), Denied>, StoreError> {
        let event = happening.event;
        let vm_id = stored.vm.id;
        let old = stored.vm.state;
        let (next, effects) = match transition(old, event) {
            Ok(step) => step,
            Err(denied) => return Ok(Err(denied)),
        };
        if next != old {
            self.store_state(stored, next, happening)?;
        } else if event == Event::StopHard {
            self.set_deadline(stored, happening)?;
        }
        let work = self.work_that_ends(vm_id, effects)?;
        for effect in effects {
            self.carry_out(stored, *effect, happening, work.as_ref(), cause)?;
        }
        // Gone without any node's help: the operation is over as it begins.
        if event == Event::Delete && next == VmState::Deleted {
            self.begin_operation(stored, TaskKind::Delete, "done")?;
            self.end_operation(vm_id, None)?;
        }
        debug_assert_eq!(self.stored_vm(vm_id)?.as_ref(), Some(&*stored));
        if next == VmState::Stopped && old != next && stored.vm.auto_delete_on_stop {
            let reason = StateReason {
                code: "deleted_on_stop".to_owned(),
                message: "it has stopped, and was to be deleted then".to_owned(),
            };
            return self.end_by_itself(stored, reason).map(Ok);
        }
        Ok(Ok(()))
    }

    /// Order the deletion of a VM for a reason of its own.
    pub(crate) fn end_by_itself(
        &mut self,
        stored: &mut StoredVm,
        reason: StateReason,
    ) -> Result<(), StoreError> {
        let deletion = Happening {
            event: Event::Delete,
            reason: Some(reason),
            stop: StopOrder::default(),
        };
        self.apply(stored, &deletion, &Cause::controller())?
            .map_err(|_| StoreError::Corrupt {
                what: "VM that is to end",
            })
    }

    /// The operation that these effects end, and how long it took until now.
    fn work_that_ends(
        &self,
        vm_id: VmId,
        effects: &[Effect],
    ) -> Result<Option<EndedWork>, StoreError> {
        let ends =
            |effect: &Effect| matches!(effect, Effect::FinishOperation | Effect::FailOperation);
        if !effects.iter().any(ends) {
            return Ok(None);
        }
        Ok(self.running_operation(vm_id)?.map(|(operation, since)| {
            let took_ms = u64::try_from(self.now.saturating_sub(since)).unwrap_or(0);
            EndedWork { operation, took_ms }
        }))
    }

    fn store_state(
        &mut self,
        stored: &mut StoredVm,
        next: VmState,
        happening: &Happening,
    ) -> Result<(), StoreError> {
        let deadline = self.deadline(next, happening);
        let reason = happening.reason.as_ref();
        let desired = desired_after(happening.event).unwrap_or(stored.vm.desired_state);
        self.conn
            .prepare_cached(
                "UPDATE vm SET state = ?2, reason_code = ?3, reason_message = ?4, state_since = ?5,
                 desired_state = ?6, state_deadline = ?7, is_overdue_told = 0 WHERE vm_id = ?1",
            )?
            .send((
                stored.vm.id.to_string(),
                state_text(next),
                reason.map(|reason| &reason.code),
                reason.map(|reason| &reason.message),
                self.now,
                state_text(desired),
                deadline,
            ))?;
        stored.vm.state = next;
        stored.vm.state_reason = happening.reason.clone();
        stored.vm.state_since = rfc3339(self.now);
        stored.vm.desired_state = desired;
        stored.vm.state_deadline = deadline.map(rfc3339);
        stored.vm.overdue = false;
        if next == VmState::Deleted {
            self.forget_user_data(&stored.vm)?;
        }
        self.show_phase(stored.vm.id, state_text(next))
    }

    /// A hard stop waits for nothing that the stop before it waited for.
    fn set_deadline(
        &mut self,
        stored: &mut StoredVm,
        happening: &Happening,
    ) -> Result<(), StoreError> {
        let deadline = self.deadline(stored.vm.state, happening);
        self.conn
            .prepare_cached(
                "UPDATE vm SET state_deadline = ?2, is_overdue_told = 0 WHERE vm_id = ?1",
            )?
            .send((stored.vm.id.to_string(), deadline))?;
        stored.vm.state_deadline = deadline.map(rfc3339);
        stored.vm.overdue = false;
        Ok(())
    }

    fn deadline(&self, state: VmState, happening: &Happening) -> Option<i64> {
        let guest_s = match happening.stop.mode() {
            StopMode::Graceful => happening.stop.timeout_s(),
            StopMode::Hard => 0,
        };
        due_ms(self.now, state, guest_s)
    }

    fn carry_out(
        &mut self,
        stored: &mut StoredVm,
        effect: Effect,
        happening: &Happening,
        work: Option<&EndedWork>,
        cause: &Cause,
    ) -> Result<(), StoreError> {
        let vm_id = stored.vm.id;
        match effect {
            Effect::Record(record) => self.record(stored, record, happening, work, cause),
            Effect::WithdrawTasks => self.withdraw_tasks(vm_id, happening.event),
            Effect::SignTask(kind) => {
                if self.has_pending_task(vm_id, Some(kind))? {
                    return Ok(());
                }
                if order_for(happening.event) == Some(kind) {
                    self.begin_operation(stored, kind, "scheduled")?;
                }
                self.begin_generation(stored)?;
                self.sign_task(stored, kind, happening.stop, cause)
            }
            Effect::FinishOperation => self.end_operation(vm_id, None),
            Effect::FailOperation => {
                let unnamed = StateReason {
                    code: "failed".to_owned(),
                    message: "the node could not do it".to_owned(),
                };
                let reason = happening.reason.as_ref().unwrap_or(&unnamed);
                self.end_operation(vm_id, Some(reason))
            }
            Effect::ReleaseCharges => self.release_charges(stored),
            Effect::ChargeRunning => self.charge_what_runs(&stored.vm),
            Effect::ReleaseRunning => {
                self.end_charges(&stored.vm.tenant_id, vm_id, Some(&Resource::OF_RUNNING))
            }
        }
    }

    fn record(
        &mut self,
        stored: &mut StoredVm,
        record: Record,
        happening: &Happening,
        work: Option<&EndedWork>,
        cause: &Cause,
    ) -> Result<(), StoreError> {
        let reason = happening.reason.as_ref();
        let mut detail = object(json!({
            "name": stored.vm.name,
            "reason": reason.map(|reason| &reason.message),
        }));
        if record == Record::StopAccepted {
            detail.append(&mut stop_detail(happening.stop));
        }
        if let Some(work) = work {
            detail.insert("operation_id".to_owned(), json!(work.operation));
        }
        let index = self.append(
            NewEvent {
                event_type: record.event_type(),
                tenant_id: Some(stored.vm.tenant_id.clone()),
                vm_id: Some(stored.vm.id),
                node_id: stored.vm.node_id,
                outcome: record.outcome(),
                code: reason.map(|reason| reason.code.clone()),
                duration_ms: work.map(|work| work.took_ms),
                detail,
                ..NewEvent::default()
            },
            cause,
        )?;
        if record.outcome() == "accepted" {
            self.conn
                .prepare_cached("UPDATE vm SET audit_index = ?2 WHERE vm_id = ?1")?
                .send((stored.vm.id.to_string(), index))?;
            stored.audit_index = index;
        }
        Ok(())
    }

    fn withdraw_tasks(&mut self, vm_id: VmId, event: Event) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "UPDATE task SET state = 'withdrawn' WHERE vm_id = ?1 AND state = 'pending'",
            )?
            .send([vm_id.to_string()])?;
        let message = if event == Event::StopHard {
            "the VM is being stopped hard"
        } else {
            "the VM is being deleted"
        };
        let overtaken = StateReason {
            code: "overtaken".to_owned(),
            message: message.to_owned(),
        };
        self.end_operation(vm_id, Some(&overtaken))
    }

    fn release_charges(&mut self, stored: &StoredVm) -> Result<(), StoreError> {
        self.end_charges(&stored.vm.tenant_id, stored.vm.id, None)?;
        self.release_slot_charges(stored.vm.id)?;
        self.release_room(stored.vm.node_id, &stored.vm)
    }

    /// Promise a VM the room that it was chosen a node for.
    pub(crate) fn take_room(&mut self, node: NodeId, vm: &Vm) -> Result<(), StoreError> {
        let taken = self
            .conn
            .prepare_cached(
                "UPDATE node SET vms = vms + 1, vcpus_used = vcpus_used + ?2,
                 memory_used_mib = memory_used_mib + ?3
                 WHERE node_id = ?1 AND cordoned_at IS NULL AND memory_used_mib + ?3 <= memory_mib",
            )?
            .execute((node.to_string(), vm.vcpus, vm.memory_mb))?;
        if taken == 0 {
            return Err(StoreError::Corrupt {
                what: "node that was chosen",
            });
        }
        Ok(())
    }

    fn release_room(&mut self, node: Option<NodeId>, vm: &Vm) -> Result<(), StoreError> {
        if let Some(node) = node {
            self.conn
                .prepare_cached(
                    "UPDATE node SET vms = vms - 1, vcpus_used = vcpus_used - ?2,
                     memory_used_mib = memory_used_mib - ?3 WHERE node_id = ?1",
                )?
                .send((node.to_string(), vm.vcpus, vm.memory_mb))?;
        }
        Ok(())
    }
}

/// When a VM that enters a state now is overdue there, in milliseconds since the epoch.
pub(crate) fn due_ms(now: i64, state: VmState, stop_timeout_s: u32) -> Option<i64> {
    let seconds = deadline_s(state, stop_timeout_s)?;
    Some(now.saturating_add(i64::from(seconds).saturating_mul(1000)))
}

/// A hard stop waits for nothing, so its time says nothing.
fn stop_detail(order: StopOrder) -> serde_json::Map<String, serde_json::Value> {
    object(match order.mode() {
        StopMode::Graceful => json!({ "mode": order.mode(), "timeout_s": order.timeout_s() }),
        StopMode::Hard => json!({ "mode": order.mode() }),
    })
}

/// The order that fulfils a tenant's wish; `None` for an event that is no wish.
fn order_for(event: Event) -> Option<TaskKind> {
    match event {
        Event::Start => Some(TaskKind::Start),
        Event::Stop | Event::StopHard => Some(TaskKind::Stop),
        Event::Delete => Some(TaskKind::Delete),
        Event::Placed
        | Event::Changing
        | Event::Running
        | Event::GuestShutdown
        | Event::StopDone
        | Event::HostRebooted
        | Event::Broke
        | Event::Missing
        | Event::LaunchFailed
        | Event::StopFailed
        | Event::DeleteFailed
        | Event::DeleteDone => None,
    }
}

/// What the VM should do from here on, where the event says so.
fn desired_after(event: Event) -> Option<VmState> {
    match event {
        Event::Start => Some(VmState::Running),
        Event::Stop | Event::StopHard | Event::GuestShutdown => Some(VmState::Stopped),
        Event::Delete => Some(VmState::Deleted),
        Event::Placed
        | Event::Changing
        | Event::Running
        | Event::StopDone
        | Event::HostRebooted
        | Event::Broke
        | Event::Missing
        | Event::LaunchFailed
        | Event::StopFailed
        | Event::DeleteFailed
        | Event::DeleteDone => None,
    }
}
