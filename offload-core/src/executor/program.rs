//! Plan and layout joined: for each visit that is not to a resident its uploads and decode table, with every offset fixed.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use crate::device::{DecodeEntry, DecodeTable, Device, DeviceError};
use crate::executor::costs::Costs;
use crate::executor::layout::{BlockLayout, Location, Part, Upload};
use crate::model::Model;
use crate::plan::{
    BlockLoad, Decoding, Dependency, KindLoad, PartLoad, PassRef, Place, Plan, Stage, Tier,
    VisitLoad, Workload,
};
use crate::source::Source;

/// Pieces in which residents are decoded when they are loaded, where no staging of streamed blocks is larger: of 128 KiB
/// the calls, of which each piece takes five, take longer than the copies.
const LOAD_PIECE_BYTES: u64 = 2 << 20;

/// Host memory that the device reads in place, by block and tensor.
pub(super) type PinnedSources<D> = HashMap<(usize, usize), <D as Device>::Pinned>;

/// Pins the memory that blocks own, where the device can.
pub(super) fn pin_sources<D: Device>(
    device: &D,
    model: &Model,
) -> Result<PinnedSources<D>, DeviceError> {
    let mut pinned = HashMap::new();
    for (index, block) in model.blocks().iter().enumerate() {
        for (tensor, spec) in block.tensors().iter().enumerate() {
            if let Source::Memory { .. } = spec.source()
                && !spec.source().is_empty()
                && let Some(memory) = device.pin(spec.source())?.pinned()
            {
                pinned.insert((index, tensor), memory);
            }
        }
    }
    Ok(pinned)
}

/// Whether the device reads every tensor in place.
pub(super) fn is_all_pinned<D: Device>(model: &Model, pinned: &PinnedSources<D>) -> bool {
    model.blocks().iter().enumerate().all(|(block, swappable)| {
        let tensors = swappable.tensors().iter().enumerate();
        tensors
            .into_iter()
            .all(|(tensor, spec)| spec.source().is_empty() || pinned.contains_key(&(block, tensor)))
    })
}

/// The parts of a block that has more than one.
fn parts_of(layout: &BlockLayout) -> &[Part] {
    match layout.parts() {
        [_] => &[],
        parts => parts,
    }
}

/// What the planner is told about a model.
pub(super) fn workload<D: Device>(
    model: &Model,
    layouts: &[BlockLayout],
    pinned: &PinnedSources<D>,
    files_are_pinned: bool,
    costs: &Costs,
) -> Workload {
    let blocks = model
        .blocks()
        .iter()
        .zip(layouts)
        .enumerate()
        .map(|(index, (block, layout))| {
            let tier_of = |&tensor: &usize| match block.tensors()[tensor].source() {
                Source::File { .. } | Source::Described { .. } if files_are_pinned => Tier::Pinned,
                Source::File { .. } | Source::Described { .. } => Tier::Disk,
                Source::Memory { .. } if pinned.contains_key(&(index, tensor)) => Tier::Pinned,
                Source::Memory { .. } => Tier::Host,
            };
            BlockLoad {
                name: block.name().to_owned(),
                residency: model.residency(index),
                tier: layout
                    .streamable()
                    .iter()
                    .map(tier_of)
                    .max()
                    .unwrap_or(Tier::Pinned),
                remainder_bytes: layout.remainder_bytes,
                place_bytes: layout.place_bytes,
                staging_bytes: layout.staging_bytes,
                parts: (parts_of(layout).iter())
                    .map(|part| part.image.end - part.image.start)
                    .collect(),
            }
        });
    let kinds = model.kinds().iter().enumerate().map(|(kind, spec)| {
        let visits = spec.visits().iter().enumerate().map(|(visit, &block)| {
            let (layout, specs) = (&layouts[block], model.blocks()[block].tensors());
            let of_part = |part: &Part| {
                let demands = |tensor: usize| spec.demands(block, tensor);
                let uploads = layout.uploads(specs, part, demands);
                let wire_bytes = uploads.iter().map(|upload| upload.source.len()).sum();
                let arrived: u64 = (layout.tensors_of(part).iter())
                    .filter(|&&tensor| demands(tensor))
                    .map(|&tensor| layout.tensors[tensor].arrived_bytes)
                    .sum();
                PartLoad {
                    wire_bytes,
                    uploads: u32::try_from(uploads.len()).expect("tensors are fewer than 2^32"),
                    decode_s: if layout.is_direct() {
                        0.0
                    } else {
                        costs.decode_s(wire_bytes + arrived)
                    },
                }
            };
            let whole = of_part(&layout.whole());
            VisitLoad {
                block,
                wire_bytes: whole.wire_bytes,
                uploads: whole.uploads,
                compute_s: costs.compute_s(kind, visit),
                decode_s: whole.decode_s,
                parts: parts_of(layout).iter().map(of_part).collect(),
            }
        });
        KindLoad {
            name: spec.name().to_owned(),
            share: spec.share(),
            visits: visits.collect(),
        }
    });
    let blocks: Vec<_> = blocks.collect();
    let kinds: Vec<_> = kinds.collect();
    let pieces = model
        .blocks()
        .iter()
        .zip(layouts)
        .flat_map(|(block, layout)| {
            let tensors = block.tensors().iter().zip(&layout.tensors);
            tensors
                .filter(|(spec, tensor)| tensor.arrived != spec.encoding())
                .map(|(spec, _)| {
                    let quant_block = spec.encoding().quant_block_bytes();
                    spec.source()
                        .len()
                        .min(LOAD_PIECE_BYTES.next_multiple_of(quant_block))
                })
        });
    Workload {
        load_staging_bytes: pieces.max().unwrap_or(0),
        blocks,
        kinds,
    }
}

/// One upload of a visit.
#[derive(Debug)]
pub(super) struct UploadStep<D: Device> {
    /// Where it goes in the arena.
    pub(super) offset: u64,
    pub(super) source: Source,
    /// Set when it is built, or later by the thread that pins files; never changed.
    pub(super) pinned: OnceLock<D::Pinned>,
    /// It is read from its file past the page cache; set by [`page_cache::mark`](super::page_cache::mark).
    pub(super) past_cache: bool,
}

impl<D: Device> UploadStep<D> {
    pub(super) fn is_pinned(&self) -> bool {
        self.pinned.get().is_some()
    }

    pub(super) fn bytes(&self) -> usize {
        usize::try_from(self.source.len()).expect("pinned memory fits usize")
    }
}

/// A visit to a streamed or packed block.
#[derive(Debug)]
pub(super) struct VisitProgram<D: Device> {
    /// Whether it comes over the wire; else it is packed.
    pub(super) uploaded: bool,
    /// Of all parts, one after another.
    pub(super) uploads: Vec<UploadStep<D>>,
    /// At least one.
    pub(super) parts: Vec<PartProgram>,
    /// Whether it is decoded, and on the compute stream.
    pub(super) at_use: bool,
    /// What the compute waits for.
    after: Vec<Dependency>,
}

/// What is uploaded, and decoded, at once.
#[derive(Debug)]
pub(super) struct PartProgram {
    /// Which of the visit's uploads.
    pub(super) uploads: Range<usize>,
    /// Index of the decode table, unless the block is direct.
    pub(super) table: Option<usize>,
    /// What upload and decode wait for.
    after: [Vec<Dependency>; 2],
}

/// An operation, in the order of the plan.
#[derive(Debug)]
pub(super) struct OperationProgram {
    pub(super) stage: Stage,
    pub(super) visit: usize,
    pub(super) part: usize,
    /// Whether it is submitted with the visit, by the caller: computes and decodes at use.
    pub(super) with_visit: bool,
    /// While the pass before is running, so many of its visits have to be closed first, by its kind.
    pub(super) needs_closed_before: Vec<usize>,
}

/// A pass kind.
#[derive(Debug)]
pub(super) struct KindProgram<D: Device> {
    /// `None` for visits that find their block resident.
    pub(super) visits: Vec<Option<VisitProgram<D>>>,
    /// In the order of submission, up to the last upload or decode.
    pub(super) operations: Vec<OperationProgram>,
    /// Block of each visit.
    pub(super) blocks: Vec<usize>,
}

/// Programs by kind, and the decode tables that they name.
pub(super) type Program<D> = (Vec<KindProgram<D>>, Vec<DecodeTable>);

/// Uploads from files, cut at multiples of `pin_bytes` in the file.
fn cut(uploads: Vec<Upload>, pin_bytes: Option<NonZeroU64>) -> Vec<Upload> {
    let Some(pin_bytes) = pin_bytes.map(NonZeroU64::get) else {
        return uploads;
    };
    let pieces = uploads.into_iter().flat_map(|upload| match upload.source {
        Source::File { file, range } => {
            let cuts = range.start / pin_bytes..range.end.div_ceil(pin_bytes);
            let piece = |cut: u64| {
                let end = (cut + 1).saturating_mul(pin_bytes).min(range.end);
                let piece = (cut * pin_bytes).max(range.start)..end;
                Upload {
                    image_offset: upload.image_offset + (piece.start - range.start),
                    source: Source::File {
                        file: Arc::clone(&file),
                        range: piece,
                    },
                }
            };
            cuts.map(piece).collect()
        }
        Source::Memory { .. } | Source::Described { .. } => vec![upload],
    });
    pieces.collect()
}

/// Joins plan and layout. The tables are in the order of their indices in the programs. Uploads of a block from files are
/// cut at multiples of its `pin_bytes`, if it has any.
///
/// # Errors
/// When the device does not answer.
pub(super) fn build<D: Device>(
    device: &D,
    model: &Model,
    layouts: &[BlockLayout],
    plan: &Plan,
    pin_bytes: impl Fn(usize) -> Option<NonZeroU64>,
) -> Result<Program<D>, DeviceError> {
    let mut tables = Vec::new();
    let mut kinds = Vec::new();
    for (kind_plan, kind) in plan.kinds.iter().zip(model.kinds()) {
        let mut visits = Vec::new();
        for visit in &kind_plan.visits {
            let Some(place) = visit.place else {
                visits.push(None);
                continue;
            };
            let (layout, block) = (&layouts[visit.block], &model.blocks()[visit.block]);
            let specs = block.tensors();
            let demands = |tensor: usize| kind.demands(visit.block, tensor);
            // Where each part's image begins in the arena.
            let images: Vec<(Part, u64)> = match (&visit.staging[..], visit.packed) {
                ([], None) => vec![(layout.whole(), place.offset)],
                ([], Some(packed)) => vec![(layout.whole(), packed.offset)],
                ([staging], _) => vec![(layout.whole(), staging.offset)],
                (stagings, _) => {
                    let stagings = stagings.iter().map(|staging| staging.offset);
                    layout.parts().iter().cloned().zip(stagings).collect()
                }
            };
            let mut uploads = Vec::new();
            let mut parts = Vec::new();
            for (index, (part, offset)) in images.into_iter().enumerate() {
                let in_arena = |image_offset: u64| offset + (image_offset - part.image.start);
                let brought = match visit.is_uploaded() {
                    true => cut(
                        layout.uploads(specs, &part, demands),
                        pin_bytes(visit.block),
                    ),
                    false => Vec::new(),
                };
                let first = uploads.len();
                for upload in brought {
                    let pinned = match &upload.source {
                        source @ Source::Memory { .. } => device.pin(source)?.pinned(),
                        Source::File { .. } | Source::Described { .. } => None,
                    };
                    uploads.push(UploadStep {
                        offset: in_arena(upload.image_offset),
                        past_cache: false,
                        source: upload.source,
                        pinned: pinned.map_or_else(OnceLock::new, OnceLock::from),
                    });
                }
                let entry = |&tensor: &usize| {
                    let tensor_layout = &layout.tensors[tensor];
                    let Location::Place(offset) = tensor_layout.location else {
                        unreachable!("streamable tensors lie in the place")
                    };
                    DecodeEntry {
                        encoding: specs[tensor].encoding(),
                        arrived: tensor_layout.arrived,
                        scale: (specs[tensor].scale().cloned())
                            .filter(|_| tensor_layout.arrived != specs[tensor].encoding()),
                        encoded: Place {
                            offset: in_arena(tensor_layout.image_offset),
                            bytes: specs[tensor].source().len(),
                        },
                        place: Place {
                            offset: place.offset + offset,
                            bytes: tensor_layout.arrived_bytes,
                        },
                    }
                };
                let table = visit.is_decoded().then(|| {
                    let tensors = layout.tensors_of(&part).iter();
                    tables.push(DecodeTable {
                        entries: tensors
                            .filter(|&&tensor| demands(tensor))
                            .map(entry)
                            .collect(),
                        staging: visit.staging.get(index).copied(),
                    });
                    tables.len() - 1
                });
                parts.push(PartProgram {
                    uploads: first..uploads.len(),
                    table,
                    after: Default::default(),
                });
            }
            visits.push(Some(VisitProgram {
                uploaded: visit.is_uploaded(),
                uploads,
                parts,
                at_use: visit.is_decoded() && plan.decoding == Decoding::AtUse,
                after: Vec::new(),
            }));
        }
        let with_visit = |stage: Stage| match stage {
            Stage::Upload => false,
            Stage::Decode => plan.decoding == Decoding::AtUse,
            Stage::Compute => true,
        };
        let mut operations = Vec::new();
        for operation in &kind_plan.operations {
            let visit = operation.visit as usize;
            let mut needs_closed_before = vec![0; plan.kinds.len()];
            for dependency in &operation.after {
                if let PassRef::Previous(kind) = dependency.pass
                    && with_visit(dependency.stage)
                {
                    let needs = &mut needs_closed_before[kind];
                    *needs = (dependency.visit as usize + 1).max(*needs);
                }
            }
            operations.push(OperationProgram {
                stage: operation.stage,
                visit,
                part: operation.part as usize,
                with_visit: with_visit(operation.stage),
                needs_closed_before,
            });
            if let Some(program) = &mut visits[visit] {
                let part = operation.part as usize;
                let after = match operation.stage {
                    Stage::Upload => &mut program.parts[part].after[0],
                    Stage::Decode => &mut program.parts[part].after[1],
                    Stage::Compute => &mut program.after,
                };
                after.clone_from(&operation.after);
            }
        }
        let moves = |operation: &OperationProgram| !operation.with_visit;
        operations.truncate(
            operations
                .iter()
                .rposition(moves)
                .map_or(0, |last| last + 1),
        );
        let blocks = kind_plan.visits.iter().map(|visit| visit.block).collect();
        kinds.push(KindProgram {
            visits,
            operations,
            blocks,
        });
    }
    Ok((kinds, tables))
}

impl<D: Device> VisitProgram<D> {
    pub(super) fn after(&self, stage: Stage, part: usize) -> &[Dependency] {
        match stage {
            Stage::Upload => &self.parts[part].after[0],
            Stage::Decode => &self.parts[part].after[1],
            Stage::Compute => &self.after,
        }
    }

    /// The last part.
    pub(super) fn last_part(&self) -> usize {
        self.parts.len() - 1
    }

    /// The operations of a part that are submitted ahead of the visit, first and last; none for what is packed and decoded at
    /// use.
    pub(super) fn ahead(&self) -> Option<[Stage; 2]> {
        match (self.uploaded, self.parts[0].table.is_some() && !self.at_use) {
            (true, true) => Some([Stage::Upload, Stage::Decode]),
            (true, false) => Some([Stage::Upload; 2]),
            (false, true) => Some([Stage::Decode; 2]),
            (false, false) => None,
        }
    }

    /// The uploads of a part.
    pub(super) fn uploads_of(&self, part: usize) -> &[UploadStep<D>] {
        &self.uploads[self.parts[part].uploads.clone()]
    }

    /// Whether no byte has to pass through a staging buffer. Once true it stays so.
    pub(super) fn is_pinned(&self) -> bool {
        self.uploads.iter().all(UploadStep::is_pinned)
    }
}
