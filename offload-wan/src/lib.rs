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
//! # Choices and their price
//!
//! - Names are brought to the authors' own convention first, so an engine asks for `self_attn.q.weight` whatever file
//!   is loaded. An engine with other names translates.
//! - A checkpoint is checked as a whole before the first byte moves. One with a missing tensor is refused even if the
//!   engine would never ask for it.
//! - Nothing is guessed from file names. What tensors cannot tell apart is reported as such, with the older variant
//!   first.
//! - Widths may be scaled: the block count and the channels tell the variant then. A block count that no published
//!   checkpoint has gives the family's name, such as `wan2.1-t2v`.
//!
//! # Out of scope
//!
//! Devices, decoding and plans are `offload_core`'s. VACE, Animate, sound to video, HuMo, SCAIL and LongCat-Video are
//! recognised but no model is built of them.

#![forbid(unsafe_code)]

mod block;
mod catalog;
mod checkpoint;
mod container;
mod detect;
mod groups;
mod layout;
mod names;
mod synthesize;
mod variant;

pub use block::WanBlock;
pub use checkpoint::{BlockSummary, Checkpoint, CheckpointError};
pub use container::ContainerError;
pub use detect::{Detection, PatchEmbedding};
pub use groups::LayoutError;
pub use names::Naming;
pub use synthesize::{Recipe, SynthesizeError, SynthesizeSpec, synthesize};
pub use variant::{Family, Size, Variant};

/// Compiles the code blocks of the workspace README.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct ReadmeDoctests;
