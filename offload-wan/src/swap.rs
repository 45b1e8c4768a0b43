//! The options of the original block swap, and what each does here.
//!
//! A budget is the better way: then the planner chooses, and knows what a block costs. These options say it by hand.
//!
//! | option | effect |
//! |---|---|
//! | `blocks_to_swap` | so many main blocks are fetched at each visit; all others stay |
//! | `which` | those: spread over the pass, so that copies hide between residents, or the last, as the original |
//! | `offload_txt_emb`, `offload_img_emb` | the text embedding, the image embedding is fetched at each visit too, into the window that fetched blocks have; refused where that saves nothing, as without such blocks |
//! | `use_non_blocking` | what is fetched is page-locked, where it lies in the page cache if it can be, instead of being read from its file through a ring of buffers at each visit: faster, and its bytes of RAM cannot be given up |
//! | `vace_blocks_to_swap` | so many VACE blocks too; 0: the same share of them as of the main blocks |
//! | `prefetch_blocks` | the window has places for so many fetched blocks beside the one that computes; 0: the planner chooses |
//! | `block_swap_debug` | tells through `tracing` what is done, in the original's words |
//!
//! In a pair of experts each has its own blocks, and each count is that of each expert.

use std::collections::BTreeSet;

use offload_core::executor::{Settings, Span};
use offload_core::model::{Model, Residency};
use offload_core::plan::{Budget, Plan, PlanError};
use serde::{Deserialize, Serialize};

use crate::detect::Expert;
use crate::group::Group;
use crate::passes::{Tokens, WanModel};
use crate::transformer::Part;

/// Which of the main blocks are swapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Which {
    /// Evenly over the pass.
    #[default]
    Spread,
    /// The last, as the original does.
    Last,
}

/// The most `prefetch_blocks` that the original takes.
pub const MOST_PREFETCH: u32 = 40;

/// The original's options. See the table in the crate's source, or each field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BlockSwap {
    /// Main blocks that are fetched at each visit, 0 to all of them.
    pub blocks_to_swap: u64,
    /// Which ones.
    pub which: Which,
    /// Fetch the text embedding too.
    pub offload_txt_emb: bool,
    /// Fetch the image embedding too, where there is one.
    pub offload_img_emb: bool,
    /// Page-lock what is fetched; otherwise no more than the staging buffers is.
    pub use_non_blocking: bool,
    /// VACE blocks that are fetched; 0: as large a share as of the main blocks.
    pub vace_blocks_to_swap: u64,
    /// Fetched blocks that the window holds beside the one that computes; 0: the planner chooses.
    pub prefetch_blocks: u32,
    /// Tell what is done through `tracing`.
    pub block_swap_debug: bool,
}

impl Default for BlockSwap {
    /// The original's defaults, but for `which`.
    fn default() -> Self {
        Self {
            blocks_to_swap: 20,
            which: Which::Spread,
            offload_txt_emb: false,
            offload_img_emb: false,
            use_non_blocking: false,
            vace_blocks_to_swap: 0,
            prefetch_blocks: 0,
            block_swap_debug: false,
        }
    }
}

/// Why options do not fit a model.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SwapError {
    /// A number is out of its range.
    #[error("cannot take {option} {value}: this model takes {option} from 0 to {most}")]
    OutOfRange {
        /// The option.
        option: &'static str,
        /// The number.
        value: u64,
        /// The largest that is possible.
        most: u64,
    },
    /// A setting is for a part that the model does not have.
    #[error("{option} is set, but the model has no {part}")]
    NoSuchPart {
        /// The option.
        option: &'static str,
        /// What is missing.
        part: &'static str,
    },
    /// Fetching an embedding would take as much memory as it leaves, or more.
    #[error(
        "{option} saves nothing here: with it the least arena is {with_bytes} bytes, without it {without_bytes}; what is fetched \
         arrives in the window, which has room for it only if blocks are fetched too"
    )]
    NoSaving {
        /// The option.
        option: &'static str,
        /// Least bytes of the arena with it.
        with_bytes: u64,
        /// Least bytes of the arena without it.
        without_bytes: u64,
    },
    /// No preset is called so.
    #[error("`{name}` is no preset: there are 8gb, 12gb and 16gb")]
    NoSuchPreset {
        /// The name.
        name: String,
    },
    /// The blocks do not make a model.
    #[error(transparent)]
    Model(#[from] offload_core::model::ModelError),
    /// No plan could be made.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

impl BlockSwap {
    /// The original's advice for a card of so much memory, by name: `8gb`, `12gb` or `16gb`, as far as `wan` has blocks
    /// and embeddings that are worth fetching. It takes no account of the card; [`recommended`](Self::recommended) asks
    /// the planner.
    ///
    /// # Errors
    /// When there is no such preset, and when the planner refuses the model.
    pub fn preset(name: &str, wan: &WanModel) -> Result<Self, SwapError> {
        let (blocks_to_swap, offload_txt_emb, offload_img_emb) = match name {
            "8gb" => (25, true, true),
            "12gb" => (15, true, false),
            "16gb" => (0, false, false),
            _ => {
                return Err(SwapError::NoSuchPreset {
                    name: name.to_owned(),
                });
            }
        };
        let preset = Self {
            blocks_to_swap: wan.main_count().min(blocks_to_swap),
            offload_txt_emb,
            offload_img_emb: offload_img_emb && wan.has_image_embedding(),
            ..Self::default()
        };
        preset.without_vain_offloads(wan)
    }

    /// The same without fetching embeddings where that saves nothing.
    fn without_vain_offloads(mut self, wan: &WanModel) -> Result<Self, SwapError> {
        loop {
            match self
                .swapped(wan)
                .and_then(|swapped| self.check_savings(wan, &swapped))
            {
                Err(SwapError::NoSaving { option, .. }) if option == TXT.0 => {
                    self.offload_txt_emb = false
                }
                Err(SwapError::NoSaving { .. }) => self.offload_img_emb = false,
                checked => return checked.map(|()| self),
            }
        }
    }

    /// The model with what these options say. It depends on the options alone, not on those that were applied before, so
    /// applying them twice changes nothing more.
    ///
    /// # Errors
    /// When a number is out of the model's range, an option is for a part that the model lacks, or fetching an embedding
    /// would take no less memory than keeping it.
    pub fn apply(&self, wan: WanModel) -> Result<WanModel, SwapError> {
        let swapped = self.swapped(&wan)?;
        self.check_savings(&wan, &swapped)?;
        let model = fetching(&wan, &swapped)?;
        let mut wan = wan;
        wan.model = model;
        if self.block_swap_debug {
            self.log(&wan, &swapped);
        }
        Ok(wan)
    }

    /// The settings with what these options say about the plan and host memory.
    #[must_use]
    pub fn settings(&self, settings: Settings) -> Settings {
        Settings {
            blocks_ahead: (self.prefetch_blocks > 0).then_some(self.prefetch_blocks),
            // The least memory for so many swapped blocks is the original's, a whole one on its way: parts would take a
            // little less and be slower.
            part_bytes: u64::MAX,
            pin_files: self.use_non_blocking,
            ..settings
        }
    }

    /// Indices of the blocks that are fetched.
    fn swapped(&self, wan: &WanModel) -> Result<BTreeSet<usize>, SwapError> {
        if self.prefetch_blocks > MOST_PREFETCH {
            return Err(SwapError::OutOfRange {
                option: "prefetch_blocks",
                value: self.prefetch_blocks.into(),
                most: MOST_PREFETCH.into(),
            });
        }
        let mut swapped = BTreeSet::new();
        let experts = [None, Some(Expert::High), Some(Expert::Low)];
        for expert in experts {
            let of = |is: fn(Part) -> bool| -> Vec<usize> {
                let indices = wan.indices(is).into_iter();
                indices
                    .filter(|index| wan.part(*index).1 == expert)
                    .collect()
            };
            let main = of(|part| matches!(part, Part::Main(_)));
            if main.is_empty() {
                continue;
            }
            let vace = of(|part| matches!(part, Part::Vace(_)));
            let main_count = checked("blocks_to_swap", self.blocks_to_swap, main.len())?;
            if vace.is_empty() && self.vace_blocks_to_swap > 0 {
                return Err(SwapError::NoSuchPart {
                    option: "vace_blocks_to_swap",
                    part: "VACE blocks",
                });
            }
            let vace_count =
                match checked("vace_blocks_to_swap", self.vace_blocks_to_swap, vace.len())? {
                    0 => (main_count * vace.len()).div_ceil(main.len()),
                    count => count,
                };
            swapped.extend(self.pick(&main, main_count));
            swapped.extend(self.pick(&vace, vace_count));
            // Injectors and fuser blocks go with the main blocks that they run after.
            let follows = |index: &usize| {
                let before = main.iter().rev().find(|main| *main < index);
                before.is_some_and(|main| swapped.contains(main))
            };
            let sides = of(|part| matches!(part, Part::Injector(_) | Part::Fuser(_)));
            let sides: Vec<usize> = sides.into_iter().filter(follows).collect();
            swapped.extend(sides);
        }
        for (option, part) in self.offloads() {
            let groups = wan.indices(|known| known == Part::Group(part));
            if groups.is_empty() {
                return Err(SwapError::NoSuchPart {
                    option,
                    part: part.name(),
                });
            }
            swapped.extend(groups);
        }
        Ok(swapped)
    }

    /// The embeddings that are to be fetched: the option, and the group.
    fn offloads(&self) -> impl Iterator<Item = (&'static str, Group)> + use<> {
        let set = [(TXT, self.offload_txt_emb), (IMG, self.offload_img_emb)];
        set.into_iter()
            .filter(|(_, is_set)| *is_set)
            .map(|(option, _)| option)
    }

    /// Whether each embedding that is fetched takes less memory than if it stayed. Alone it does not: the window needs a
    /// place of its size, and staging one more. Beside fetched blocks it uses theirs.
    ///
    /// As the planner counts with matrices in bf16, the default; in other forms window and group differ alike.
    fn check_savings(&self, wan: &WanModel, swapped: &BTreeSet<usize>) -> Result<(), SwapError> {
        let settings = self.settings(Settings::default());
        let least = |swapped: &BTreeSet<usize>| -> Result<u64, SwapError> {
            let workload = settings.workload(&fetching(wan, swapped)?, true);
            Ok(settings.plan(&workload, Budget::Least)?.arena_bytes)
        };
        for (option, part) in self.offloads() {
            let kept: BTreeSet<usize> = swapped
                .iter()
                .copied()
                .filter(|index| wan.part(*index).0 != Part::Group(part))
                .collect();
            let (with_bytes, without_bytes) = (least(swapped)?, least(&kept)?);
            if with_bytes >= without_bytes {
                return Err(SwapError::NoSaving {
                    option,
                    with_bytes,
                    without_bytes,
                });
            }
        }
        Ok(())
    }

    /// `count` of `blocks`.
    fn pick(&self, blocks: &[usize], count: usize) -> Vec<usize> {
        let picked = |nth: usize| match self.which {
            Which::Last => blocks[blocks.len() - count + nth],
            // The gaps are equal, also from one pass to the next.
            Which::Spread => blocks[nth * blocks.len() / count],
        };
        (0..count).map(picked).collect()
    }

    /// The options with which `wan` leaves `reserve_bytes` of a card of `card_bytes` free, and what the engine keeps of
    /// passes over `tokens` ([`WanModel::kept_bytes`]), fetching the fewest main blocks that will do; embeddings are fetched
    /// only if nothing will do without. The planner says what they take. `None` if it does not fit whatever is fetched.
    ///
    /// `reserve_bytes` is for the context, the engine's activations and whatever else is on the card.
    ///
    /// # Errors
    /// When the planner refuses the model.
    pub fn recommended(
        wan: &WanModel,
        settings: &Settings,
        card_bytes: u64,
        reserve_bytes: u64,
        tokens: Tokens,
    ) -> Result<Option<Recommended>, SwapError> {
        let kept_bytes = wan.kept_bytes(tokens);
        let budget_bytes = card_bytes.saturating_sub(reserve_bytes.saturating_add(kept_bytes));
        let most = wan.main_count();
        let with = |blocks_to_swap: u64, offload: bool| -> Result<Recommended, SwapError> {
            let options = Self {
                blocks_to_swap,
                offload_txt_emb: offload,
                offload_img_emb: offload && wan.has_image_embedding(),
                // Copies hide behind computing only if one block can arrive meanwhile.
                prefetch_blocks: u32::from(blocks_to_swap > 0),
                ..Self::default()
            };
            let options = options.without_vain_offloads(wan)?;
            let swapped = fetching(wan, &options.swapped(wan)?)?;
            let settings = options.settings(settings.clone());
            let workload = settings.workload(&swapped, true);
            let plan = settings.plan(&workload, Budget::Least)?;
            Ok(Recommended {
                options,
                plan,
                kept_bytes,
            })
        };
        // Each count is tried: one more need not take less, as what is fetched needs a window and its blocks differ in
        // size.
        for offload in [false, true] {
            for count in u64::from(offload)..=most {
                let tried = with(count, offload)?;
                if tried.plan.arena_bytes <= budget_bytes {
                    return Ok(Some(tried));
                }
            }
        }
        Ok(None)
    }

    /// What the original says, in its words and order.
    fn log(&self, wan: &WanModel, swapped: &BTreeSet<usize>) {
        let experts = [None, Some(Expert::High), Some(Expert::Low)];
        let experts = experts.into_iter().filter_map(|expert| {
            let of = |index: &usize| wan.part(*index).1 == expert;
            let main = wan.indices(|part| matches!(part, Part::Main(_)));
            let main: Vec<usize> = main.into_iter().filter(of).collect();
            (!main.is_empty()).then_some((expert, main))
        });
        let numbers = |main: &[usize], is_swapped: bool| -> Vec<u64> {
            let chosen = main
                .iter()
                .filter(|index| swapped.contains(index) == is_swapped);
            let parts = chosen.map(|index| match wan.part(*index).0 {
                Part::Main(number) => number,
                part => unreachable!("{part:?} is no main block"),
            });
            parts.collect()
        };
        tracing::info!("[BlockSwap] Using LAZY LOADING - blocks loaded directly to target device");
        let (mut total, mut kept_count) = (0, 0);
        for (expert, main) in experts {
            let (kept, moved) = (numbers(&main, false), numbers(&main, true));
            // Of a pair each line says of which expert it is.
            let of = expert.map_or(String::new(), |expert| format!(", {} noise", expert.name()));
            tracing::info!("[BlockSwap] Total blocks{of}: {}", main.len());
            tracing::info!("[BlockSwap] Keeping on GPU{of}: {}", ranges(&kept));
            tracing::info!("[BlockSwap] Offloading to CPU{of}: {}", ranges(&moved));
            total += main.len();
            kept_count += kept.len();
        }
        for (_, group) in self.offloads() {
            tracing::info!("[BlockSwap] Offloaded {group} to CPU");
        }
        let vace = wan.indices(|part| matches!(part, Part::Vace(_)));
        if !vace.is_empty() {
            let moved = vace.iter().filter(|index| swapped.contains(index)).count();
            tracing::info!("[BlockSwap] VACE: {moved}/{} blocks offloaded", vace.len());
        }
        tracing::info!("[BlockSwap] GPU blocks: {kept_count}");
        tracing::info!("[BlockSwap] CPU blocks: {}", total - kept_count);
    }

    /// Tells through `tracing`, if `block_swap_debug` is set, what each fetched visit of `spans` took: times of the
    /// device, not of the host. Nothing is ever copied back, so there is no time for that.
    pub fn log_spans(&self, spans: &[Span]) {
        if !self.block_swap_debug {
            return;
        }
        for upload in spans.iter().filter(|span| span.stage == "upload") {
            let took = |stage: &str| -> f64 {
                let of_visit = spans.iter().filter(|span| {
                    (span.stage, &span.block, span.pass) == (stage, &upload.block, upload.pass)
                });
                // A sum of nothing would be -0.
                let took = of_visit.map(|span| span.end_s - span.begin_s);
                took.fold(0.0, |sum, seconds| sum + seconds)
            };
            tracing::info!(
                "[BlockSwap] Block {} pass {}: transfer_time={:.4}s, decode_time={:.4}s, stall_time={:.4}s, compute_time={:.4}s",
                upload.block,
                upload.pass,
                took("upload"),
                took("decode"),
                took("stall"),
                took("compute")
            );
        }
    }
}

/// The options that fetch an embedding, and the groups.
const TXT: (&str, Group) = ("offload_txt_emb", Group::TextEmbedding);
const IMG: (&str, Group) = ("offload_img_emb", Group::ImgEmb);

/// The model with the blocks `swapped` fetched at each visit and all others kept.
fn fetching(wan: &WanModel, swapped: &BTreeSet<usize>) -> Result<Model, SwapError> {
    let mut model = wan.model.clone();
    for index in 0..model.blocks().len() {
        let residency = if swapped.contains(&index) {
            Residency::Never
        } else {
            Residency::Always
        };
        model = model.with_residency(index, residency)?;
    }
    Ok(model)
}

/// Options and the plan that they make.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Recommended {
    /// The options.
    pub options: BlockSwap,
    /// What the planner makes of them.
    pub plan: Plan,
    /// Bytes that were left for what the engine keeps.
    pub kept_bytes: u64,
}

fn checked(option: &'static str, value: u64, count: usize) -> Result<usize, SwapError> {
    match usize::try_from(value) {
        Ok(wanted) if wanted <= count => Ok(wanted),
        _ => Err(SwapError::OutOfRange {
            option,
            value,
            most: count as u64,
        }),
    }
}

/// `blocks 0-3, 5, 7-9`; `no blocks` where the original counts backwards.
fn ranges(numbers: &[u64]) -> String {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    if runs.is_empty() {
        return "no blocks".to_owned();
    }
    let text = runs.iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    format!("blocks {}", text.collect::<Vec<_>>().join(", "))
}

impl WanModel {
    /// Main blocks, of each expert.
    fn main_count(&self) -> u64 {
        let of_first = |index: &usize| self.part(*index).1 != Some(Expert::Low);
        let main = self.indices(|part| matches!(part, Part::Main(_)));
        main.into_iter().filter(of_first).count() as u64
    }

    fn has_image_embedding(&self) -> bool {
        !self
            .indices(|part| part == Part::Group(Group::ImgEmb))
            .is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_told_as_people_write_them() {
        assert_eq!(ranges(&[]), "no blocks");
        assert_eq!(ranges(&[4]), "blocks 4");
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "blocks 0-2, 5, 7-8");
    }

    #[test]
    fn spread_blocks_have_equal_gaps_and_last_ones_none() {
        let blocks: Vec<usize> = (10..18).collect();
        let pick = |which, count| {
            BlockSwap {
                which,
                ..BlockSwap::default()
            }
            .pick(&blocks, count)
        };
        assert_eq!(pick(Which::Spread, 4), [10, 12, 14, 16]);
        assert_eq!(pick(Which::Last, 3), [15, 16, 17]);
        assert_eq!(pick(Which::Spread, 0), [0; 0]);
    }
}
