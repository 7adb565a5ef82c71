//! Walking over the ledger's entries in order, page by page.

use berth_api::rest::{AuditEntry, AuditHead, Page};

use crate::client::{Client, PAGE, Path};
use crate::failure::Failure;
use crate::ledger::filter::{Filters, Key, Since};

/// The ledger's head as the controller shows it.
pub(crate) fn head(client: &Client) -> Result<AuditHead, Failure> {
    client.get(Path::of(&["v1", "audit", "head"]))?.read()
}

/// Reads entries from an index on; the controller selects what it can of the filters.
#[derive(Debug)]
pub(crate) struct Pages<'a> {
    client: &'a Client,
    path: Path,
    next: u64,
    page_size: u32,
}

impl<'a> Pages<'a> {
    /// All that match from `since` on, `page_size` (1 to 1000) at a time.
    #[must_use]
    pub(crate) fn new(
        client: &'a Client,
        filters: &Filters,
        since: &Since,
        page_size: u32,
    ) -> Self {
        let path = Path::of(&["v1", "audit", "entries"])
            .with("tenant_id", filters.value_of(Key::TenantId))
            .with("event_type", filters.value_of(Key::EventType))
            .with("vm_id", filters.value_of(Key::VmId))
            .with("node_id", filters.value_of(Key::NodeId))
            .with("slot_id", filters.value_of(Key::SlotId))
            .with("outcome", filters.value_of(Key::Outcome))
            .with("token_id", filters.value_of(Key::TokenId))
            .with("since", since.time());
        Self {
            client,
            path,
            next: since.index(),
            page_size: page_size.clamp(1, PAGE),
        }
    }

    /// The next page; empty at the end of the ledger.
    pub(crate) fn next_page(&mut self) -> Result<Vec<AuditEntry>, Failure> {
        let path = self
            .path
            .clone()
            .with("since_index", Some(self.next))
            .with("limit", Some(self.page_size));
        let page: Page<AuditEntry> = self.client.get(path)?.read()?;
        // Entries before the index asked for would make us read in circles.
        let entries: Vec<AuditEntry> = page
            .items
            .into_iter()
            .filter(|entry| entry.index >= self.next)
            .collect();
        if let Some(last) = entries.iter().map(|entry| entry.index).max() {
            self.next = last.saturating_add(1);
        }
        Ok(entries)
    }
}
