//! The controller's database: the only crate with SQL.
//!
//! SQLite in WAL mode with `synchronous=FULL`, or PostgreSQL where several controllers share one
//! database. One thread writes; every change and the ledger entry that records it are one transaction,
//! or neither happens. Readers have their own connections.
//! It knows no HTTP and decides nothing: the rules are `berth-controller-core`'s.
#![forbid(unsafe_code)]

mod accounts;
mod check;
mod claims;
mod database;
mod error;
mod event_facts;
#[cfg(test)]
mod fixture;
mod gauges;
mod guest_tokens;
mod idempotency;
mod join_tokens;
mod ledger;
mod lifetime;
mod log;
mod log_check;
mod log_epoch;
mod log_tree;
mod node_logs;
mod node_policy;
mod nodes;
mod operations;
mod overdue;
mod passports;
mod persons;
mod placement;
mod projects;
mod quota;
mod readers;
mod receipts;
mod revocations;
mod rows;
mod schema;
mod seed_ejections;
mod seeds;
mod seen_changes;
mod slot_orders;
mod slot_sync;
mod slots;
mod sql;
mod store;
mod sync;
mod tasks;
mod tenants;
mod token_charges;
mod tokens;
mod vm_change;
mod vm_create;
mod vm_events;
mod vm_plan;
mod vms;
mod wal;
mod witnessed;
mod writer;

pub use accounts::{AccountChange, AccountDenied, AccountStanding, NewServiceAccount};
pub use check::Difference;
pub use database::Database;
pub use error::{OpenStoreError, StoreError};
pub use gauges::{Gauges, QuotaGauge};
pub use guest_tokens::GuestTokenDenied;
pub use idempotency::{IdempotencyKey, Remembered};
pub use join_tokens::{JoinTokenDenied, NewJoinToken};
pub use ledger::{Cause, EntryFilter, NewEvent, request_cause};
pub use lifetime::EndedVms;
pub use log::{LogError, LogFault, LogHead};
pub use node_policy::{ChangeNodeDenied, NodeChange};
pub use nodes::{EnrollDenied, NodeIdentity};
pub use operations::OperationFilter;
pub use passports::NoPassport;
pub use persons::{LinkPersonDenied, NewPerson, SignInDenied};
pub use projects::{NewProject, ProjectChange, ProjectDenied};
pub use quota::NewOverride;
pub use revocations::{RevokeDenied, Revoked};
pub use seeds::{GivenToken, SeedOrder};
pub use slot_orders::{ActOnSlotDenied, SlotWish};
pub use slots::SlotFilter;
pub use sql::{DatabaseUrlError, PostgresServer, SqlError};
pub use store::{Db, Keys, Store};
pub use sync::{SyncAccepted, SyncDenied};
pub use tasks::VmTarget;
pub use tenants::{
    CreateTenantDenied, DeleteTenantDenied, NewTenant, TenantChange, TenantProfile, TenantStanding,
    Tier,
};
pub use tokens::{DerivedToken, NewTokenRecord, RecordTokenDenied, TokenUse};
pub use vm_change::{ChangeVmDenied, VmChange};
pub use vm_create::{CreateVmDenied, CreatedVm};
pub use vm_events::{ActOnVmDenied, VmWish};
pub use vm_plan::PlannedVm;
pub use vms::VmRef;
pub use wal::WAL_THREAD;
pub use writer::{WRITER_THREAD, WriteTx};
