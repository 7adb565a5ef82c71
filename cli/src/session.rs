//! What a command that talks to a controller works with, and how it shows what came back.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::client::{Client, Reply};
use crate::failure::Failure;
use crate::screen::Screen;
use crate::table::Table;

/// One controller, one pair of output streams.
#[derive(Debug)]
pub(crate) struct Session {
    /// The controller.
    pub(crate) client: Client,
    /// The caller.
    pub(crate) screen: Screen,
}

impl Session {
    /// Show one object: for programs as the controller sent it, for people as `table`.
    pub(crate) fn show<T: DeserializeOwned>(
        &mut self,
        reply: &Reply,
        table: impl FnOnce(&T) -> Table,
    ) -> Result<(), Failure> {
        let object: T = reply.read()?;
        self.screen.show(&reply.value()?, || table(&object))
    }

    /// Show a list: for programs an array of what the controller sent, for people a table.
    pub(crate) fn show_list<T: DeserializeOwned>(
        &mut self,
        items: &[Value],
        table: impl FnOnce(&[T]) -> Table,
    ) -> Result<(), Failure> {
        let objects: Vec<T> = items
            .iter()
            .map(|item| serde_json::from_value(item.clone()))
            .collect::<Result<_, _>>()
            .map_err(|cause| Failure::Reply {
                request: "a list".to_owned(),
                cause,
            })?;
        self.screen.show(&items, || table(&objects))
    }
}
