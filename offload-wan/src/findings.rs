//! What a checkpoint lacks, has in a wrong shape, or has beside: all of it at once.
//!
//! Findings speak of tensors as the file calls them, or would.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use offload_core::encoding::Encoding;
use offload_core::swappable::TensorSpec;
use serde::Serialize;

use crate::catalog::{Catalog, Named};
use crate::detect::{self, Detection, PatchEmbedding};
use crate::layout::{Expected, Layout, ListLayout, PATCH_EMBEDDING};
use crate::names::{self, List, Naming, Place, SCALED_FLAG};
use crate::stored::Stored;
use crate::variant::{Modules, Size, Variant};

/// Something about a checkpoint that is not as its layout has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "finding", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Finding {
    /// Whole blocks are missing: before or between others, or at the end, where the variant or a configuration counts
    /// more.
    MissingBlock {
        /// The first of them, such as `blocks.7`.
        block: String,
        /// Blocks of the list that are there.
        block_count: u64,
        /// The largest number of a block of the list that is there.
        highest: u64,
        /// Blocks that there should be.
        expected: u64,
    },
    /// There are more blocks than the variant has that the checkpoint is taken for.
    ExtraBlock {
        /// The first of them, such as `blocks.40`.
        block: String,
        /// Blocks of the list that are there.
        block_count: u64,
        /// Blocks that there should be.
        expected: u64,
    },
    /// A tensor is missing.
    Missing {
        /// What it would be called.
        tensor: String,
    },
    /// A tensor is there twice, under two names that mean the same, such as one with and one without a prefix.
    Repeated {
        /// The name of the second.
        tensor: String,
        /// That of the first.
        first: String,
    },
    /// A tensor has a shape that does not fit the others.
    Misshapen {
        /// Its name.
        tensor: String,
        /// Its shape.
        shape: Vec<u64>,
        /// The shape it should have.
        expected: String,
    },
    /// A weight of two 4-bit numbers to a byte, with two levels of scales beside it (nvfp4), which is not read.
    Packed {
        /// Its name.
        tensor: String,
        /// Its shape, in bytes.
        shape: Vec<u64>,
    },
    /// A tensor is not stored as weights are, or not as a tensor beside it says.
    Misencoded {
        /// Its name.
        tensor: String,
        /// How it is stored.
        encoding: Encoding,
        /// How it should be.
        expected: String,
    },
    /// A tensor that says how a weight is stored, and is not understood.
    Unclear {
        /// Its name.
        tensor: String,
        /// Why.
        reason: String,
    },
    /// The number of latent channels is that of no checkpoint with these modules. A fine-tune may have it.
    Unfamiliar {
        /// The patch embedding.
        tensor: String,
        /// Channels that go in.
        in_channels: u64,
        /// Those that are known.
        known: Vec<u64>,
    },
    /// A tensor that no such model has. It is kept, and may be another model's in the same file.
    Unknown {
        /// Its name.
        tensor: String,
    },
}

impl Finding {
    /// Whether no model can be built because of it.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::MissingBlock { .. }
            | Self::ExtraBlock { .. }
            | Self::Missing { .. }
            | Self::Repeated { .. }
            | Self::Misshapen { .. }
            | Self::Packed { .. }
            | Self::Misencoded { .. }
            | Self::Unclear { .. } => true,
            Self::Unfamiliar { .. } | Self::Unknown { .. } => false,
        }
    }

    /// The tensor or block that it names.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::MissingBlock { block, .. } | Self::ExtraBlock { block, .. } => block,
            Self::Missing { tensor }
            | Self::Repeated { tensor, .. }
            | Self::Misshapen { tensor, .. }
            | Self::Packed { tensor, .. }
            | Self::Misencoded { tensor, .. }
            | Self::Unclear { tensor, .. }
            | Self::Unfamiliar { tensor, .. }
            | Self::Unknown { tensor } => tensor,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingBlock {
                block,
                block_count: 0,
                expected,
                ..
            } => write!(
                f,
                "{block} is missing: the checkpoint has none of {expected} such blocks"
            ),
            Self::MissingBlock {
                block,
                block_count,
                highest,
                expected,
            } => write!(
                f,
                "{block} is missing: the checkpoint has {block_count} of {expected} such blocks, the highest is {highest}"
            ),
            Self::ExtraBlock {
                block,
                block_count,
                expected,
            } => write!(
                f,
                "{block} is one too many: the checkpoint has {block_count} such blocks, expected {expected}"
            ),
            Self::Missing { tensor } if tensor.ends_with(PATCH_EMBEDDING) => write!(
                f,
                "tensor {tensor} is missing: converters leave it to a file of its own \
                 (fix_5d_tensors_wan.safetensors), to be opened with this one"
            ),
            Self::Missing { tensor } => write!(f, "tensor {tensor} is missing"),
            Self::Repeated { tensor, first } => {
                write!(f, "tensor {tensor} is {first} again, under another name")
            }
            Self::Misshapen {
                tensor,
                shape,
                expected,
            } => write!(
                f,
                "tensor {tensor} has shape {shape:?}, expected {expected}"
            ),
            Self::Packed { tensor, shape } => write!(
                f,
                "tensor {tensor} has {shape:?} bytes of two 4-bit numbers each (nvfp4), which are not read"
            ),
            Self::Misencoded {
                tensor,
                encoding,
                expected,
            } => write!(
                f,
                "tensor {tensor} is stored as {encoding}, expected {expected}"
            ),
            Self::Unclear { tensor, reason } => write!(f, "tensor {tensor}: {reason}"),
            Self::Unfamiliar {
                tensor,
                in_channels,
                known,
            } => write!(
                f,
                "tensor {tensor} is for {in_channels} latent channels, known are {known:?}"
            ),
            Self::Unknown { tensor } => write!(f, "tensor {tensor} is unknown"),
        }
    }
}

/// Several findings in a line: the first few and how many more there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Findings(pub Vec<Finding>);

/// Findings that a line shows.
const SHOWN: usize = 5;

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, finding) in self.0.iter().take(SHOWN).enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{finding}")?;
        }
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

/// Everything that is not as the layout has it; nothing when this is no WAN transformer.
///
/// `said` is what the caller takes it for: a variant of a size, which it is held to.
pub(crate) fn findings(
    catalog: &Catalog<'_>,
    detection: &Detection,
    modules: Modules,
    said: Option<Variant>,
) -> Vec<Finding> {
    if detection.naming.is_none() {
        return Vec::new();
    }
    let whole = detection.whole;
    let check = Check {
        catalog,
        detection,
        layout: Layout::new(modules, whole.blocks, whole.vace_blocks),
        size: said.and_then(Variant::size),
    };
    let mut all = Vec::new();
    for layout in &check.layout.lists {
        check.blocks(layout, &mut all);
    }
    let root: Vec<&'static Expected> = check.layout.root().collect();
    check.tensors(Place::Root, &root, &mut all);
    check.repeated(&mut all);
    check.channels(modules, &mut all);
    check.widths(&mut all);
    check.unknown(&mut all);
    all
}

/// Those of a part's tensors that bear the name of one before.
pub(crate) fn repeated<'t, K: Ord>(
    tensors: impl Iterator<Item = (K, &'t TensorSpec)>,
) -> Vec<Finding> {
    let mut firsts: BTreeMap<K, &TensorSpec> = BTreeMap::new();
    let mut all = Vec::new();
    for (name, tensor) in tensors {
        let first = *firsts.entry(name).or_insert(tensor);
        let finding = Finding::Repeated {
            tensor: tensor.name().to_owned(),
            first: first.name().to_owned(),
        };
        // Parts of a stacked tensor are repeated together.
        if first.name() != tensor.name() && !all.contains(&finding) {
            all.push(finding);
        }
    }
    all
}

struct Check<'c> {
    catalog: &'c Catalog<'c>,
    detection: &'c Detection,
    layout: Layout,
    /// What the checkpoint is held to, if the caller said so.
    size: Option<Size>,
}

impl Check<'_> {
    fn blocks(&self, layout: &ListLayout, all: &mut Vec<Finding>) {
        let list = layout.list;
        let there: Vec<u64> = self.catalog.list(list).map(|(index, _)| index).collect();
        let block_count = there.len() as u64;
        let highest = there.last().copied().unwrap_or(0);
        let gap = (0u64..)
            .zip(&there)
            .find_map(|(wanted, index)| (*index != wanted).then_some(wanted));
        let wanted = layout.count.max(1);
        let short = (block_count < wanted).then_some(block_count);
        if let Some(index) = gap.or(short) {
            all.push(Finding::MissingBlock {
                block: format!("{}.{index}", list.name()),
                block_count,
                highest,
                expected: wanted.max(highest.saturating_add(1)),
            });
        }
        let extra = there.iter().find(|index| **index >= wanted);
        if let Some(index) = extra.filter(|_| self.size.is_some()) {
            all.push(Finding::ExtraBlock {
                block: format!("{}.{index}", list.name()),
                block_count,
                expected: wanted,
            });
        }
        for (index, _) in self.catalog.list(list) {
            let expected: Vec<&'static Expected> = layout.tensors(index).collect();
            self.tensors(Place::Block(list, index), &expected, all);
        }
    }

    fn tensors(&self, place: Place, expected: &[&'static Expected], all: &mut Vec<Finding>) {
        let tensors = self.catalog.place(place);
        let has_constants = self.detection.naming == Some(Naming::Native);
        let mut named = BTreeSet::new();
        for expected in expected {
            let found = tensors
                .iter()
                .find(|tensor| tensor.known && tensor.name == expected.name);
            let stored = found.map(|tensor| {
                let beside = |name: &str| {
                    let mut known = tensors.iter().filter(|tensor| tensor.known);
                    known.find(|tensor| tensor.name == name)
                };
                Stored::new(tensor.file, &tensor.name, |name| {
                    beside(name).map(|tensor| tensor.file)
                })
            });
            let finding = match (found, &stored) {
                (Some(tensor), Some(stored)) => stored
                    .packed()
                    .or_else(|| self.misshapen(expected, tensor))
                    .or_else(|| stored.misencoded()),
                _ if expected.constant && !has_constants => None,
                _ => Some(Finding::Missing {
                    tensor: self.file_name(place, expected.name),
                }),
            };
            let is_sound = finding.is_none();
            let scale = stored.and_then(|stored| stored.scale(is_sound, self.detection.scaling));
            // Parts of a stacked tensor are missing or misshapen together, and so are their scales.
            for finding in finding.into_iter().chain(scale) {
                if named.insert(finding.name().to_owned()) {
                    all.push(finding);
                }
            }
        }
    }

    fn misshapen(&self, expected: &Expected, tensor: &Named<'_>) -> Option<Finding> {
        let parts = tensor.parts as u64;
        let checked = expected.check(tensor.spec.shape(), self.detection.widths(), parts);
        checked.err().map(|expected| Finding::Misshapen {
            tensor: tensor.file.name().to_owned(),
            shape: tensor.file.shape().to_vec(),
            expected,
        })
    }

    /// What the tensor would be called in the file.
    fn file_name(&self, place: Place, name: &str) -> String {
        let file = self.catalog.style.convention.file_name(place, name);
        let name = file.map_or_else(|| format!("{place}{name}"), |file| file.name);
        format!("{}{name}", self.catalog.style.prefix)
    }

    /// Tensors that would bear one name in the model.
    fn repeated(&self, all: &mut Vec<Finding>) {
        for tensors in self.catalog.places.values() {
            let named = tensors
                .iter()
                .map(|tensor| ((tensor.known, tensor.name.as_str()), tensor.file));
            all.extend(repeated(named));
        }
    }

    /// A patch embedding in the right form but with a number of channels that nobody has.
    fn channels(&self, modules: Modules, all: &mut Vec<Finding>) {
        let (Some(in_channels), Some(weight)) = (
            self.detection.in_channels,
            self.catalog.root_tensor(PATCH_EMBEDDING),
        ) else {
            return;
        };
        let known = detect::known_channels(modules);
        let is_sound = self.detection.variant.is_none()
            && self.detection.patch_embedding != PatchEmbedding::Missing;
        if is_sound && !known.contains(&in_channels) {
            all.push(Finding::Unfamiliar {
                tensor: weight.name().to_owned(),
                in_channels,
                known,
            });
        }
    }

    /// Widths that are neither those of what the checkpoint is taken for, nor both of them divided by one number.
    fn widths(&self, all: &mut Vec<Finding>) {
        let (Some(size), Some(variant)) = (self.size, self.detection.variant) else {
            return;
        };
        let (dim, ffn_dim) = (self.detection.dim, self.detection.ffn_dim);
        if size.scales_to(dim, ffn_dim) {
            return;
        }
        let name = match self.detection.is_long_cat {
            true => "ffn.w1.weight",
            false => "ffn.0.weight",
        };
        let first = self.catalog.list(List::Main).next();
        let index = first.map_or(0, |(index, _)| index);
        all.push(Finding::Misshapen {
            tensor: self.file_name(Place::Block(List::Main, index), name),
            shape: vec![ffn_dim, dim],
            expected: format!(
                "[{}, {}] of {variant}, or both divided by one number",
                size.ffn_dim, size.dim
            ),
        });
    }

    fn unknown(&self, all: &mut Vec<Finding>) {
        let mut seen = BTreeSet::new();
        for (place, tensors) in &self.catalog.places {
            let expected: BTreeSet<&str> = match place {
                Place::Block(list, index) => {
                    let list = self.layout.list(*list);
                    let list =
                        list.filter(|layout| layout.list == List::Main || *index < layout.count);
                    list.into_iter()
                        .flat_map(|layout| layout.tensors(*index))
                        .map(|expected| expected.name)
                        .collect()
                }
                Place::Root => self.layout.root().map(|expected| expected.name).collect(),
            };
            let is_known = |tensor: &Named<'_>| {
                let name = tensor.name.as_str();
                let weight = names::attached_to(name);
                tensor.known
                    && (expected.contains(name)
                        || weight.is_some_and(|weight| expected.contains(weight.as_str()))
                        || (*place == Place::Root && name == SCALED_FLAG))
            };
            for tensor in tensors.iter().filter(|tensor| !is_known(tensor)) {
                if seen.insert(tensor.file.name()) {
                    all.push(Finding::Unknown {
                        tensor: tensor.file.name().to_owned(),
                    });
                }
            }
        }
        all.extend(self.catalog.outside.iter().map(|tensor| Finding::Unknown {
            tensor: tensor.name().to_owned(),
        }));
    }
}
