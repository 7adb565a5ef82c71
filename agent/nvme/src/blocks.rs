//! Reading and writing blocks of one namespace, each as its data followed by its metadata, wherever the
//! drive keeps that.

use crate::command::{ALL_NAMESPACES, Command, admin, nvm};
use crate::drive::{Drive, Lane, Metadata, SHORT, Transfer};
use crate::error::DriveError;
use crate::identify::layout::Shape;
use crate::identify::namespace::Namespace;
use crate::transport::PAGE_BYTES;

/// Sizes of what a transfer of some blocks moves.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    data: usize,
    metadata: usize,
}

fn sizes(shape: &Shape) -> Result<Sizes, DriveError> {
    let number = |value: u32| {
        usize::try_from(value).map_err(|_| DriveError::Unsupported {
            found: "blocks longer than memory",
        })
    };
    let metadata = number(shape.metadata_bytes.into())?;
    let data = number(shape.block_bytes)?;
    Ok(if shape.is_extended {
        Sizes {
            data: data + metadata,
            metadata: 0,
        }
    } else {
        Sizes { data, metadata }
    })
}

/// How many blocks of this shape one command can move, at least one.
pub(crate) fn most_blocks(drive: &Drive<'_>, shape: &Shape) -> Result<u16, DriveError> {
    let sizes = sizes(shape)?;
    let by_data = drive.max_transfer() / sizes.data;
    let by_metadata = PAGE_BYTES.checked_div(sizes.metadata).unwrap_or(by_data);
    match u16::try_from(by_data.min(by_metadata)) {
        Ok(0) => Err(DriveError::Unsupported {
            found: "blocks longer than what one command may move",
        }),
        Ok(blocks) => Ok(blocks),
        Err(_) => Ok(u16::MAX),
    }
}

/// Read `blocks`, no more than [`most_blocks`].
pub(crate) fn read(
    drive: &mut Drive<'_>,
    namespace: &Namespace,
    lba: u64,
    blocks: u16,
) -> Result<Vec<u8>, DriveError> {
    let sizes = sizes(&namespace.shape)?;
    let count = usize::from(blocks);
    let mut data = vec![0; sizes.data * count];
    let mut beside = vec![0; sizes.metadata * count];
    let metadata = match sizes.metadata {
        0 => Metadata::None,
        _ => Metadata::In(&mut beside),
    };
    let command = Command::blocks(nvm::READ, namespace.id, lba, blocks);
    drive.run(Lane::Io, &command, Transfer::In(&mut data), metadata, SHORT)?;
    if sizes.metadata == 0 {
        return Ok(data);
    }
    let both = data
        .chunks(sizes.data)
        .zip(beside.chunks(sizes.metadata))
        .flat_map(|(data, metadata)| [data, metadata])
        .flatten();
    Ok(both.copied().collect())
}

/// Write whole blocks, no more than [`most_blocks`], from `lba` on.
pub(crate) fn write(
    drive: &mut Drive<'_>,
    namespace: &Namespace,
    lba: u64,
    bytes: &[u8],
) -> Result<(), DriveError> {
    let sizes = sizes(&namespace.shape)?;
    let stride = sizes.data + sizes.metadata;
    let blocks = u16::try_from(bytes.len() / stride).unwrap_or(u16::MAX);
    let command = Command::blocks(nvm::WRITE, namespace.id, lba, blocks);
    if sizes.metadata == 0 {
        let transfer = Transfer::Out(bytes);
        drive.run(Lane::Io, &command, transfer, Metadata::None, SHORT)?;
        return Ok(());
    }
    let (mut data, mut beside) = (Vec::new(), Vec::new());
    for block in bytes.chunks_exact(stride) {
        let (front, back) = block.split_at(sizes.data);
        data.extend_from_slice(front);
        beside.extend_from_slice(back);
    }
    let (data, beside) = (Transfer::Out(&data), Metadata::Out(&beside));
    drive.run(Lane::Io, &command, data, beside, SHORT)?;
    Ok(())
}

/// Have the drive put what was written onto its media.
pub(crate) fn flush(drive: &mut Drive<'_>, nsid: u32) -> Result<(), DriveError> {
    let command = Command::new(nvm::FLUSH, nsid);
    let limit = SHORT * 4;
    drive.run(Lane::Io, &command, Transfer::None, Metadata::None, limit)?;
    Ok(())
}

/// Tell the drive that blocks from `lba` on, up to as many as one range holds, are of no use, so that it
/// can take them as spare again. Returns the block after them.
pub(crate) fn deallocate(
    drive: &mut Drive<'_>,
    namespace: &Namespace,
    lba: u64,
) -> Result<u64, DriveError> {
    let left = namespace.shape.blocks.saturating_sub(lba);
    let blocks = u32::try_from(left).unwrap_or(u32::MAX);
    let mut range = [0; 16];
    range[4..8].copy_from_slice(&blocks.to_le_bytes());
    range[8..16].copy_from_slice(&lba.to_le_bytes());
    let attribute_deallocate = 1 << 2;
    let command = Command::new(nvm::DATASET_MANAGEMENT, namespace.id).with(0, attribute_deallocate);
    let (range, limit) = (Transfer::Out(&range), SHORT * 10);
    drive.run(Lane::Io, &command, range, Metadata::None, limit)?;
    Ok(lba.saturating_add(blocks.into()))
}

/// What Format makes of a namespace (CDW10 of NVMe Base 2.0, figure 189); `secure` is SES.
pub(crate) fn format_command(nsid: u32, format: u8, shape: &Shape, secure: u8) -> Command {
    let format = u32::from(format);
    let protection =
        u32::from(shape.protection & 7) << 5 | u32::from(shape.protection >> 3 & 1) << 8;
    let word = format & 0xf
        | u32::from(shape.is_extended) << 4
        | protection
        | u32::from(secure) << 9
        | (format >> 4 & 3) << 12;
    Command::new(admin::FORMAT, nsid).with(word, 0)
}

/// Whether a command is for every namespace.
pub(crate) fn target(nsid: u32) -> String {
    if nsid == ALL_NAMESPACES {
        return "all namespaces".to_owned();
    }
    format!("namespace {nsid}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_keeps_the_shape_and_names_the_erase() {
        let shape = Shape {
            blocks: 1,
            block_bytes: 4096,
            metadata_bytes: 8,
            is_extended: true,
            protection: 0b1001,
        };
        let word = format_command(1, 0x12, &shape, 2).words[0];
        assert_eq!(word, 2 | 1 << 4 | 1 << 5 | 1 << 8 | 2 << 9 | 1 << 12);
    }
}
