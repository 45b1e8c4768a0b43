//! WAN checkpoints for offload: which variant a file is, which tensors it has, and which blocks they make.
//!
//! A [`Checkpoint`] is opened from one file or from several shards. Its [`Detection`] says what it is as far as names
//! and shapes tell, and [`Checkpoint::model`] turns it into blocks that `offload_core` moves:
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let checkpoint = offload_wan::Checkpoint::open("wan2.1_t2v_14B_Q4_K_M.gguf")?;
//! println!("{:?}", checkpoint.detection().variant);
//! let model = checkpoint.model()?;
//! assert_eq!(model.blocks()[0].name(), "patch_embedding");
//! # Ok(())
//! # }
//! ```
//!
//! [`WanModel`] has more: the passes of VACE, of guidance and of two experts, and [`BlockSwap`] the options of the original
//! block swap.
//!
//! # Parts
//!
//! | module | holds | never |
//! |---|---|---|
//! | `names` | each convention's names, both ways | knows shapes |
//! | `group` | what stands outside the blocks, in the order of use | |
//! | `layout` | each module's tensors and shapes, once; which modules a family has | reads files |
//! | `variant` | what is published | |
//! | `container`, `config`, `hints` | what files, folders and their names say | decides |
//! | `votes` | whose names most of a checkpoint's are | |
//! | `catalog` | a file's tensors under canonical names, stacked ones taken apart | checks |
//! | `detect`, `findings` | what a checkpoint is, and what it lacks | refuses |
//! | `transformer`, `passes` | blocks, their order, pass kinds, pairs of experts | places blocks |
//! | `scales`, `stored` | weights of few bits and their scales; whether both fit each other | |
//! | `swap` | the original's options | |
//! | `encoder` | layers of umT5, T5 and CLIP | |
//! | `synthesize` | checkpoints with seeded weights | |
//!
//! # Choices and their price
//!
//! - Names are brought to one convention first, so an engine asks for `self_attn.q.weight` whatever file is loaded.
//!   Matrices that a file stacks are taken apart, which costs no copy: they are ranges of the same bytes.
//! - A checkpoint is checked as a whole before the first byte moves. One with a missing tensor is refused even if the
//!   engine would never ask for it; all findings are reported at once.
//! - Tensors decide before file names do. Names are asked for what tensors cannot tell, and
//!   [`Detection::decided_by`] says so; what stays open is reported with the older variant first.
//! - Widths may be scaled: the block count and the channels tell the variant then. With fewer blocks than a published
//!   checkpoint, but more than half of them, it is one whose last blocks are missing, unless a configuration says that
//!   it is whole; with another count it is of a size of its own and has the family's name, such as `wan2.1-t2v`.
//! - A caller who says what a checkpoint is ([`Checkpoint::taken_for`]) is believed and holds it to that: what differs
//!   is a finding, what is plainly something else is refused.
//! - HuMo attends to sound in the middle of a block, so what it needs for that is part of the block. Audio injectors and
//!   fuser blocks run between blocks and are blocks of their own.
//!
//! # Out of scope
//!
//! Devices, decoding and plans are `offload_core`'s.

#![forbid(unsafe_code)]

mod block;
mod catalog;
mod checkpoint;
mod config;
mod container;
mod detect;
mod encoder;
mod findings;
mod group;
mod hints;
mod layout;
mod names;
mod passes;
mod scales;
mod stored;
mod swap;
mod synthesize;
mod transformer;
mod variant;
mod votes;

pub use block::WanBlock;
pub use checkpoint::{BlockSummary, Checkpoint, CheckpointError};
pub use config::ConfigError;
pub use container::ContainerError;
pub use detect::{Decision, Detection, Expert, PatchEmbedding, Scaling};
pub use findings::{Finding, Findings};
pub use group::Group;
pub use names::Naming;
pub use passes::{
    Evaluates, ExpertChange, Guidance, PassOptions, StepPass, Tokens, VaceOrder, WanModel,
};
pub use swap::{BlockSwap, MOST_PREFETCH, Recommended, SwapError, Which};
pub use synthesize::{Recipe, SynthesizeError, SynthesizeSpec, synthesize};
pub use transformer::{LayoutError, Part};
pub use variant::{Counts, Family, Size, Variant};

/// Compiles the code blocks of the workspace README.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct ReadmeDoctests;
