//! Loading what stays: residents and remainders, tensor by tensor, decoded in pieces through the staging range; and
//! packed blocks, as they are stored.
//!
//! Sources are read several pieces at a time, ahead of their uploads.

use std::sync::atomic::Ordering;

use crate::device::{DecodeEntry, DecodeTable, Device, DeviceError};
use crate::encoding::Encoding;
use crate::executor::error::OffloadError;
use crate::executor::layout::{BlockLayout, Location, TensorLayout};
use crate::executor::program::PinnedSources;
use crate::executor::readers::{self, Readers};
use crate::executor::transfer::{Mark, Transfer};
use crate::model::Model;
use crate::plan::{BlockPlan, PLACE_ALIGN, Place, Plan};

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

/// Where a tensor stays, if it does, and whether it stays as it is stored.
fn home(plan: &Plan, block: usize, tensor: &TensorLayout) -> Option<(u64, bool)> {
    let BlockPlan {
        remainder,
        resident,
        packed,
        ..
    } = &plan.blocks[block];
    match (tensor.location, packed) {
        (Location::Remainder(offset), _) => remainder.map(|place| (place.offset + offset, false)),
        (Location::Place(_), Some(place)) => Some((place.offset + tensor.image_offset, true)),
        (Location::Place(offset), None) => resident.map(|place| (place.offset + offset, false)),
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
            let Some((home, packed)) = home(plan, block, tensor_layout) else {
                continue;
            };
            let len = spec.source().len();
            let (stored, arrived) = (spec.encoding(), tensor_layout.arrived);
            let whole =
                |bytes: u64| (bytes / stored.quant_block_bytes()) * stored.quant_block_bytes();
            let decoded = stored != arrived && !packed;
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

/// Brings everything that stays, and waits until it is there. Returns the bytes moved. There are `readers` unless all
/// sources are pinned.
///
/// The streams hold nothing of it any more when this returns, whether it succeeds or not.
pub(super) fn load<D: Device>(
    transfer: &Transfer<D>,
    arena: &D::Arena,
    model: &Model,
    layouts: &[BlockLayout],
    pinned: &PinnedSources<D>,
    plan: &Plan,
    readers: Option<&mut Readers<D>>,
) -> Result<u64, OffloadError> {
    let device = &transfer.device;
    let Pieces { pieces, tables } = cut(model, layouts, plan);
    let program = device.prepare(arena, &tables)?;
    let submitted = submit(transfer, arena, model, pinned, &pieces, &program, readers);
    let drained = drain(transfer);
    let moved = submitted?;
    drained?;
    Ok(moved)
}

/// Waits until both streams have done all that they were given.
fn drain<D: Device>(transfer: &Transfer<D>) -> Result<(), DeviceError> {
    let device = &transfer.device;
    let tails = [
        (&transfer.upload_tail, &transfer.upload),
        (&transfer.decode_tail, &transfer.decode),
    ];
    let mut outcome = Ok(());
    for (tail, stream) in tails {
        // One more try: a call that failed once says nothing about the work before it.
        let marked = (tail.record(device, stream)).or_else(|_| tail.record(device, stream));
        let waited =
            marked.and_then(|()| (tail.synchronize(device)).or_else(|_| tail.synchronize(device)));
        outcome = outcome.and(waited);
    }
    outcome
}

fn submit<D: Device>(
    transfer: &Transfer<D>,
    arena: &D::Arena,
    model: &Model,
    pinned: &PinnedSources<D>,
    pieces: &[Piece],
    program: &D::Program,
    mut readers: Option<&mut Readers<D>>,
) -> Result<u64, OffloadError> {
    let device = &transfer.device;
    let uploaded = device.create_event()?;
    let decoded: [Mark<D>; HALVES as usize] = [Mark::new(device)?, Mark::new(device)?];
    let source_of = |piece: &Piece| model.blocks()[piece.block].tensors()[piece.tensor].source();
    let pinned = |piece: &Piece| pinned.get(&(piece.block, piece.tensor));
    // Where reading stands: piece, and bytes of it. It runs ahead of what is uploaded.
    let mut next = (0, 0);
    let mut moved = 0;
    for piece in pieces {
        let block = &model.blocks()[piece.block];
        let of_block = |error| OffloadError::of_block(block.name(), error);
        if let Some((_, half)) = piece.decode {
            decoded[half]
                .wait(device, &transfer.upload)
                .map_err(of_block)?;
        }
        if let Some(pinned) = pinned(piece) {
            let start = usize::try_from(piece.source_offset).expect("memory fits usize");
            let end = start + usize::try_from(piece.bytes).expect("memory fits usize");
            device
                .upload_pinned(&transfer.upload, arena, piece.offset, pinned, start..end)
                .map_err(of_block)?;
        } else {
            let readers = (readers.as_mut()).expect("there are readers for what is not pinned");
            let mut done = 0;
            while done < piece.bytes {
                while readers.are_free()
                    && let Some(ahead) = pieces.get(next.0)
                {
                    let left = ahead.bytes - next.1;
                    if pinned(ahead).is_some() || left == 0 {
                        next = (next.0 + 1, 0);
                        continue;
                    }
                    let len = readers.piece_len(left, false);
                    readers.read(readers::Piece {
                        epoch: transfer.epoch.load(Ordering::Acquire),
                        source: source_of(ahead).clone(),
                        offset: ahead.source_offset + next.1,
                        len,
                        past_cache: false,
                    });
                    next.1 += len as u64;
                }
                let Some((mut staging, filled)) = readers.next() else {
                    continue;
                };
                let begin = filled.map_err(|error| error.of_block(block.name()))?;
                let len = readers.piece_len(piece.bytes - done, false);
                device
                    .upload_staged(
                        &transfer.upload,
                        arena,
                        piece.offset + done,
                        &mut staging,
                        begin..begin + len,
                    )
                    .map_err(of_block)?;
                readers.give_back(staging);
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
                .decode(&transfer.decode, arena, program, table)
                .map_err(of_block)?;
            decoded[half]
                .record(device, &transfer.decode)
                .map_err(of_block)?;
        }
    }
    Ok(moved)
}
