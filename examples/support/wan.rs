//! What programs here are asked about WAN models: which passes to make, and both experts of a pair.

use std::error::Error;
use std::path::PathBuf;

use clap::Args;
use offload_core::model::Model;
use offload_wan::{Checkpoint, Guidance, PassOptions, VaceOrder, Variant, WanModel};
use serde::de::DeserializeOwned;

/// Which passes are made.
#[derive(Debug, Clone, Args)]
pub(crate) struct PassArguments {
    /// When VACE blocks run: interleaved with the main ones, all-first, or off.
    #[arg(long, value_name = "ORDER", default_value = "interleaved", value_parser = parse::<VaceOrder>)]
    vace_order: VaceOrder,
    /// Guidance: off, separate (a pass with the prompt and one without it), or lockstep (one pass for both).
    #[arg(long, value_name = "HOW", default_value = "off", value_parser = parse::<Guidance>)]
    guidance: Guidance,
    /// Main blocks that the evaluation without the prompt leaves out, such as 9,10.
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    skip_layers: Vec<u64>,
    /// Bring the projections of keys and values of text and image in the first step only; the engine keeps what they give.
    #[arg(long)]
    cache_cross_attention: bool,
    /// Where two experts change, as a part of all timesteps. Default: the variant's.
    #[arg(long, value_name = "PART", requires = "low")]
    boundary: Option<f64>,
}

impl PassArguments {
    /// The options of a run of `steps` steps.
    pub(crate) fn options(&self, steps: u32) -> PassOptions {
        PassOptions {
            vace: self.vace_order,
            guidance: self.guidance,
            skip_layers: self.skip_layers.clone(),
            cache_cross_attention: self.cache_cross_attention,
            steps: steps.max(1),
            high_steps: None,
        }
    }

    fn is_plain(&self) -> bool {
        self.options(1)
            == PassOptions {
                steps: 1,
                ..PassOptions::default()
            }
            && self.boundary.is_none()
    }
}

/// The word that a setting has in files.
pub(crate) fn parse<T: DeserializeOwned>(word: &str) -> Result<T, String> {
    serde_json::from_value(serde_json::Value::from(word)).map_err(|error| error.to_string())
}

pub(crate) fn parse_variant(name: &str) -> Result<Variant, String> {
    Variant::from_name(name).ok_or_else(|| {
        let names: Vec<_> = Variant::ALL.iter().map(|variant| variant.name()).collect();
        format!(
            "`{name}` is no variant that is known: there are {}",
            names.join(", ")
        )
    })
}

/// A model to plan or to stream: a WAN transformer, a pair of them, or an encoder.
pub(crate) struct Subject {
    pub(crate) model: Model,
    pub(crate) wan: Option<WanModel>,
}

impl Subject {
    /// The model of `checkpoint`, with the expert for low noise in `low` if it is one of a pair.
    pub(crate) fn new(
        checkpoint: &Checkpoint,
        low: Option<&Checkpoint>,
        arguments: &PassArguments,
        steps: u32,
    ) -> Result<Self, Box<dyn Error>> {
        if checkpoint.detection().encoder.is_some() {
            if low.is_some() || !arguments.is_plain() {
                return Err("an encoder has neither experts nor passes to choose".into());
            }
            return Ok(Self {
                model: checkpoint.model()?,
                wan: None,
            });
        }
        // Each expert of a pair has a step.
        let options = arguments.options(if low.is_some() { steps.max(2) } else { steps });
        let wan = match low {
            Some(low) => WanModel::pair(checkpoint, low, arguments.boundary, &options)?,
            None => WanModel::new(checkpoint, &options)?,
        };
        Ok(Self {
            model: wan.model().clone(),
            wan: Some(wan),
        })
    }
}

/// Files of the expert for low noise.
#[derive(Debug, Clone, Args)]
pub(crate) struct LowArguments {
    /// The expert for low noise of a pair; FILE is then the one for high noise.
    #[arg(long = "low", id = "low", value_name = "FILE")]
    files: Vec<PathBuf>,
}

impl LowArguments {
    pub(crate) fn open(&self) -> Result<Option<Checkpoint>, Box<dyn Error>> {
        Ok(match self.files.is_empty() {
            true => None,
            false => Some(Checkpoint::open_all(&self.files)?),
        })
    }
}
