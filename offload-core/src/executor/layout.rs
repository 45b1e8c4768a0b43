//! How a block's bytes lie: which runs of the file are uploaded, where they wait, where each tensor arrives.
//!
//! A block's tensors are sorted by where they are stored and neighbours are joined into *runs*, one upload each. Runs
//! shorter than the limit for remainders stay resident instead. The runs side by side are the block's *encoded
//! image*; the arrived tensors, each on [`PLACE_ALIGN`] bytes, are its *place*. If nothing has to be decoded and the
//! image already has every tensor on that alignment, image and place are the same and the block is *direct*.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::decode::{self, Float};
use crate::encoding::Encoding;
use crate::plan::PLACE_ALIGN;
use crate::source::{Source, SourceFile};
use crate::swappable::{Role, Swappable, TensorSpec};

/// The form in which a tensor arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arrival {
    /// The encoded bytes, for engines that compute with quantised weights. A scale is not applied.
    Stored,
    /// Decoded to floats of this kind.
    Decoded(Float),
}

/// The form in which tensors arrive, by role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ArrivalPolicy {
    /// Operands of matrix products. Default: bf16, what accelerators multiply.
    pub matrices: Arrival,
    /// Biases, norms and modulation. Default: f32, small and sensitive to rounding.
    pub vectors: Arrival,
}

impl Default for ArrivalPolicy {
    fn default() -> Self {
        Self {
            matrices: Arrival::Decoded(Float::BF16),
            vectors: Arrival::Decoded(Float::F32),
        }
    }
}

impl ArrivalPolicy {
    /// Everything arrives as it is stored.
    pub const STORED: Self = Self {
        matrices: Arrival::Stored,
        vectors: Arrival::Stored,
    };

    /// What `tensor` becomes. What [`decode`] does not know, such as integers without a scale, is no weight and always
    /// arrives as stored.
    #[must_use]
    pub fn arrived(&self, tensor: &TensorSpec) -> Encoding {
        let stored = tensor.encoding();
        let arrival = match tensor.role() {
            Role::Matrix => self.matrices,
            Role::Vector => self.vectors,
        };
        match arrival {
            Arrival::Decoded(float) if decode::is_supported(stored) || tensor.scale().is_some() => {
                float.encoding()
            }
            _ => stored,
        }
    }
}

/// Padding between two tensors that is uploaded with them rather than splitting the run. Containers align tensors to
/// at most this.
const JOINED_GAP: u64 = 255;

/// Where a tensor arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Location {
    /// At an offset of the block's place.
    Place(u64),
    /// At an offset of the block's remainder.
    Remainder(u64),
}

#[derive(Debug, Clone, Copy)]
pub(super) struct TensorLayout {
    pub(super) arrived: Encoding,
    pub(super) arrived_bytes: u64,
    pub(super) location: Location,
    /// Offset in the encoded image, and the run it belongs to; meaningless for remainders and empty tensors.
    pub(super) image_offset: u64,
    run: usize,
}

/// Bytes of one source that go to one range of the image.
#[derive(Debug, Clone)]
pub(super) struct Upload {
    pub(super) source: Source,
    pub(super) image_offset: u64,
}

/// A part of the encoded image that can be staged and decoded by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// Its tensors, as indices into the streamable ones.
    tensors: Range<usize>,
    /// Its range of the image.
    pub(super) image: Range<u64>,
}

#[derive(Debug, Clone)]
pub(super) struct BlockLayout {
    pub(super) tensors: Vec<TensorLayout>,
    /// Streamable tensors that hold bytes, in image order.
    streamable: Vec<usize>,
    pub(super) place_bytes: u64,
    /// 0 for direct blocks.
    pub(super) staging_bytes: u64,
    pub(super) remainder_bytes: u64,
    /// One or more that cover all streamable tensors; none if there are none.
    parts: Vec<Part>,
}

fn align(offset: u64) -> u64 {
    offset.next_multiple_of(PLACE_ALIGN)
}

/// Groups tensors by owner: two tensors can share a run only in the same file or memory.
fn owner_of(
    source: &Source,
    files: &mut Vec<Arc<SourceFile>>,
    memories: &mut Vec<Arc<Bytes>>,
) -> (usize, usize, u64) {
    match source {
        Source::File { file, range } => {
            let index = files
                .iter()
                .position(|known| Arc::ptr_eq(known, file))
                .unwrap_or_else(|| {
                    files.push(Arc::clone(file));
                    files.len() - 1
                });
            (0, index, range.start)
        }
        Source::Described { range } => (1, 0, range.start),
        Source::Memory { memory, range } => {
            let index = memories
                .iter()
                .position(|known| Arc::ptr_eq(known, memory))
                .unwrap_or_else(|| {
                    memories.push(Arc::clone(memory));
                    memories.len() - 1
                });
            (2, index, range.start)
        }
    }
}

impl BlockLayout {
    pub(super) fn new(
        block: &dyn Swappable,
        policy: &ArrivalPolicy,
        remainder_below: u64,
        part_bytes: u64,
    ) -> Self {
        let specs = block.tensors();
        let (mut files, mut memories) = (Vec::new(), Vec::new());
        let mut stored: Vec<_> = (0..specs.len())
            .filter(|&tensor| !specs[tensor].source().is_empty())
            .map(|tensor| {
                (
                    owner_of(specs[tensor].source(), &mut files, &mut memories),
                    tensor,
                )
            })
            .collect();
        stored.sort_unstable();

        // Runs of neighbours, and how long each is from its first to its last byte.
        let mut runs: Vec<(Vec<(usize, u64)>, u64)> = Vec::new();
        let mut last_owner = None;
        for ((kind, owner, start), tensor) in stored {
            let len = specs[tensor].source().len();
            let joins = last_owner.is_some_and(|(last_kind, last, end)| {
                (last_kind, last) == (kind, owner) && start >= end && start - end <= JOINED_GAP
            });
            if joins {
                let (members, run_len) = runs.last_mut().expect("a last owner has a run");
                let (_, _, end) = last_owner.expect("just compared");
                members.push((tensor, *run_len + (start - end)));
                *run_len += start - end + len;
            } else {
                runs.push((vec![(tensor, 0)], len));
            }
            last_owner = Some((kind, owner, start + len));
        }

        let mut tensors: Vec<_> = specs
            .iter()
            .map(|spec| {
                let arrived = policy.arrived(spec);
                TensorLayout {
                    arrived,
                    arrived_bytes: arrived
                        .bytes_of(spec.shape())
                        .unwrap_or_else(|_| spec.source().len()),
                    location: Location::Place(0),
                    image_offset: 0,
                    run: usize::MAX,
                }
            })
            .collect();
        let (mut image_bytes, mut remainder_bytes) = (0, 0);
        let mut streamable = Vec::new();
        for (index, (members, run_len)) in runs.iter().enumerate() {
            if *run_len < remainder_below {
                for &(tensor, _) in members {
                    tensors[tensor].location = Location::Remainder(remainder_bytes);
                    remainder_bytes = align(remainder_bytes + tensors[tensor].arrived_bytes);
                }
                continue;
            }
            for &(tensor, offset) in members {
                tensors[tensor].image_offset = image_bytes + offset;
                tensors[tensor].run = index;
                streamable.push(tensor);
            }
            image_bytes = align(image_bytes + run_len);
        }

        let direct = streamable.iter().all(|&tensor| {
            tensors[tensor].arrived == specs[tensor].encoding()
                && tensors[tensor].image_offset.is_multiple_of(PLACE_ALIGN)
        });
        let mut place_bytes = 0;
        for &tensor in &streamable {
            let layout = &mut tensors[tensor];
            layout.location = Location::Place(if direct {
                layout.image_offset
            } else {
                place_bytes
            });
            place_bytes = align(place_bytes + layout.arrived_bytes);
        }
        if direct {
            place_bytes = image_bytes;
        }
        let staging_bytes = if direct { 0 } else { image_bytes };
        let mut parts: Vec<Part> = Vec::new();
        for (index, &tensor) in streamable.iter().enumerate() {
            let start = tensors[tensor].image_offset;
            let end = start + specs[tensor].source().len();
            match parts.last_mut() {
                Some(part) if direct || end - part.image.start <= part_bytes => {
                    part.tensors.end = index + 1;
                    part.image.end = end;
                }
                _ => parts.push(Part {
                    tensors: index..index + 1,
                    image: start..end,
                }),
            }
        }
        Self {
            tensors,
            streamable,
            place_bytes,
            staging_bytes,
            remainder_bytes,
            parts,
        }
    }

    /// The parts in which it may be staged; one is the whole.
    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The whole image as one part.
    pub(super) fn whole(&self) -> Part {
        Part {
            tensors: 0..self.streamable.len(),
            image: 0..self.staging_bytes.max(self.place_bytes),
        }
    }

    pub(super) fn is_direct(&self) -> bool {
        self.staging_bytes == 0
    }

    /// Streamable tensors that hold bytes, in image order.
    pub(super) fn streamable(&self) -> &[usize] {
        &self.streamable
    }

    /// The streamable tensors of a part, in image order.
    pub(super) fn tensors_of(&self, part: &Part) -> &[usize] {
        &self.streamable[part.tensors.clone()]
    }

    /// The uploads that bring the tensors of a part that are `demanded`.
    pub(super) fn uploads(
        &self,
        specs: &[TensorSpec],
        part: &Part,
        demanded: impl Fn(usize) -> bool,
    ) -> Vec<Upload> {
        let mut uploads: Vec<(Upload, usize)> = Vec::new();
        let mut adjacent = false;
        for &tensor in self.tensors_of(part) {
            if !demanded(tensor) {
                adjacent = false;
                continue;
            }
            let layout = &self.tensors[tensor];
            let source = specs[tensor].source();
            match uploads.last_mut() {
                Some((upload, run)) if adjacent && *run == layout.run => {
                    upload.source.extend(source)
                }
                _ => {
                    let image_offset = layout.image_offset;
                    uploads.push((
                        Upload {
                            source: source.clone(),
                            image_offset,
                        },
                        layout.run,
                    ));
                }
            }
            adjacent = true;
        }
        uploads.into_iter().map(|(upload, _)| upload).collect()
    }
}
