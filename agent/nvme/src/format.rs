//! Wiping by Format NVM with an erase (NVMe Base 2.0, 5.14).
//!
//! A format that was interrupted is not done, and nothing tells how far it came: it begins anew.

use berth_api::slot::WipeMethod;

use crate::blocks::{format_command, target};
use crate::command::ALL_NAMESPACES;
use crate::drive::{Lane, Metadata, Transfer, Wait};
use crate::error::DriveError;
use crate::identify::Look;
use crate::identify::namespace::Namespace;
use crate::marks::Marks;
use crate::plan::{self, FormatScope};
use crate::restore;
use crate::sample;
use crate::wipe::{Evidence, Run};
use crate::wipe_error::WipeError;

/// Percent of the whole wipe that are the format's.
const SHARE: u8 = 90;

/// Format what there is, and check that it was done.
pub(crate) fn run(
    run: &mut Run<'_, '_>,
    method: WipeMethod,
    secure: u8,
    scope: FormatScope,
) -> Result<(), WipeError> {
    run.note(method, Marks::Prepared)?;
    let look = restore::ensure(run.drive, run.approved.as_ref(), &mut run.restored)?;
    let before = sample::take(run, &look)?;
    run.evidence = Evidence {
        before,
        ..Evidence::default()
    };
    run.note(method, Marks::Erasing)?;
    let ids: Vec<_> = look.active.iter().map(|found| found.id).collect();
    let targets = scope.targets(&ids);
    let count = u64::try_from(targets.len()).unwrap_or(u64::MAX);
    for (index, nsid) in (0..).zip(targets) {
        let first = look
            .active
            .iter()
            .find(|found| found.id == nsid || nsid == ALL_NAMESPACES);
        let Some(namespace) = first else {
            continue;
        };
        format(run, nsid, namespace, secure)?;
        let percent = plan::percent(index + 1, count, 0, SHARE);
        run.progress(percent, None);
    }
    check(run, &look)
}

fn format(
    run: &mut Run<'_, '_>,
    nsid: u32,
    namespace: &Namespace,
    secure: u8,
) -> Result<(), WipeError> {
    let command = format_command(nsid, namespace.format, &namespace.shape, secure);
    let journal = &*run.journal;
    let wait = Wait {
        limit: plan::limit(run.policy, None),
        go_on: &mut |_| !journal.is_cancelled(),
    };
    let (none, beside) = (Transfer::None, Metadata::None);
    let result = match run
        .drive
        .run_watched(Lane::Admin, &command, none, beside, wait)
    {
        Ok(result) => result,
        Err(DriveError::Abandoned { .. }) => return Err(WipeError::Cancelled),
        Err(DriveError::TimedOut { limit, .. }) => {
            let seconds = limit.as_secs();
            return Err(WipeError::TooLong { seconds });
        }
        Err(error) => return Err(error.into()),
    };
    let cdw10 = command.words.first().copied().unwrap_or(0);
    run.complete(
        &format!("format of {}", target(nsid)),
        format!("cdw10 {cdw10:#010x}, status 0, dw0 {result:#x}"),
    );
    Ok(())
}

/// Every namespace has its format, and none says that something is left to do.
fn check(run: &mut Run<'_, '_>, before: &Look) -> Result<(), WipeError> {
    let after = Look::at(run.drive)?;
    for namespace in &after.active {
        if let Some(left) = namespace.format_left.filter(|left| *left > 0) {
            let target = target(namespace.id);
            return Err(WipeError::FormatNotDone { target, left });
        }
    }
    if after.layout() != before.layout() {
        return Err(WipeError::LayoutNotRestored {
            wanted: before.layout().to_string(),
            found: after.layout().to_string(),
        });
    }
    Ok(())
}
