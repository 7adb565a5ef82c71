//! The real `berth-controller`, over real HTTP, with simulated agents for hosts.
//!
//! Every test starts its own controller in a temporary directory on a free port. Needs the binary:
//! `cargo build -p berth-controller`.
#![forbid(unsafe_code)]

#[cfg(test)]
mod database;
#[cfg(test)]
mod harness;
#[cfg(test)]
mod holders;

#[cfg(test)]
mod accounts;
#[cfg(test)]
mod codes;
#[cfg(test)]
mod conformance;
#[cfg(test)]
mod conventions;
#[cfg(test)]
mod cosigned;
#[cfg(test)]
mod crashes;
#[cfg(test)]
mod database_tls;
#[cfg(test)]
mod deadlines;
#[cfg(test)]
mod defects;
#[cfg(test)]
mod executions;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod guests;
#[cfg(test)]
mod isolation;
#[cfg(test)]
mod ledger_keys;
#[cfg(test)]
mod life_of_a_vm;
#[cfg(test)]
mod lifetimes;
#[cfg(test)]
mod lost_commits;
#[cfg(test)]
mod matrix;
#[cfg(test)]
mod monitoring;
#[cfg(test)]
mod nodes;
#[cfg(test)]
mod own_nodes;
#[cfg(test)]
mod passports;
#[cfg(test)]
mod persons;
#[cfg(test)]
mod placement;
#[cfg(test)]
mod quota;
#[cfg(test)]
mod rates;
#[cfg(test)]
mod real_agent;
#[cfg(test)]
mod refusals;
#[cfg(test)]
mod repeats;
#[cfg(test)]
mod routes;
#[cfg(test)]
mod seed_001;
#[cfg(test)]
mod seeds;
#[cfg(test)]
mod sessions;
#[cfg(test)]
mod single_tenant;
#[cfg(test)]
mod sizes;
#[cfg(test)]
mod slot_reports;
#[cfg(test)]
mod slots;
#[cfg(test)]
mod stops;
#[cfg(test)]
mod system_calls;
#[cfg(test)]
mod tenants;
#[cfg(test)]
mod tls;
#[cfg(test)]
mod token_attacks;
#[cfg(test)]
mod token_chains;
#[cfg(test)]
mod tokens;
#[cfg(test)]
mod witnesses;
