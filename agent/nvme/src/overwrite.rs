//! Wiping by writing every block: one pass of a stream that no drive can store in less room, then every
//! block read and compared with it. One pass, as more make nothing surer on flash; what a drive keeps
//! out of reach is out of reach of any number of passes.

use std::time::Duration;

use berth_api::slot::{ReadBack, WipeMethod};

use crate::blocks;
use crate::identify::Look;
use crate::identify::namespace::Namespace;
use crate::marks::Marks;
use crate::plan;
use crate::read_back::Reader;
use crate::restore;
use crate::sample::{Place, canary, stride};
use crate::wipe::Run;
use crate::wipe_error::WipeError;

/// What is done to all blocks, one transfer at a time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Write,
    Compare,
}

/// Limits and progress of a pass over everything.
struct Clock {
    started: Duration,
    limit: Duration,
    done: u64,
    whole: u64,
}

/// Write everything, then read everything.
pub(crate) fn run(run: &mut Run<'_, '_>, method: WipeMethod) -> Result<ReadBack, WipeError> {
    run.note(method, Marks::Prepared)?;
    let look = restore::ensure(run.drive, run.approved.as_ref(), &mut run.restored)?;
    run.note(method, Marks::Erasing)?;
    let blocks = look.active.iter().map(|found| found.shape.blocks);
    let bytes = look.active.iter().filter_map(|found| found.shape.bytes());
    let estimate = plan::overwrite_estimate(bytes.fold(0, u64::saturating_add));
    let mut clock = Clock {
        started: run.drive.now(),
        limit: plan::limit(run.policy, Some(estimate)),
        done: 0,
        whole: blocks.fold(0, u64::saturating_add).saturating_mul(2),
    };
    let mut reader = Reader::new(&look.layout());
    for pass in [Pass::Write, Pass::Compare] {
        for namespace in &look.active {
            go_over(run, namespace, pass, &mut clock, &mut reader)?;
        }
        if pass == Pass::Write {
            settle(run, &look)?;
        }
    }
    if let Some(first) = reader.first_wrong {
        return Err(WipeError::WritesNotKept {
            blocks: reader.blocks_wrong,
            first: first.to_string(),
        });
    }
    run.complete(
        "blocks written and compared",
        reader.blocks_read.to_string(),
    );
    let expected = format!("the stream of key {:016x} that was written", run.seed);
    Ok(reader.finish("every block".to_owned(), expected))
}

/// Put what was written onto the media, past the drive's cache.
fn settle(run: &mut Run<'_, '_>, look: &Look) -> Result<(), WipeError> {
    for namespace in &look.active {
        blocks::flush(run.drive, namespace.id)?;
    }
    Ok(run.drive.reset()?)
}

fn go_over(
    run: &mut Run<'_, '_>,
    namespace: &Namespace,
    pass: Pass,
    clock: &mut Clock,
    reader: &mut Reader,
) -> Result<(), WipeError> {
    let most = u64::from(blocks::most_blocks(run.drive, &namespace.shape)?);
    let bytes = stride(namespace);
    let mut lba = 0;
    while lba < namespace.shape.blocks {
        let count = (namespace.shape.blocks - lba).min(most);
        let ours: Vec<u8> = (lba..lba + count)
            .flat_map(|lba| canary(run.seed, place(namespace, lba), bytes))
            .collect();
        match pass {
            Pass::Write => blocks::write(run.drive, namespace, lba, &ours)?,
            Pass::Compare => {
                let count = u16::try_from(count).unwrap_or(u16::MAX);
                let found = blocks::read(run.drive, namespace, lba, count)?;
                let both = found.chunks(bytes).zip(ours.chunks(bytes));
                for (lba, (found, ours)) in (lba..).zip(both) {
                    reader.add(place(namespace, lba), found, found != ours);
                }
            }
        }
        lba += count;
        clock.tick(run, count)?;
    }
    Ok(())
}

fn place(namespace: &Namespace, lba: u64) -> Place {
    Place {
        nsid: namespace.id,
        lba,
    }
}

impl Clock {
    fn tick(&mut self, run: &mut Run<'_, '_>, blocks: u64) -> Result<(), WipeError> {
        self.done = self.done.saturating_add(blocks);
        let passed = run.drive.now().saturating_sub(self.started);
        let percent = plan::percent(self.done, self.whole, 0, 99);
        run.progress(percent, None);
        if passed >= self.limit {
            let seconds = self.limit.as_secs();
            return Err(WipeError::TooLong { seconds });
        }
        run.check_cancelled()
    }
}
