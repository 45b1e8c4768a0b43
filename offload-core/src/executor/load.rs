//! Loading what stays: residents and remainders, tensor by tensor, decoded in pieces through the staging range.

use crate::device::{DecodeEntry, DecodeTable, Device};
use crate::encoding::Encoding;
use crate::executor::error::OffloadError;
use crate::executor::layout::{BlockLayout, Location};
use crate::executor::program::PinnedSources;
use crate::executor::transfer::{Mark, Transfer};
use crate::model::Model;
use crate::plan::{PLACE_ALIGN, Place, Plan};
use crate::source::Source;

/// The largest piece that is uploaded at once.
const PIECE_BYTES: u64 = 16 << 20;

/// Staging halves: one is filled while the other is decoded.
const HALVES: u64 = 2;

/// One piece of a tensor.
struct Piece {
    block: usize,
    tensor: usize,
    source_offset: u64,
    bytes: u64,
    /// Where it is uploaded to.
    offset: u64,
    /// Decode table and staging half, unless it is uploaded straight to where it stays.
    decode: Option<(usize, usize)>,
}

struct Pieces {
    pieces: Vec<Piece>,
    tables: Vec<DecodeTable>,
}

/// Where a tensor stays, if it does.
fn home(plan: &Plan, block: usize, location: Location) -> Option<u64> {
    let block = &plan.blocks[block];
    match location {
        Location::Place(offset) => block.resident.map(|place| place.offset + offset),
        Location::Remainder(offset) => block.remainder.map(|place| place.offset + offset),
    }
}

fn cut(model: &Model, layouts: &[BlockLayout], plan: &Plan) -> Pieces {
    let (mut pieces, mut tables) = (Vec::new(), Vec::new());
    let staging = plan.arena.staging;
    let half_bytes = staging.bytes / HALVES / PLACE_ALIGN * PLACE_ALIGN;
    for (block, (swappable, layout)) in model.blocks().iter().zip(layouts).enumerate() {
        for (tensor, (spec, tensor_layout)) in
            swappable.tensors().iter().zip(&layout.tensors).enumerate()
        {
            let Some(home) = home(plan, block, tensor_layout.location) else {
                continue;
            };
            let len = spec.source().len();
            let (stored, arrived) = (spec.encoding(), tensor_layout.arrived);
            let whole =
                |bytes: u64| (bytes / stored.quant_block_bytes()) * stored.quant_block_bytes();
            let decoded = stored != arrived;
            // One half if that holds a quant block, else the whole staging range.
            let (halves, room) = match whole(half_bytes) {
                0 => (1, whole(staging.bytes)),
                room => (HALVES, room),
            };
            let limit = if decoded {
                room.min(whole(PIECE_BYTES))
            } else {
                PIECE_BYTES
            };
            assert!(
                limit > 0 || len == 0,
                "the plan's staging holds a quant block of every tensor"
            );
            let mut done = 0;
            while done < len {
                let bytes = limit.min(len - done);
                let decode = decoded.then(|| {
                    let half = tables.len() as u64 % halves;
                    let encoded = Place {
                        offset: staging.offset + half * half_bytes,
                        bytes,
                    };
                    let place = Place {
                        offset: home + arrived_bytes(stored, arrived, done),
                        bytes: arrived_bytes(stored, arrived, bytes),
                    };
                    let before = done / stored.quant_block_bytes() * stored.quant_block_len();
                    let entry = DecodeEntry {
                        encoding: stored,
                        arrived,
                        scale: spec.scale().map(|scale| scale.after(before)),
                        encoded,
                        place,
                    };
                    tables.push(DecodeTable {
                        entries: vec![entry],
                        staging: Some(encoded),
                    });
                    (tables.len() - 1, usize::try_from(half).expect("two halves"))
                });
                let offset = match decode {
                    Some((table, _)) => tables[table].entries[0].encoded.offset,
                    None => home + done,
                };
                pieces.push(Piece {
                    block,
                    tensor,
                    source_offset: done,
                    bytes,
                    offset,
                    decode,
                });
                done += bytes;
            }
        }
    }
    Pieces { pieces, tables }
}

fn arrived_bytes(stored: Encoding, arrived: Encoding, encoded_bytes: u64) -> u64 {
    encoded_bytes / stored.quant_block_bytes()
        * stored.quant_block_len()
        * arrived.quant_block_bytes()
}

/// Submits everything that stays, and marks the end of it on both streams. Returns the bytes moved.
pub(super) fn load<D: Device>(
    transfer: &Transfer<D>,
    arena: &D::Arena,
    model: &Model,
    layouts: &[BlockLayout],
    pinned: &PinnedSources<D>,
    plan: &Plan,
    staging_bytes: usize,
) -> Result<u64, OffloadError> {
    let device = &transfer.device;
    let Pieces { pieces, tables } = cut(model, layouts, plan);
    let program = device.prepare(arena, &tables)?;
    let uploaded = device.create_event()?;
    let decoded: [Mark<D>; HALVES as usize] = [Mark::new(device)?, Mark::new(device)?];
    let mut buffers: Vec<D::Staging> = Vec::new();
    let mut turn = 0;
    let mut moved = 0;
    for piece in &pieces {
        let block = &model.blocks()[piece.block];
        let of_block = |error| OffloadError::of_block(block.name(), error);
        let source = block.tensors()[piece.tensor].source();
        if let Some((_, half)) = piece.decode {
            decoded[half]
                .wait(device, &transfer.upload)
                .map_err(of_block)?;
        }
        if let (Some(pinned), Source::Memory(_)) =
            (pinned.get(&(piece.block, piece.tensor)), source)
        {
            let start = usize::try_from(piece.source_offset).expect("memory fits usize");
            let end = start + usize::try_from(piece.bytes).expect("memory fits usize");
            device
                .upload_pinned(&transfer.upload, arena, piece.offset, pinned, start..end)
                .map_err(of_block)?;
        } else {
            let mut done = 0;
            while done < piece.bytes {
                let left = usize::try_from(piece.bytes - done).unwrap_or(usize::MAX);
                let len = left.min(staging_bytes);
                if buffers.len() < 2 {
                    buffers.push(device.allocate_staging(staging_bytes)?);
                }
                turn = (turn + 1) % buffers.len();
                let buffer = &mut buffers[turn];
                let bytes = device.staging_bytes(buffer).map_err(of_block)?;
                source
                    .read(piece.source_offset + done, &mut bytes[..len])
                    .map_err(|source| OffloadError::Source {
                        block: block.name().to_owned(),
                        source,
                    })?;
                device
                    .upload_staged(&transfer.upload, arena, piece.offset + done, buffer, len)
                    .map_err(of_block)?;
                done += len as u64;
            }
        }
        moved += piece.bytes;
        if let Some((table, half)) = piece.decode {
            let generation = device
                .record(&transfer.upload, &uploaded)
                .map_err(of_block)?;
            device
                .wait(&transfer.decode, &uploaded, generation)
                .map_err(of_block)?;
            device
                .decode(&transfer.decode, arena, &program, table)
                .map_err(of_block)?;
            decoded[half]
                .record(device, &transfer.decode)
                .map_err(of_block)?;
        }
    }
    transfer.upload_tail.record(device, &transfer.upload)?;
    transfer.decode_tail.record(device, &transfer.decode)?;
    // The program and the buffers live until the device is done with them.
    transfer.upload_tail.synchronize(device)?;
    transfer.decode_tail.synchronize(device)?;
    Ok(moved)
}
