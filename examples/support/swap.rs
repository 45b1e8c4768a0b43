//! The options of the original block swap, as arguments.

use std::error::Error;

use clap::Args;
use offload_wan::{BlockSwap, WanModel, Which};

use crate::wan::parse;

/// The options of the original block swap.
#[derive(Debug, Clone, Args)]
pub(crate) struct SwapArguments {
    /// Fetch N of the main blocks at each visit and keep all others resident.
    #[arg(long, value_name = "N")]
    blocks_to_swap: Option<u64>,
    /// The original's advice for a card: 8gb, 12gb or 16gb.
    #[arg(long, value_name = "NAME", conflicts_with = "blocks_to_swap")]
    preset: Option<String>,
    /// Which blocks are swapped: spread over the pass, or the last, as the original does.
    #[arg(long, value_name = "WHICH", value_parser = parse::<Which>)]
    which: Option<Which>,
    /// Fetch the text embedding too.
    #[arg(long)]
    offload_txt_emb: bool,
    /// Fetch the image embedding too.
    #[arg(long)]
    offload_img_emb: bool,
    /// Page-lock what is fetched: faster, and its bytes of RAM cannot be given up.
    #[arg(long)]
    use_non_blocking: bool,
    /// VACE blocks to fetch; 0: as large a share as of the main blocks.
    #[arg(long, value_name = "N")]
    vace_blocks_to_swap: Option<u64>,
    /// Places for so many fetched blocks beside the one that computes; 0: the planner chooses.
    #[arg(long, value_name = "N")]
    prefetch_blocks: Option<u32>,
    /// Tell on standard error what is done, in the original's words.
    #[arg(long)]
    block_swap_debug: bool,
}

impl SwapArguments {
    /// The options, if any blocks are to be swapped by number.
    pub(crate) fn swap(&self, wan: Option<&WanModel>) -> Result<Option<BlockSwap>, Box<dyn Error>> {
        if self.blocks_to_swap.is_none() && self.preset.is_none() {
            return match self.asked() {
                Some(option) => {
                    Err(format!("{option} goes with --blocks-to-swap or --preset").into())
                }
                None => Ok(None),
            };
        }
        let Some(wan) = wan else {
            return Err("only the blocks of a WAN transformer are swapped by number".into());
        };
        let base = match (&self.preset, self.blocks_to_swap) {
            (Some(name), _) => BlockSwap::preset(name, wan)?,
            (None, count) => BlockSwap {
                blocks_to_swap: count.unwrap_or_default(),
                ..BlockSwap::default()
            },
        };
        Ok(Some(BlockSwap {
            which: self.which.unwrap_or(base.which),
            offload_txt_emb: self.offload_txt_emb || base.offload_txt_emb,
            offload_img_emb: self.offload_img_emb || base.offload_img_emb,
            use_non_blocking: self.use_non_blocking,
            vace_blocks_to_swap: self.vace_blocks_to_swap.unwrap_or(base.vace_blocks_to_swap),
            prefetch_blocks: self.prefetch_blocks.unwrap_or(base.prefetch_blocks),
            block_swap_debug: self.block_swap_debug,
            ..base
        }))
    }

    /// An option that says how blocks are swapped.
    fn asked(&self) -> Option<&'static str> {
        let options = [
            (self.which.is_some(), "--which"),
            (self.offload_txt_emb, "--offload-txt-emb"),
            (self.offload_img_emb, "--offload-img-emb"),
            (self.use_non_blocking, "--use-non-blocking"),
            (self.vace_blocks_to_swap.is_some(), "--vace-blocks-to-swap"),
            (self.prefetch_blocks.is_some(), "--prefetch-blocks"),
            (self.block_swap_debug, "--block-swap-debug"),
        ];
        let asked = options.into_iter().find(|(is_asked, _)| *is_asked);
        asked.map(|(_, option)| option)
    }

    /// Whether the program is to listen to what is told.
    pub(crate) fn is_debug(&self) -> bool {
        self.block_swap_debug
    }
}
